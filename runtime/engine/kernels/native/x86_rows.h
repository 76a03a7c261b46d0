// One column on x86, straight from packed codes.
// The including file has chosen its target and defined
//   block_lanes<type>::vector: the exact sums of a block's parts
//   four_rows<type>(lanes, blocks, column, block): a block of each of four rows of a TQ type times the activations
//   add_lanes(lanes): the sums of eight vectors' lanes
//   add_q2_0_blocks(totals, rows, n_blocks, column, block): totals with VECTOR_BLOCKS blocks, or fewer, of each of four rows
#pragma once
#include "quantize.h"
#include "x86_vectors.h"

namespace {

constexpr int PREFETCH_BYTES = 4096;

// Four rows of a TQ type side by side, two blocks of each at a time: they share loads of activations, and no sums need to be
// transposed. Processors don't foresee what is read that way, but follow prefetching in the order of memory; to prefetch each
// row by itself takes twice the time. It is so far ahead that the beginnings of the next four rows come in time. Where there
// are fewer rows, the last one is repeated.
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
        typename block_lanes<TYPE>::vector lanes[8];
        __m128i halves[2] = {_mm_setzero_si128(), _mm_setzero_si128()};
        UNROLL for (int i = 0; i < 2; i++) {
            if (block + i >= n_blocks) {
                UNROLL for (int row = 0; row < 4; row++)
                    lanes[4 * i + row] = typename block_lanes<TYPE>::vector{};
            } else {
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
                      char * place, float * results) {
    const column_parts column = parts_of_column(place, format, n_inputs);
    for (int row = 0; row < n_rows; row += 4)
        multiply_four_tq_rows<TYPE>(weights + row * row_bytes, row_bytes, n_rows - row, n_inputs / 256, column, results + row);
}

// Four rows of Q2_0 side by side, a vector of VECTOR_BLOCKS blocks of each at a time
void multiply_four_q2_0_rows(const char * weights, size_t row_bytes, int n_rows, int64_t n_blocks, const column_parts & column,
                             float * results) {
    const char * ahead = weights + 3 * row_bytes + PREFETCH_BYTES;
    const char * rows[4];
    UNROLL for (int row = 0; row < 4; row++)
        rows[row] = weights + (row < n_rows ? row : n_rows - 1) * row_bytes;
    __m128 totals = _mm_setzero_ps();
    int64_t block = 0;
    for (; block + VECTOR_BLOCKS <= n_blocks; block += VECTOR_BLOCKS, ahead += 4 * VECTOR_BLOCKS * 18) {
        UNROLL for (int i = 0; i < 4 * VECTOR_BLOCKS * 18; i += 64)
            _mm_prefetch(ahead + i, _MM_HINT_T0);
        totals = add_q2_0_blocks(totals, rows, VECTOR_BLOCKS, column, block);
        UNROLL for (int row = 0; row < 4; row++)
            rows[row] += VECTOR_BLOCKS * 18;
    }
    if (block < n_blocks)
        totals = add_q2_0_blocks(totals, rows, (int) (n_blocks - block), column, block);
    float lanes[4];
    _mm_storeu_ps(lanes, totals);
    memcpy(results, lanes, (n_rows < 4 ? n_rows : 4) * sizeof(float));
}

void multiply_q2_0_rows(const weight_format & format, const char * weights, size_t row_bytes, int n_rows, int64_t n_inputs,
                        char * place, float * results) {
    const column_parts column = parts_of_column(place, format, n_inputs);
    for (int row = 0; row < n_rows; row += 4)
        multiply_four_q2_0_rows(weights + row * row_bytes, row_bytes, n_rows - row, n_inputs / 64, column, results + row);
}

}  // namespace

#include "x86_k_rows.h"

namespace {

void multiply_rows(const weight_format & format, const char * weights, size_t row_bytes, int n_rows, int64_t n_inputs,
                   char * column, float * results) {
    (format.type == TQ2_0   ? multiply_tq_rows<TQ2_0>
     : format.type == TQ1_0 ? multiply_tq_rows<TQ1_0>
     : format.type == Q6_K  ? multiply_k_rows<Q6_K>
     : format.type == Q2_K  ? multiply_k_rows<Q2_K>
                            : multiply_q2_0_rows)(format, weights, row_bytes, n_rows, n_inputs, column, results);
}

}  // namespace
