// One column on x86, in vectors of 256 bits: four rows of Q2_K side by side, as in x86_rows.h, or four blocks of a row of Q6_K.
// A row of Q6_K is read on its own: a processor prefetches such a stream by itself, and its many bytes faster than if told to.
// A column has for each 256 values: these, then the sums of each 16 of them in 16 bits.
#pragma once
#include "x86_vectors.h"

namespace {

constexpr int K_PLACES = 512;

// The factors of even parts in one half, those of odd parts in the other
ALWAYS_INLINE __m256i halves_of_factors(__m128i factors) {
    const __m128i places = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
    return _mm256_cvtepi8_epi16(_mm_shuffle_epi8(factors, places));
}

// 16 sums of two products, in 16 bits, times the factors of two parts
ALWAYS_INLINE __m256i times_factors(__m256i sums, __m256i halves, int two_parts) {
    const __m256i places = _mm256_set1_epi16((short) (2 * two_parts | (2 * two_parts + 1) << 8));
    return _mm256_madd_epi16(sums, _mm256_shuffle_epi8(halves, places));
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
    UNROLL for (int half = 0; half < 2; half++, values += 128) {
        const __m256i low[2] = {load(block + 64 * half), load(block + 64 * half + 32)}, high = load(block + 128 + 32 * half);
        const __m256i upper[4] = {_mm256_slli_epi16(high, 4), _mm256_slli_epi16(high, 2), high, _mm256_srli_epi16(high, 2)};
        UNROLL for (int i = 0; i < 4; i++) {
            const __m256i four = _mm256_and_si256(i < 2 ? low[i] : _mm256_srli_epi16(low[i - 2], 4), fifteen);
            const __m256i codes = _mm256_or_si256(four, _mm256_and_si256(upper[i], three));
            const __m256i products = _mm256_maddubs_epi16(codes, load(values + 32 * i));
            sums = _mm256_add_epi32(sums, times_factors(products, halves, 4 * half + i));
        }
    }
    return sums;
}

ALWAYS_INLINE __m256i q2_k_lanes(const char * block, const int8_t * values) {
    const __m128i both = _mm_loadu_si128((const __m128i *) block);
    const __m256i halves = halves_of_factors(_mm_and_si128(both, _mm_set1_epi8(15)));
    __m256i sums = _mm256_setzero_si256();
    UNROLL for (int half = 0; half < 2; half++, values += 128) {
        const __m256i packed = load(block + 16 + 32 * half);
        UNROLL for (int i = 0; i < 4; i++) {
            const __m256i codes = _mm256_and_si256(_mm256_srli_epi16(packed, 2 * i), _mm256_set1_epi8(3));
            const __m256i products = _mm256_maddubs_epi16(codes, load(values + 32 * i));
            sums = _mm256_add_epi32(sums, times_factors(products, halves, 4 * half + i));
        }
    }
    return sums;
}

ALWAYS_INLINE __m256i q2_k_minima(const char * block, const int8_t * values) {
    const __m128i both = _mm_loadu_si128((const __m128i *) block);
    const __m128i minima = _mm_and_si128(_mm_srli_epi16(both, 4), _mm_set1_epi8(15));
    return _mm256_madd_epi16(_mm256_cvtepi8_epi16(minima), part_sums(values));
}

// The sums of eight vectors' lanes
ALWAYS_INLINE __m256i add_eight(const __m256i v[8]) {
    const __m256i low = _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
    const __m256i high = _mm256_hadd_epi32(_mm256_hadd_epi32(v[4], v[5]), _mm256_hadd_epi32(v[6], v[7]));
    return _mm256_add_epi32(_mm256_permute2x128_si256(low, high, 0x20), _mm256_permute2x128_si256(low, high, 0x31));
}

ALWAYS_INLINE __m128 scales_of_four(const char * const blocks[4], int64_t offset) {
    __m128i halves = _mm_setzero_si128();
    halves = _mm_insert_epi16(halves, half_at(blocks[0] + offset), 0);
    halves = _mm_insert_epi16(halves, half_at(blocks[1] + offset), 1);
    halves = _mm_insert_epi16(halves, half_at(blocks[2] + offset), 2);
    halves = _mm_insert_epi16(halves, half_at(blocks[3] + offset), 3);
    return _mm_cvtph_ps(halves);
}

ALWAYS_INLINE __m128 add_block(__m128 totals, __m128i exact, float column_scale, __m128 scales) {
    return _mm_fmadd_ps(_mm_mul_ps(_mm_cvtepi32_ps(exact), _mm_set1_ps(column_scale)), scales, totals);
}

void multiply_four_q2_k_rows(const char * weights, size_t row_bytes, int n_rows, int64_t n_blocks, const column_parts & column,
                             float * results) {
    constexpr int stride = 84;
    const char * ahead = weights + 3 * row_bytes + PREFETCH_BYTES;
    const char * rows[4];
    UNROLL for (int row = 0; row < 4; row++)
        rows[row] = weights + (row < n_rows ? row : n_rows - 1) * row_bytes;
    __m128 totals = _mm_setzero_ps();
    for (int64_t block = 0; block < n_blocks; block++, ahead += 4 * stride) {
        UNROLL for (int i = 0; i < 4 * stride; i += 64)
            _mm_prefetch(ahead + i, _MM_HINT_T0);
        const int8_t * values = column.values + K_PLACES * block;
        const float column_scale = column.scales[block];
        __m256i lanes[8];
        UNROLL for (int row = 0; row < 4; row++) {
            lanes[row] = q2_k_lanes(rows[row], values);
            lanes[4 + row] = q2_k_minima(rows[row], values);
        }
        const __m256i exact = add_eight(lanes);
        totals = add_block(totals, _mm256_castsi256_si128(exact), column_scale, scales_of_four(rows, 80));
        const __m128 negative = _mm_xor_ps(scales_of_four(rows, 82), _mm_set1_ps(-0.0f));
        totals = add_block(totals, _mm256_extracti128_si256(exact, 1), column_scale, negative);
        UNROLL for (int row = 0; row < 4; row++)
            rows[row] += stride;
    }
    float lanes[4];
    _mm_storeu_ps(lanes, totals);
    memcpy(results, lanes, (n_rows < 4 ? n_rows : 4) * sizeof(float));
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
    const __m128 sums = _mm_cvtepi32_ps(_mm256_castsi256_si128(add_eight(lanes)));
    float products[4], scales[4];
    _mm_storeu_ps(products, _mm_mul_ps(sums, _mm_loadu_ps(of_column)));
    _mm_storeu_ps(scales, scales_of_four(blocks, scale_at));
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

template <int TYPE>
void multiply_k_rows(const weight_format & format, const char * weights, size_t row_bytes, int n_rows, int64_t n_inputs,
                     char * place, float * results) {
    const column_parts column = parts_of_column(place, format, n_inputs);
    const int64_t n_blocks = n_inputs / 256;
    if (TYPE == Q6_K)
        for (int row = 0; row < n_rows; row++)
            multiply_q6_k_row(weights + row * row_bytes, n_blocks, column, results + row);
    else
        for (int row = 0; row < n_rows; row += 4)
            multiply_four_q2_k_rows(weights + row * row_bytes, row_bytes, n_rows - row, n_blocks, column, results + row);
}

}  // namespace
