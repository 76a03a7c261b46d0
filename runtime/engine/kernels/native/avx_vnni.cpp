// AVX-VNNI: products of unsigned and signed bytes in sums of 32 bits, of 256-bit vectors. With EVEX_ENCODING the same code
// runs on processors with AVX-512-VNNI, for tests.
#include "compiler.h"
#include "instruction_set.h"
#include "processor.h"
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#include <string.h>
#if defined(EVEX_ENCODING)
#define DOT_PRODUCT _mm256_dpbusd_epi32
#define DOT_PRODUCT_OF_WORDS _mm256_dpwssd_epi32
#define PRESENT processor_has_avx512_vnni
#else
#define DOT_PRODUCT _mm256_dpbusd_avx_epi32
#define DOT_PRODUCT_OF_WORDS _mm256_dpwssd_avx_epi32
#define PRESENT processor_has_avx_vnni
#endif
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avxvnni"))), apply_to = function)
#elif defined(EVEX_ENCODING)
#pragma GCC target("avx2,fma,f16c,avx512vnni,avx512vl")
#elif defined(__GNUC__)
#pragma GCC target("avx2,fma,f16c,avxvnni")
#endif

#define PANEL_ROWS 16
#define PANEL_COLUMNS 6
#define WORD_BYTES 4

namespace {

ALWAYS_INLINE __m256i accumulate(__m256i sums, __m256i codes, __m256i values) {
    return DOT_PRODUCT(sums, codes, values);
}

ALWAYS_INLINE __m256i accumulate_words(__m256i sums, __m256i a, __m256i b) {
    return DOT_PRODUCT_OF_WORDS(sums, a, b);
}

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

#include "x86_blocks_256.h"
#include "x86_tile_256.h"
#include "x86_tiles.h"
#include "x86_words.h"

namespace {
const instruction_set here = {"avx-vnni", PANEL_ROWS, PANEL_COLUMNS, SMALL_ITEM, 16, HAS_Q8_0, quantize_column, multiply_rows,
                              quantize_panel<>, unpack_panel, multiply_panels, quantize_few, multiply_few, nullptr};
}

#if defined(__clang__)
#pragma clang attribute pop
#endif

const instruction_set * avx_vnni(void) {
    return PRESENT() ? &here : nullptr;
}
#else
const instruction_set * avx_vnni(void) {
    return nullptr;
}
#endif
