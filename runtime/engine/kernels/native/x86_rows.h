// One column on x86, straight from packed codes.
// The including file has chosen its target and defined
//   block_lanes: a vector of the exact sums of a block's parts
//   four_rows<type>(lanes, blocks, column, block): a block of each of four rows of a TQ type times the activations
//   add_lanes(lanes): the sums of eight vectors' lanes
//   eight_blocks<rows>(weights, n_blocks, column, block, sums, scales): blocks of Q2_0; weights, sums and scales are of each row
//   ROWS_AT_ONCE: of Q2_0
#pragma once
#include "quantize.h"
#include "x86_vectors.h"

namespace {

constexpr int PREFETCH_BYTES = 2048;

// Four rows of a TQ type side by side, two blocks of each at a time: they share loads of activations, and no sums need to be
// transposed. Processors don't foresee what is read that way. So memory is prefetched in its order, so far ahead that the
// beginnings of the next four rows come in time. Where there are fewer rows, the last one is repeated.
template <int TYPE>
void multiply_four_tq_rows(const char * weights, size_t row_bytes, int n_rows, int64_t n_blocks, const column_parts & column,
                           float * results) {
    constexpr int stride = TYPE == TQ2_0 ? 66 : 54, scale_at = stride - 2;
    const char * ahead = weights + 3 * row_bytes + PREFETCH_BYTES;
    const char * rows[4];
    UNROLL for (int row = 0; row < 4; row++)
        rows[row] = weights + (row < n_rows ? row : n_rows - 1) * row_bytes;
    __m128 totals = _mm_setzero_ps();
    for (int64_t block = 0; block < n_blocks; block += 2, ahead += 8 * stride) {
        UNROLL for (int i = 0; i < 8 * stride; i += 64)
            _mm_prefetch(ahead + i, _MM_HINT_T0);
        block_lanes lanes[8];
        __m128i halves[2] = {_mm_setzero_si128(), _mm_setzero_si128()};
        UNROLL for (int i = 0; i < 2; i++) {
            memset(lanes + 4 * i, 0, 4 * sizeof(block_lanes));
            if (block + i < n_blocks) {
                four_rows<TYPE>(lanes + 4 * i, rows, column, block + i);
                halves[i] = _mm_insert_epi16(halves[i], half_at(rows[0] + scale_at), 0);
                halves[i] = _mm_insert_epi16(halves[i], half_at(rows[1] + scale_at), 1);
                halves[i] = _mm_insert_epi16(halves[i], half_at(rows[2] + scale_at), 2);
                halves[i] = _mm_insert_epi16(halves[i], half_at(rows[3] + scale_at), 3);
            }
            UNROLL for (int row = 0; row < 4; row++)
                rows[row] += stride;
        }
        const __m256i exact = add_lanes(lanes);
        UNROLL for (int i = 0; i < 2; i++) {
            const __m128i of_block = i ? _mm256_extracti128_si256(exact, 1) : _mm256_castsi256_si128(exact);
            const __m128 floats = _mm_cvtepi32_ps(_mm_sub_epi32(of_block, _mm_set1_epi32(column.sums[block + i])));
            const __m128 sums = _mm_mul_ps(floats, _mm_set1_ps(column.scales[block + i]));
            totals = _mm_fmadd_ps(sums, _mm_cvtph_ps(halves[i]), totals);
        }
    }
    float lanes[4];
    _mm_storeu_ps(lanes, totals);
    memcpy(results, lanes, (n_rows < 4 ? n_rows : 4) * sizeof(float));
}

template <int TYPE>
void multiply_tq_rows(const weight_format & format, const char * weights, size_t row_bytes, int n_rows, int64_t n_inputs,
                      char * place, float *, float * results) {
    const column_parts column = parts_of_column(place, format, n_inputs);
    for (int row = 0; row < n_rows; row += 4)
        multiply_four_tq_rows<TYPE>(weights + row * row_bytes, row_bytes, n_rows - row, n_inputs / 256, column, results + row);
}

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

// Some rows of Q2_0 at once, so that they share loads of activations: sums[row][block], scales[row][block]
template <int ROWS>
ALWAYS_INLINE void sums_of_rows(const char * weights, size_t row_bytes, int64_t n_blocks, const column_parts & column,
                                float * sums, float * scales) {
    const int64_t padded_blocks = (n_blocks + 7) / 8 * 8;
    const char * eight[ROWS], * ahead = weights + (ROWS - 1) * row_bytes + PREFETCH_BYTES;
    float * sums_of_row[ROWS], * scales_of_row[ROWS];
    UNROLL for (int row = 0; row < ROWS; row++) {
        eight[row] = weights + row * row_bytes;
        sums_of_row[row] = sums + row * padded_blocks;
        scales_of_row[row] = scales + row * padded_blocks;
    }
    int64_t block = 0;
    for (; block + 8 <= n_blocks; block += 8, ahead += ROWS * 144) {
        UNROLL for (int i = 0; i < ROWS * 144; i += 64)
            _mm_prefetch(ahead + i, _MM_HINT_T0);
        eight_blocks<ROWS>(eight, 8, column, block, sums_of_row, scales_of_row);
        UNROLL for (int row = 0; row < ROWS; row++) {
            eight[row] += 144;
            sums_of_row[row] += 8;
            scales_of_row[row] += 8;
        }
    }
    if (block < n_blocks)
        eight_blocks<ROWS>(eight, (int) (n_blocks - block), column, block, sums_of_row, scales_of_row);
}

void multiply_q2_0_rows(const weight_format & format, const char * weights, size_t row_bytes, int n_rows, int64_t n_inputs,
                        char * place, float * space, float * results) {
    const column_parts column = parts_of_column(place, format, n_inputs);
    const int64_t n_blocks = n_inputs / 64, padded_blocks = (n_blocks + 7) / 8 * 8;
    float * scales = space + ROWS_TOGETHER * padded_blocks;
    int row = 0;
    for (; row + ROWS_AT_ONCE <= n_rows; row += ROWS_AT_ONCE)
        sums_of_rows<ROWS_AT_ONCE>(weights + row * row_bytes, row_bytes, n_blocks, column, space + row * padded_blocks,
                                   scales + row * padded_blocks);
    for (; row < n_rows; row++)
        sums_of_rows<1>(weights + row * row_bytes, row_bytes, n_blocks, column, space + row * padded_blocks,
                        scales + row * padded_blocks);
    sum_blocks(space, scales, padded_blocks, n_rows, results);
}

void multiply_rows(const weight_format & format, const char * weights, size_t row_bytes, int n_rows, int64_t n_inputs,
                   char * column, float * space, float * results) {
    (format.type == TQ2_0   ? multiply_tq_rows<TQ2_0>
     : format.type == TQ1_0 ? multiply_tq_rows<TQ1_0>
                            : multiply_q2_0_rows)(format, weights, row_bytes, n_rows, n_inputs, column, space, results);
}

}  // namespace
