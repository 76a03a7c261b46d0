// Many columns on Arm: rows unpacked into panels, and tiles of PANEL_ROWS rows and PANEL_COLUMNS columns. The including file
// has defined both, WORD_BYTES and multiply_group().
#pragma once
#include "neon_rows.h"

namespace {

ALWAYS_INLINE void store_words(uint8_t * codes, int first_value, uint8x16_t vector) {
    uint8_t bytes[16];
    vst1q_u8(bytes, vector);
    for (int i = 0; i < 16; i += WORD_BYTES)
        memcpy(codes + (first_value + i) * PANEL_ROWS, bytes + i, WORD_BYTES);
}

ALWAYS_INLINE void unpack_tq2_0(const uint8_t * block, uint8_t * codes) {
    for (int i = 0; i < 64; i += 16) {
        uint8x16_t bytes = vld1q_u8(block + i);
        for (int position = 0; position < 4; position++, bytes = vshrq_n_u8(bytes, 2))
            store_words(codes, i / 32 * 128 + i % 32 + 32 * position, vandq_u8(bytes, vdupq_n_u8(3)));
    }
}

ALWAYS_INLINE void unpack_tq1_0(const uint8_t * block, uint8_t * codes) {
    for (int i = 0; i < 48; i += 16) {
        uint8x16_t bytes = vld1q_u8(block + i);
        const int first = i < 32 ? i : 160, distance = i < 32 ? 32 : 16;
        for (int digit = 0; digit < 5; digit++, bytes = times_3(bytes))
            store_words(codes, first + digit * distance, first_digit(bytes));
    }
    store_words(codes, 240, first_digit(last_bytes(block)));
}

// Four values for each 32 bits and bit position, in the order of transpose_16()
ALWAYS_INLINE void unpack_q2_0(const uint8_t * packed, uint8_t * codes) {
    for (int i = 0; i < 16; i += 4) {
        uint32_t four;
        memcpy(&four, packed + i, 4);
        const int32_t shifts[4] = {0, -2, -4, -6};
        const uint32x4_t words = vshlq_u32(vdupq_n_u32(four), vld1q_s32(shifts));
        store_words(codes, 4 * i, vandq_u8(vreinterpretq_u8_u32(words), vdupq_n_u8(3)));
    }
}

void unpack_panel(const weight_format & format, const char * weights, size_t row_bytes, int n_rows, int64_t n_values,
                  char * panel) {
    float * scales = (float *) (panel + n_values * PANEL_ROWS);
    for (int row = 0; row < n_rows; row++)
        for (int64_t block = 0; block < n_values / format.block_values; block++) {
            const char * stored = weights + row * row_bytes + block * format.block_bytes;
            uint8_t * codes = (uint8_t *) panel + block * format.block_values * PANEL_ROWS + WORD_BYTES * row;
            if (format.type == TQ2_0)
                unpack_tq2_0((const uint8_t *) stored, codes);
            else if (format.type == TQ1_0)
                unpack_tq1_0((const uint8_t *) stored, codes);
            else
                unpack_q2_0((const uint8_t *) stored + 2, codes);
            scales[block * PANEL_ROWS + row] = scale_at(stored + format.scale_offset);
        }
}

void multiply_panels(const weight_format & format, const char * row_panel, const char * columns, int n_columns,
                     int64_t n_values, bool start, float * results, size_t result_bytes) {
    const int group_values = format.group_values;
    const uint8_t * codes = (const uint8_t *) row_panel;
    const float * scales = (const float *) (row_panel + n_values * PANEL_ROWS);
    float totals[PANEL_COLUMNS][PANEL_ROWS] = {{0}};
    if (!start)
        for (int column = 0; column < n_columns; column++)
            memcpy(totals[column], (const char *) results + column * result_bytes, sizeof totals[column]);
    for (int64_t value = 0; value < n_values; scales += PANEL_ROWS) {
        float sums[PANEL_COLUMNS][PANEL_ROWS];
        for (int i = 0; i < format.block_values; i += group_values) {
            int32_t exact[PANEL_COLUMNS][PANEL_ROWS];
            multiply_group(codes, columns, group_values, exact);
            const float * column_scales = (const float *) (columns + (group_values + 4) * PANEL_COLUMNS);
            for (int column = 0; column < PANEL_COLUMNS; column++)
                for (int row = 0; row < PANEL_ROWS; row++)
                    sums[column][row] = i == 0 ? (float) exact[column][row] * column_scales[column]
                                               : fmaf((float) exact[column][row], column_scales[column], sums[column][row]);
            value += group_values;
            codes += group_values * PANEL_ROWS;
            columns += (group_values + 8) * PANEL_COLUMNS;
        }
        for (int column = 0; column < PANEL_COLUMNS; column++)
            for (int row = 0; row < PANEL_ROWS; row++)
                totals[column][row] = fmaf(sums[column][row], scales[row], totals[column][row]);
    }
    for (int column = 0; column < n_columns; column++)
        memcpy((char *) results + column * result_bytes, totals[column], sizeof totals[column]);
}

}  // namespace
