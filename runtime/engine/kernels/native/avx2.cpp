// AVX2: products of unsigned and signed bytes in sums of 16 bits
#include "compiler.h"
#include "instruction_set.h"
#include "processor.h"
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#include <string.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#elif defined(__GNUC__)
#pragma GCC target("avx2,fma,f16c")
#endif

#define SUMS_OF_PAIRS
#define PANEL_ROWS 16
#define PANEL_COLUMNS 4
#define WORD_BYTES 4

namespace {

// GCC would compute many products first, then spill them: the assembler code keeps one in a register.
ALWAYS_INLINE __m256i accumulate(__m256i sums, __m256i codes, __m256i values) {
#if defined(__GNUC__)
    __m256i products;
    __asm__("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(sums), "=&x"(products) : "x"(codes), "x"(values));
    return sums;
#else
    return _mm256_add_epi16(sums, _mm256_maddubs_epi16(codes, values));
#endif
}

ALWAYS_INLINE __m256i accumulate_words(__m256i sums, __m256i a, __m256i b) {
    return _mm256_add_epi32(sums, _mm256_madd_epi16(a, b));
}

ALWAYS_INLINE __m256i add_sums(__m256i a, __m256i b) {
    return _mm256_add_epi16(a, b);
}

ALWAYS_INLINE __m256i quarter_sums(__m256i sums) {
    return _mm256_srai_epi16(sums, 2);
}

ALWAYS_INLINE __m256i lanes_of(__m256i sums) {
    return _mm256_madd_epi16(sums, _mm256_set1_epi16(1));
}

}  // namespace

#include "x86_blocks_256.h"
#include "x86_tile_256.h"
#include "x86_tiles.h"
#include "x86_words.h"

namespace {
const instruction_set here = {"avx2", PANEL_ROWS, PANEL_COLUMNS, SMALL_ITEM, 16, HAS_Q8_0, quantize_column, multiply_rows,
                              quantize_panel<>, unpack_panel, multiply_panels, quantize_few, multiply_few, nullptr};
}

#if defined(__clang__)
#pragma clang attribute pop
#endif

const instruction_set * avx2(void) {
    return processor_has_avx2() ? &here : nullptr;
}
#else
const instruction_set * avx2(void) {
    return nullptr;
}
#endif
