// One column on x86: rows of packed codes, read once and in the order of memory, which the prefetcher follows.
// The including file has chosen its target and defined
//   ROWS_AT_ONCE
//   eight_blocks<type, rows>(weights, n_blocks, column, block, sums, scales), where weights, sums and scales are of each row
#pragma once
#include "quantize.h"
#include "x86_vectors.h"

namespace {

constexpr int PREFETCH_BYTES = 4096;

// Sum eight rows' blocks in order, one row in each lane.
void sum_blocks(const float * sums, const float * scales, int64_t padded_blocks, int n_rows, float * results) {
    __m256 total = _mm256_setzero_ps();
    for (int64_t block = 0; block < padded_blocks; block += 8) {
        __m256 s[8], d[8];
        UNROLL for (int i = 0; i < 8; i++) {
            s[i] = _mm256_loadu_ps(sums + i * padded_blocks + block);
            d[i] = _mm256_loadu_ps(scales + i * padded_blocks + block);
        }
        transpose_8x8(s);
        transpose_8x8(d);
        UNROLL for (int i = 0; i < 8; i++)
            total = _mm256_fmadd_ps(s[i], d[i], total);
    }
    float lanes[8];
    _mm256_storeu_ps(lanes, total);
    memcpy(results, lanes, n_rows * sizeof(float));
}

// Some rows at once, so that they share loads of activations
template <int TYPE, int ROWS>
ALWAYS_INLINE void sums_of_rows(const char * weights, size_t row_bytes, int64_t n_blocks, const column_parts & column,
                                float * sums, float * scales) {
    constexpr int bytes_of_eight = 8 * (TYPE == Q2_0 ? 18 : TYPE == TQ2_0 ? 66 : 54);
    const int64_t padded_blocks = (n_blocks + 7) / 8 * 8;
    const char * eight[ROWS], * ahead = weights + PREFETCH_BYTES;
    float * sums_of_row[ROWS], * scales_of_row[ROWS];
    UNROLL for (int row = 0; row < ROWS; row++) {
        eight[row] = weights + row * row_bytes;
        sums_of_row[row] = sums + row * padded_blocks;
        scales_of_row[row] = scales + row * padded_blocks;
    }
    int64_t block = 0;
    for (; block + 8 <= n_blocks; block += 8, ahead += ROWS * bytes_of_eight) {
        UNROLL for (int i = 0; i < ROWS * bytes_of_eight; i += 64)
            _mm_prefetch(ahead + i, _MM_HINT_T0);
        eight_blocks<TYPE, ROWS>(eight, 8, column, block, sums_of_row, scales_of_row);
        UNROLL for (int row = 0; row < ROWS; row++) {
            eight[row] += bytes_of_eight;
            sums_of_row[row] += 8;
            scales_of_row[row] += 8;
        }
    }
    if (block < n_blocks)
        eight_blocks<TYPE, ROWS>(eight, (int) (n_blocks - block), column, block, sums_of_row, scales_of_row);
}

template <int TYPE>
void multiply_rows_of_type(const weight_format & format, const char * weights, size_t row_bytes, int n_rows,
                           int64_t n_inputs, char * place, float * space, float * results) {
    const column_parts column = parts_of_column(place, format, n_inputs);
    const int64_t n_blocks = n_inputs / format.block_values, padded_blocks = (n_blocks + 7) / 8 * 8;
    float * scales = space + ROWS_TOGETHER * padded_blocks;
    int row = 0;
    for (; row + ROWS_AT_ONCE <= n_rows; row += ROWS_AT_ONCE)
        sums_of_rows<TYPE, ROWS_AT_ONCE>(weights + row * row_bytes, row_bytes, n_blocks, column, space + row * padded_blocks,
                                         scales + row * padded_blocks);
    for (; row < n_rows; row++)
        sums_of_rows<TYPE, 1>(weights + row * row_bytes, row_bytes, n_blocks, column, space + row * padded_blocks,
                              scales + row * padded_blocks);
    sum_blocks(space, scales, padded_blocks, n_rows, results);
}

void multiply_rows(const weight_format & format, const char * weights, size_t row_bytes, int n_rows, int64_t n_inputs,
                   char * column, float * space, float * results) {
    (format.type == TQ2_0   ? multiply_rows_of_type<TQ2_0>
     : format.type == TQ1_0 ? multiply_rows_of_type<TQ1_0>
                            : multiply_rows_of_type<Q2_0>)(format, weights, row_bytes, n_rows, n_inputs, column, space,
                                                           results);
}

}  // namespace
