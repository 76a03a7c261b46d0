// Many columns on x86: tiles of two vectors of rows, one row in each 32-bit lane, and up to PANEL_COLUMNS columns.
// The including file has defined PANEL_ROWS, PANEL_COLUMNS, and for its vectors
//   tile_integers, tile_floats
//   broadcast(int32_t), broadcast(float), load_floats, store_floats, multiply(a, b), multiply_add(a, b, c): a * b + c
//   accumulate_tile(sums, codes, activations), floats_of(sums)
#pragma once
#include "x86_panels.h"

namespace {

constexpr int LANES = PANEL_ROWS / 2;

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

// A group of activations times a tile's codes, as floats times the activations' scales: added to sums, or in their place.
template <int COLUMNS, bool ADD>
ALWAYS_INLINE void multiply_group(const uint8_t * codes, const char * group, int group_values, tile_floats sums[2][COLUMNS]) {
    const char * starts = group + group_values * PANEL_COLUMNS;
    float scales[COLUMNS];
    memcpy(scales, starts + 4 * PANEL_COLUMNS, sizeof scales);
    tile_integers exact[2][COLUMNS];
    UNROLL for (int column = 0; column < COLUMNS; column++) {
        int32_t start;
        memcpy(&start, starts + 4 * column, 4);
        exact[0][column] = exact[1][column] = broadcast(start);
    }
    UNROLL_4 for (int i = 0; i < group_values / 4; i++)
        step<COLUMNS>(codes + i * PANEL_ROWS * 4, group + i * PANEL_COLUMNS * 4, exact);
    UNROLL for (int column = 0; column < COLUMNS; column++)
        UNROLL for (int half = 0; half < 2; half++) {
            const tile_floats floats = floats_of(exact[half][column]), scale = broadcast(scales[column]);
            sums[half][column] = ADD ? multiply_add(floats, scale, sums[half][column]) : multiply(floats, scale);
        }
}

template <int COLUMNS, bool TWO_GROUPS>
void multiply_tile(const weight_format & format, const char * row_panel, const char * columns, int64_t n_values,
                   bool start, float * results, size_t result_bytes) {
    constexpr int group_values = TWO_GROUPS ? 32 : 256;
    constexpr size_t group_bytes = PANEL_COLUMNS * (group_values + 8);
    const uint8_t * codes = (const uint8_t *) row_panel;
    const float * scales = (const float *) (row_panel + n_values * PANEL_ROWS);
    tile_floats totals[2][COLUMNS];
    UNROLL for (int column = 0; column < COLUMNS; column++)
        UNROLL for (int half = 0; half < 2; half++) {
            const float * place = (const float *) ((const char *) results + column * result_bytes) + half * LANES;
            totals[half][column] = start ? broadcast(0.0f) : load_floats(place);
        }
    for (int64_t block = 0; block < n_values / format.block_values; block++, scales += PANEL_ROWS) {
        tile_floats sums[2][COLUMNS];
        multiply_group<COLUMNS, false>(codes, columns, group_values, sums);
        codes += group_values * PANEL_ROWS;
        columns += group_bytes;
        if (TWO_GROUPS) {
            multiply_group<COLUMNS, true>(codes, columns, group_values, sums);
            codes += group_values * PANEL_ROWS;
            columns += group_bytes;
        }
        UNROLL for (int half = 0; half < 2; half++) {
            const tile_floats scale = load_floats(scales + half * LANES);
            UNROLL for (int column = 0; column < COLUMNS; column++)
                totals[half][column] = multiply_add(sums[half][column], scale, totals[half][column]);
        }
    }
    UNROLL for (int column = 0; column < COLUMNS; column++)
        UNROLL for (int half = 0; half < 2; half++)
            store_floats((float *) ((char *) results + column * result_bytes) + half * LANES, totals[half][column]);
}

template <int COLUMNS>
void multiply_panels(const weight_format & format, const char * row_panel, const char * columns, int n_columns,
                     int64_t n_values, bool start, float * results, size_t result_bytes) {
    if constexpr (COLUMNS > 1)
        if (n_columns < COLUMNS)
            return multiply_panels<COLUMNS - 1>(format, row_panel, columns, n_columns, n_values, start, results, result_bytes);
    (format.type == Q2_0 ? multiply_tile<COLUMNS, true> : multiply_tile<COLUMNS, false>)(
        format, row_panel, columns, n_values, start, results, result_bytes);
}

}  // namespace
