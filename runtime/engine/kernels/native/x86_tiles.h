// Many columns on x86: tiles of two vectors of rows, one row in each 32-bit lane, and up to PANEL_COLUMNS columns.
// The including file has defined PANEL_ROWS, PANEL_COLUMNS, GROUPS_AT_ONCE (2 with 32 registers, else 1), and for its vectors
//   tile_integers, tile_floats
//   broadcast(int32_t), broadcast(float), load_floats, store_floats, multiply(a, b), multiply_add(a, b, c): a * b + c
//   accumulate_tile(sums, codes, activations), floats_of(sums)
#pragma once
#include "x86_panels.h"

namespace {

// Four values of each row and column
template <int COLUMNS>
ALWAYS_INLINE void step(const uint8_t * codes, const char * values, tile_integers sums[2][COLUMNS]) {
    tile_integers first, second;
    memcpy(&first, codes, sizeof first);
    memcpy(&second, codes + sizeof first, sizeof second);
    UNROLL for (int column = 0; column < COLUMNS; column++) {
        int32_t four;
        memcpy(&four, values + 4 * column, 4);
        const tile_integers value = broadcast(four);
        sums[0][column] = accumulate_tile(sums[0][column], first, value);
        sums[1][column] = accumulate_tile(sums[1][column], second, value);
    }
}

template <int COLUMNS>
ALWAYS_INLINE void start_sums(const char * starts, tile_integers sums[2][COLUMNS]) {
    UNROLL for (int column = 0; column < COLUMNS; column++) {
        int32_t start;
        memcpy(&start, starts + 4 * column, 4);
        sums[0][column] = sums[1][column] = broadcast(start);
    }
}

template <int COLUMNS>
ALWAYS_INLINE void load_totals(bool start, const float * results, size_t result_bytes, tile_floats totals[2][COLUMNS]) {
    UNROLL for (int column = 0; column < COLUMNS; column++)
        UNROLL for (int half = 0; half < 2; half++) {
            const float * place = (const float *) ((const char *) results + column * result_bytes) + half * LANES;
            totals[half][column] = start ? broadcast(0.0f) : load_floats(place);
        }
}

template <int COLUMNS>
ALWAYS_INLINE void store_totals(float * results, size_t result_bytes, const tile_floats totals[2][COLUMNS]) {
    UNROLL for (int column = 0; column < COLUMNS; column++)
        UNROLL for (int half = 0; half < 2; half++)
            store_floats((float *) ((char *) results + column * result_bytes) + half * LANES, totals[half][column]);
}

// TQ types: 256 values, then their exact sums as floats times both scales
template <int COLUMNS>
void multiply_tq_tile(const char * row_panel, const char * columns, int64_t n_values, bool start, float * results,
                      size_t result_bytes) {
    const uint8_t * codes = (const uint8_t *) row_panel;
    const float * scales = (const float *) (row_panel + n_values * PANEL_ROWS);
    tile_floats totals[2][COLUMNS];
    load_totals<COLUMNS>(start, results, result_bytes, totals);
    for (int64_t value = 0; value < n_values; value += 256, scales += PANEL_ROWS) {
        tile_integers exact[2][COLUMNS];
        start_sums<COLUMNS>(columns + 256 * PANEL_COLUMNS, exact);
        UNROLL_4 for (int i = 0; i < 64; i++)
            step<COLUMNS>(codes + i * 4 * PANEL_ROWS, columns + i * 4 * PANEL_COLUMNS, exact);
        const float * column_scales = (const float *) (columns + 260 * PANEL_COLUMNS);
        UNROLL for (int half = 0; half < 2; half++) {
            const tile_floats row_scales = load_floats(scales + half * LANES);
            UNROLL for (int column = 0; column < COLUMNS; column++) {
                const tile_floats sum = multiply(floats_of(exact[half][column]), broadcast(column_scales[column]));
                totals[half][column] = multiply_add(sum, row_scales, totals[half][column]);
            }
        }
        codes += 256 * PANEL_ROWS;
        columns += 264 * PANEL_COLUMNS;
    }
    store_totals<COLUMNS>(results, result_bytes, totals);
}

// Q2_0. Where there are 32 registers, the two groups of a block are computed at once, and all that becomes of their sums
// stays in registers.
template <int COLUMNS>
void multiply_q2_0_tile(const char * row_panel, const char * columns, int64_t n_values, bool start, float * results,
                        size_t result_bytes) {
    constexpr size_t group_bytes = PANEL_COLUMNS * (32 + 8), group_codes = 32 * PANEL_ROWS;
    const uint8_t * codes = (const uint8_t *) row_panel;
    const float * scales = (const float *) (row_panel + n_values * PANEL_ROWS);
    tile_floats totals[2][COLUMNS];
    load_totals<COLUMNS>(start, results, result_bytes, totals);
    for (int64_t value = 0; value < n_values; value += 64, scales += PANEL_ROWS) {
        tile_integers first[2][COLUMNS], second[2][COLUMNS];
        start_sums<COLUMNS>(columns + 32 * PANEL_COLUMNS, first);
        start_sums<COLUMNS>(columns + 32 * PANEL_COLUMNS + group_bytes, second);
        UNROLL for (int i = 0; i < 8; i++) {
            step<COLUMNS>(codes + i * 4 * PANEL_ROWS, columns + i * 4 * PANEL_COLUMNS, first);
            if (GROUPS_AT_ONCE == 2)
                step<COLUMNS>(codes + i * 4 * PANEL_ROWS + group_codes, columns + i * 4 * PANEL_COLUMNS + group_bytes, second);
        }
        if (GROUPS_AT_ONCE == 1)
            UNROLL for (int i = 0; i < 8; i++)
                step<COLUMNS>(codes + i * 4 * PANEL_ROWS + group_codes, columns + i * 4 * PANEL_COLUMNS + group_bytes, second);
        const float * column_scales = (const float *) (columns + 36 * PANEL_COLUMNS);
        UNROLL for (int half = 0; half < 2; half++) {
            const tile_floats row_scales = load_floats(scales + half * LANES);
            UNROLL for (int column = 0; column < COLUMNS; column++) {
                tile_floats sum = multiply(floats_of(first[half][column]), broadcast(column_scales[column]));
                sum = multiply_add(floats_of(second[half][column]), broadcast(column_scales[column + group_bytes / 4]), sum);
                totals[half][column] = multiply_add(sum, row_scales, totals[half][column]);
            }
        }
        codes += 2 * group_codes;
        columns += 2 * group_bytes;
    }
    store_totals<COLUMNS>(results, result_bytes, totals);
}

template <int COLUMNS>
ALWAYS_INLINE void multiply_tq_columns(const char * row_panel, const char * columns, int n_columns, int64_t n_values,
                                       bool start, float * results, size_t result_bytes) {
    if constexpr (COLUMNS > 1)
        if (n_columns < COLUMNS)
            return multiply_tq_columns<COLUMNS - 1>(row_panel, columns, n_columns, n_values, start, results, result_bytes);
    multiply_tq_tile<COLUMNS>(row_panel, columns, n_values, start, results, result_bytes);
}

template <int COLUMNS>
ALWAYS_INLINE void multiply_q2_0_columns(const char * row_panel, const char * columns, int n_columns, int64_t n_values,
                                         bool start, float * results, size_t result_bytes) {
    if constexpr (COLUMNS > 1)
        if (n_columns < COLUMNS)
            return multiply_q2_0_columns<COLUMNS - 1>(row_panel, columns, n_columns, n_values, start, results, result_bytes);
    multiply_q2_0_tile<COLUMNS>(row_panel, columns, n_values, start, results, result_bytes);
}

void multiply_panels(const weight_format & format, const char * row_panel, const char * columns, int n_columns,
                     int64_t n_values, bool start, float * results, size_t result_bytes) {
    if (format.type != Q2_0)
        return multiply_tq_columns<PANEL_COLUMNS>(row_panel, columns, n_columns, n_values, start, results, result_bytes);
    constexpr int some = PANEL_COLUMNS / GROUPS_AT_ONCE;
    for (int column = 0; column < n_columns; column += some)
        multiply_q2_0_columns<some>(row_panel, columns + 4 * column, n_columns - column, n_values, start,
                                    (float *) ((char *) results + column * result_bytes), result_bytes);
}

}  // namespace
