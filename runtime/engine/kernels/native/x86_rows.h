// One column on x86: rows of packed codes, read once and in the order of memory, which the prefetcher follows.
// The including file has chosen its target and defined
//   eight_blocks<type>(weights, n_blocks, column, block, sums, scales)
#pragma once
#include "quantize.h"
#include "x86_vectors.h"

namespace {

constexpr int PREFETCH_BYTES = 2048;

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

template <int TYPE>
void multiply_rows_of_type(const weight_format & format, const char * weights, size_t row_bytes, int n_rows,
                           int64_t n_inputs, char * place, float * space, float * results) {
    const column_parts column = parts_of_column(place, format, n_inputs);
    const int64_t n_blocks = n_inputs / format.block_values, padded_blocks = (n_blocks + 7) / 8 * 8;
    float * scales = space + ROWS_TOGETHER * padded_blocks;
    for (int row = 0; row < n_rows; row++) {
        const char * eight = weights + row * row_bytes;
        float * sums_of_row = space + row * padded_blocks, * scales_of_row = scales + row * padded_blocks;
        int64_t block = 0;
        for (; block + 8 <= n_blocks; block += 8, eight += 8 * format.block_bytes) {
            for (int i = 0; i < 8 * format.block_bytes; i += 64)
                _mm_prefetch(eight + PREFETCH_BYTES + i, _MM_HINT_T0);
            eight_blocks<TYPE>(eight, 8, column, block, sums_of_row + block, scales_of_row + block);
        }
        if (block < n_blocks)
            eight_blocks<TYPE>(eight, (int) (n_blocks - block), column, block, sums_of_row + block, scales_of_row + block);
    }
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
