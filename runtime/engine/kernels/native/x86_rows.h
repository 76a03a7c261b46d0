// One column on x86, straight from packed codes.
// The including file has chosen its target and defined
//   block_lanes<type>::vector: the exact sums of a block's parts
//   four_rows<type>(lanes, blocks, column, block): a block of each of four rows of a TQ type times the activations
//   add_lanes(lanes): the sums of eight such vectors' lanes
//   what x86_k_rows.h wants
//   add_q2_0_blocks(totals, rows, n_blocks, column, block): totals with VECTOR_BLOCKS blocks, or fewer, of each of four rows
#pragma once
#include "quantize.h"
#include "x86_k_rows.h"
#include "x86_vectors.h"

#ifdef SUMS_OF_PAIRS  // bytes up to 255 would overflow
#define HAS_Q8_0 false
#else
#define HAS_Q8_0 true
#endif

namespace {

// Bytes from -128 on become bytes from 0 on.
ALWAYS_INLINE __m256i q8_0_lanes(const char * block, const int8_t * values) {
    const __m256i codes = _mm256_xor_si256(load(block + 2), _mm256_set1_epi8(-128));
    return accumulate(_mm256_setzero_si256(), codes, load(values));
}

// Two blocks of each row at a time
template <int TYPE>
ALWAYS_INLINE __m128 multiply_four_rows(const char * rows[4], int64_t n_blocks, const column_parts & column) {
    constexpr int stride = TYPE == TQ2_0 ? 66 : TYPE == TQ1_0 ? 54 : 34, scale_at = TYPE == Q8_0 ? 0 : stride - 2;
    constexpr int offset = TYPE == Q8_0 ? 128 : 1;  // lanes count codes as if it were added
    __m128 totals = _mm_setzero_ps();
    for (int64_t block = 0; block < n_blocks; block += 2) {
        typename block_lanes<TYPE>::vector lanes[8];
        __m128 scales[2];
        UNROLL for (int i = 0; i < 2; i++) {
            if (block + i >= n_blocks) {
                UNROLL for (int row = 0; row < 4; row++)
                    lanes[4 * i + row] = typename block_lanes<TYPE>::vector{};
                scales[i] = _mm_setzero_ps();
            } else {
                if constexpr (TYPE == Q8_0)
                    UNROLL for (int row = 0; row < 4; row++)
                        lanes[4 * i + row] = q8_0_lanes(rows[row], column.values + 32 * (block + i));
                else
                    four_rows<TYPE>(lanes + 4 * i, rows, column, block + i);
                scales[i] = halves_of_four(rows, scale_at);
            }
            UNROLL for (int row = 0; row < 4; row++)
                rows[row] += stride;
        }
        const __m256i exact = add_lanes(lanes);
        UNROLL for (int i = 0; i < 2; i++) {
            const __m128i of_block = i ? _mm256_extracti128_si256(exact, 1) : _mm256_castsi256_si128(exact);
            const __m128i codes_sums = _mm_sub_epi32(of_block, _mm_set1_epi32(offset * column.sums[block + i]));
            totals = add_block(totals, codes_sums, column.scales[block + i], scales[i]);
        }
    }
    return totals;
}

// VECTOR_BLOCKS blocks of each row at a time
ALWAYS_INLINE __m128 multiply_four_q2_0_rows(const char * rows[4], int64_t n_blocks, const column_parts & column) {
    __m128 totals = _mm_setzero_ps();
    int64_t block = 0;
    for (; block + VECTOR_BLOCKS <= n_blocks; block += VECTOR_BLOCKS) {
        totals = add_q2_0_blocks(totals, rows, VECTOR_BLOCKS, column, block);
        UNROLL for (int row = 0; row < 4; row++)
            rows[row] += VECTOR_BLOCKS * 18;
    }
    return block < n_blocks ? add_q2_0_blocks(totals, rows, (int) (n_blocks - block), column, block) : totals;
}

// Four rows at a time: they share loads of activations, and no sums need to be transposed. They lie a quarter of all rows apart,
// so each is a stream in the order of memory, which processors prefetch by themselves; where rows are neighbours, they don't.
template <int TYPE>
void multiply_in_quarters(const weight_format & format, const char * weights, size_t row_bytes, int n_rows, int64_t n_inputs,
                      const column_parts & column, float * results) {
    const int64_t n_blocks = n_inputs / format.block_values;
    const int quarter = (n_rows + 3) / 4;
    for (int first = 0; first < quarter; first++) {
        const char * rows[4];
        UNROLL for (int i = 0; i < 4; i++) {
            const int row = first + i * quarter;
            rows[i] = weights + (row < n_rows ? row : n_rows - 1) * row_bytes;
        }
        __m128 totals;
        if constexpr (TYPE == Q2_0)
            totals = multiply_four_q2_0_rows(rows, n_blocks, column);
        else if constexpr (TYPE == Q2_K)
            totals = multiply_four_q2_k_rows(rows, n_blocks, column);
        else
            totals = multiply_four_rows<TYPE>(rows, n_blocks, column);
        float lanes[4];
        _mm_storeu_ps(lanes, totals);
        UNROLL for (int i = 0; i < 4; i++)
            if (first + i * quarter < n_rows)
                results[first + i * quarter] = lanes[i];
    }
}

void multiply_rows(const weight_format & format, const char * weights, size_t row_bytes, int n_rows, int64_t n_inputs,
                   char * place, float * results) {
    auto multiply = format.type == TQ2_0   ? multiply_in_quarters<TQ2_0>
                    : format.type == TQ1_0 ? multiply_in_quarters<TQ1_0>
                    : format.type == Q6_K  ? multiply_q6_k_rows
                    : format.type == Q2_K  ? multiply_in_quarters<Q2_K>
                                           : multiply_in_quarters<Q2_0>;
    if constexpr (HAS_Q8_0)
        if (format.type == Q8_0)
            multiply = multiply_in_quarters<Q8_0>;
    multiply(format, weights, row_bytes, n_rows, n_inputs, parts_of_column(place, format, n_inputs), results);
}

}  // namespace
