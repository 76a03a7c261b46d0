// Weights in F16, times columns of F32 as they are. Each result is a sum in 16 lanes, in the order of values, so it doesn't
// depend on how many rows and columns are computed at once. The including file has included avx512_tile.h, which defines
//   HALVES_ROWS, HALVES_COLUMNS: the sums that registers hold
//   sixteen: 16 floats; zero_16(), load_16(floats), widen_16(halves), multiply_add_16(a, b, c): a * b + c,
//   add_halves_of_16(lanes): lanes that are 8 apart
#pragma once

namespace {

// Lanes that are 8, 4, 2 and 1 apart
ALWAYS_INLINE float sum_of_16(sixteen lanes) {
    const __m256 eight = add_halves_of_16(lanes);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

// The rows after these are prefetched into the L2 cache, as in x86_vectors.h. A single row isn't: processors prefetch a stream by
// themselves.
template <int ROWS, int COLUMNS>
void multiply_halves_tile(const char * weights, size_t row_bytes, int64_t n_inputs, const char * activations,
                          size_t activation_bytes, float * results, size_t result_bytes) {
    sixteen sums[ROWS][COLUMNS];
    UNROLL for (int row = 0; row < ROWS; row++)
        UNROLL for (int column = 0; column < COLUMNS; column++)
            sums[row][column] = zero_16();
    const char * ahead = weights + ROWS * row_bytes;
    for (int64_t i = 0; i < n_inputs; i += 16) {
        if constexpr (ROWS > 1)
            UNROLL for (int line = 0; line < ROWS * 32; line += 64)
                _mm_prefetch(ahead + ROWS * 2 * i + line, _MM_HINT_T1);
        sixteen values[COLUMNS];
        UNROLL for (int column = 0; column < COLUMNS; column++)
            values[column] = load_16((const float *) (activations + column * activation_bytes) + i);
        UNROLL for (int row = 0; row < ROWS; row++) {
            const sixteen weight = widen_16(weights + row * row_bytes + 2 * i);
            UNROLL for (int column = 0; column < COLUMNS; column++)
                sums[row][column] = multiply_add_16(weight, values[column], sums[row][column]);
        }
    }
    UNROLL for (int row = 0; row < ROWS; row++)
        UNROLL for (int column = 0; column < COLUMNS; column++)
            *((float *) ((char *) results + column * result_bytes) + row) = sum_of_16(sums[row][column]);
}

template <int ROWS, int COLUMNS>
ALWAYS_INLINE void multiply_halves_columns(const char * weights, size_t row_bytes, int64_t n_inputs, const char * activations,
                                           size_t activation_bytes, int n_columns, float * results, size_t result_bytes) {
    if constexpr (COLUMNS > 1)
        if (n_columns < COLUMNS)
            return multiply_halves_columns<ROWS, COLUMNS - 1>(weights, row_bytes, n_inputs, activations, activation_bytes,
                                                              n_columns, results, result_bytes);
    multiply_halves_tile<ROWS, COLUMNS>(weights, row_bytes, n_inputs, activations, activation_bytes, results, result_bytes);
}

void multiply_halves(const char * weights, size_t row_bytes, int n_rows, int64_t n_inputs, const char * activations,
                     size_t activation_bytes, int n_columns, float * results, size_t result_bytes) {
    for (int row = 0; row < n_rows;) {
        const bool together = n_columns > 1 && row + HALVES_ROWS <= n_rows;
        for (int column = 0; column < n_columns;) {
            // Tiles of nearly the same width: eight columns are four and four, not six and two.
            const int n_tiles = (n_columns - column + HALVES_COLUMNS - 1) / HALVES_COLUMNS;
            const int width = (n_columns - column + n_tiles - 1) / n_tiles;
            (together ? multiply_halves_columns<HALVES_ROWS, HALVES_COLUMNS> : multiply_halves_columns<1, HALVES_COLUMNS>)(
                weights + row * row_bytes, row_bytes, n_inputs, activations + column * activation_bytes, activation_bytes, width,
                (float *) ((char *) results + column * result_bytes) + row, result_bytes);
            column += width;
        }
        row += together ? HALVES_ROWS : 1;
    }
}

}  // namespace
