// One column of Q2_K or Q6_K on x86, in vectors of 256 bits. The including file has defined accumulate() and
// accumulate_words(), as for x86_blocks_256.h. A column has for each 256 values: these, then the sums of each 16 in 16 bits.
#pragma once
#include "x86_vectors.h"

namespace {

constexpr int K_PLACES = 512;

// The factors of even parts in one half, those of odd parts in the other
ALWAYS_INLINE __m256i halves_of_factors(__m128i factors) {
    const __m128i places = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
    return _mm256_cvtepi8_epi16(_mm_shuffle_epi8(factors, places));
}

// The codes of the vectors i and j, of 32 values, times these and their factors. A half of a vector is a part, so `i` has the
// parts 2 * i and 2 * i + 1. Exact: four products of codes up to 63 fit 16 bits.
ALWAYS_INLINE __m256i add_parts(__m256i sums, __m256i codes_i, int i, __m256i codes_j, int j, const int8_t * values,
                                __m256i halves) {
    const __m256i values_i = load(values + 32 * i), values_j = load(values + 32 * j);
    const int64_t of_i = 0x0001000100010001 * (2 * i | (2 * i + 1) << 8), of_j = 0x0001000100010001 * (2 * j | (2 * j + 1) << 8);
#ifdef SUMS_OF_PAIRS
    const __m256i factors_i = _mm256_shuffle_epi8(halves, _mm256_set1_epi64x(of_i));
    const __m256i factors_j = _mm256_shuffle_epi8(halves, _mm256_set1_epi64x(of_j));
    sums = accumulate_words(sums, _mm256_maddubs_epi16(codes_i, values_i), factors_i);
    return accumulate_words(sums, _mm256_maddubs_epi16(codes_j, values_j), factors_j);
#else
    const __m256i zero = _mm256_setzero_si256();
    const __m256i products = _mm256_packs_epi32(accumulate(zero, codes_i, values_i), accumulate(zero, codes_j, values_j));
    return accumulate_words(sums, products, _mm256_shuffle_epi8(halves, _mm256_setr_epi64x(of_i, of_j, of_i, of_j)));
#endif
}

ALWAYS_INLINE __m256i part_sums(const int8_t * values) {
    return load(values + 256);
}

ALWAYS_INLINE __m256i q6_k_lanes(const char * block, const int8_t * values) {
    const __m256i fifteen = _mm256_set1_epi8(15), three = _mm256_set1_epi8(48);
    const __m128i factors = _mm_loadu_si128((const __m128i *) (block + 192));
    __m256i sums = _mm256_madd_epi16(_mm256_cvtepi8_epi16(factors), part_sums(values));
    sums = _mm256_slli_epi32(_mm256_sub_epi32(_mm256_setzero_si256(), sums), 5);  // codes count as if 32 were subtracted
    const __m256i halves = halves_of_factors(factors);
    UNROLL for (int half = 0; half < 2; half++) {
        const __m256i low[2] = {load(block + 64 * half), load(block + 64 * half + 32)}, high = load(block + 128 + 32 * half);
        const __m256i upper[4] = {_mm256_slli_epi16(high, 4), _mm256_slli_epi16(high, 2), high, _mm256_srli_epi16(high, 2)};
        __m256i codes[4];
        UNROLL for (int i = 0; i < 4; i++) {
            const __m256i four = _mm256_and_si256(i < 2 ? low[i] : _mm256_srli_epi16(low[i - 2], 4), fifteen);
            codes[i] = _mm256_or_si256(four, _mm256_and_si256(upper[i], three));
        }
        UNROLL for (int i = 0; i < 4; i += 2)
            sums = add_parts(sums, codes[i], 4 * half + i, codes[i + 1], 4 * half + i + 1, values, halves);
    }
    return sums;
}

// Codes at the bits 2 and 6 are counted four times and divided: it saves shifts.
ALWAYS_INLINE __m256i q2_k_lanes(const char * block, const int8_t * values) {
    const __m256i low = _mm256_set1_epi8(3), high = _mm256_set1_epi8(12);
    const __m128i both = _mm_loadu_si128((const __m128i *) block);
    const __m256i halves = halves_of_factors(_mm_and_si128(both, _mm_set1_epi8(15)));
    __m256i sums = _mm256_setzero_si256(), fourfold = sums;
    UNROLL for (int half = 0; half < 2; half++) {
        const __m256i packed = load(block + 16 + 32 * half), shifted = _mm256_srli_epi16(packed, 4);
        sums = add_parts(sums, _mm256_and_si256(packed, low), 4 * half, _mm256_and_si256(shifted, low), 4 * half + 2, values,
                         halves);
        fourfold = add_parts(fourfold, _mm256_and_si256(packed, high), 4 * half + 1, _mm256_and_si256(shifted, high),
                             4 * half + 3, values, halves);
    }
    return _mm256_add_epi32(sums, _mm256_srai_epi32(fourfold, 2));
}

ALWAYS_INLINE __m256i q2_k_minima(const char * block, const int8_t * values) {
    const __m128i both = _mm_loadu_si128((const __m128i *) block);
    const __m128i minima = _mm_and_si128(_mm_srli_epi16(both, 4), _mm_set1_epi8(15));
    return _mm256_madd_epi16(_mm256_cvtepi8_epi16(minima), part_sums(values));
}

ALWAYS_INLINE __m128 multiply_four_q2_k_rows(const char * rows[4], int64_t n_blocks, const column_parts & column) {
    __m128 totals = _mm_setzero_ps();
    for (int64_t block = 0; block < n_blocks; block++) {
        const int8_t * values = column.values + K_PLACES * block;
        __m256i lanes[8];
        UNROLL for (int row = 0; row < 4; row++) {
            lanes[row] = q2_k_lanes(rows[row], values);
            lanes[4 + row] = q2_k_minima(rows[row], values);
        }
        const __m256i exact = add_lanes(lanes);
        totals = add_block(totals, _mm256_castsi256_si128(exact), column.scales[block], halves_of_four(rows, 80));
        const __m128 negative = _mm_xor_ps(halves_of_four(rows, 82), _mm_set1_ps(-0.0f));
        totals = add_block(totals, _mm256_extracti128_si256(exact, 1), column.scales[block], negative);
        UNROLL for (int row = 0; row < 4; row++)
            rows[row] += 84;
    }
    return totals;
}

// Add up to four blocks of a row to its total, one after the other
template <int BLOCKS>
ALWAYS_INLINE __m128 add_q6_k_blocks(__m128 total, const char * row, const column_parts & column, int64_t block) {
    constexpr int stride = 210, scale_at = 208;
    const char * blocks[4];
    __m256i lanes[8];
    float of_column[4] = {};
    UNROLL for (int i = 0; i < 4; i++) {
        blocks[i] = row + (block + (i < BLOCKS ? i : 0)) * stride;
        lanes[i] = i < BLOCKS ? q6_k_lanes(blocks[i], column.values + K_PLACES * (block + i)) : _mm256_setzero_si256();
        lanes[4 + i] = _mm256_setzero_si256();
    }
    memcpy(of_column, column.scales + block, BLOCKS * sizeof(float));
    const __m128 sums = _mm_cvtepi32_ps(_mm256_castsi256_si128(add_lanes(lanes)));
    float products[4], scales[4];
    _mm_storeu_ps(products, _mm_mul_ps(sums, _mm_loadu_ps(of_column)));
    _mm_storeu_ps(scales, halves_of_four(blocks, scale_at));
    UNROLL for (int i = 0; i < BLOCKS; i++)
        total = _mm_fmadd_ss(_mm_load_ss(products + i), _mm_load_ss(scales + i), total);
    return total;
}

void multiply_q6_k_row(const char * row, int64_t n_blocks, const column_parts & column, float * result) {
    __m128 total = _mm_setzero_ps();
    int64_t block = 0;
    for (; block + 4 <= n_blocks; block += 4)
        total = add_q6_k_blocks<4>(total, row, column, block);
    for (; block < n_blocks; block++)
        total = add_q6_k_blocks<1>(total, row, column, block);
    _mm_store_ss(result, total);
}

// Rows one after the other: four streams, as in x86_rows.h, are sometimes read at two thirds of a single one's speed.
void multiply_q6_k_rows(const weight_format &, const char * weights, size_t row_bytes, int n_rows, int64_t n_inputs,
                        const column_parts & column, float * results) {
    for (int row = 0; row < n_rows; row++)
        multiply_q6_k_row(weights + row * row_bytes, n_inputs / 256, column, results + row);
}

}  // namespace
