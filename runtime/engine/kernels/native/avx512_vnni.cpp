// AVX-512-VNNI: products of unsigned and signed bytes in sums of 32 bits; one column in vectors of 256 bits, many columns in
// vectors of 512 bits.
#include "compiler.h"
#include "instruction_set.h"
#include "processor.h"
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#include <string.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"))), apply_to = function)
#elif defined(__GNUC__)
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12's own headers: https://gcc.gnu.org/PR105593
#endif

namespace {

ALWAYS_INLINE __m256i add_sums(__m256i a, __m256i b) {
    return _mm256_add_epi32(a, b);
}

ALWAYS_INLINE __m256i quarter_sums(__m256i sums) {
    return _mm256_srai_epi32(sums, 2);
}

ALWAYS_INLINE __m256i lanes_of(__m256i sums) {
    return sums;
}

}  // namespace

#include "avx512_tile.h"
#include "x86_blocks_256.h"
#include "x86_tiles.h"
#include "x86_words.h"
#include "avx512_halves.h"

namespace {
const instruction_set here = {"avx512-vnni", PANEL_ROWS, PANEL_COLUMNS, SMALL_ITEM, 32, HAS_Q8_0, quantize_column, multiply_rows,
                              quantize_panel<>, unpack_panel, multiply_panels, quantize_few, multiply_few, multiply_halves};
}

#if defined(__clang__)
#pragma clang attribute pop
#endif

const instruction_set * avx512_vnni(void) {
    return processor_has_avx512_vnni() ? &here : nullptr;
}
#else
const instruction_set * avx512_vnni(void) {
    return nullptr;
}
#endif
