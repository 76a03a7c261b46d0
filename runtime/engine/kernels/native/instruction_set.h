// What an instruction set brings to products.cpp. All of them add the same numbers in the same order:
//   block = sum over the block's groups g, in order, of float(sum of codes times 8-bit activations, exact) * scale of g
//   result = sum over blocks, in order, of block * the block's own scale
// so results don't depend on how many columns there are, on threads or on the instruction set.
#pragma once
#include "products.h"

enum { F16 = 1, Q8_0 = 8, Q2_K = 10, Q6_K = 14, TQ1_0 = 34, TQ2_0 = 35, Q2_0 = 42 };

// A block has one F16 scale (F16 has none); a group of activations shares an F32 scale. 256 values are one group in TQ types, since stock
// llama.cpp scales those by 256 and Q2_0 by 32.
struct weight_format {
    int type;
    int block_values, block_bytes, scale_offset, group_values;
    int group_sums;  // of 32 bits, of a group's activations in a panel of columns
};

namespace {  // each instruction set's file compiles its own copy of the functions

// Activations of one column, as multiply_rows reads them.
struct column_parts {
    int8_t  * values;   // in an order of the instruction set's, padded with zeros
    int32_t * sums;     // of each group's values; padded to GROUPS_PADDING
    float   * scales;   // likewise
};

constexpr int GROUPS_PADDING = 16;

inline size_t round_up(size_t number, size_t multiple) {
    return (number + multiple - 1) / multiple * multiple;
}

inline size_t column_values_bytes(int64_t n_inputs) {  // up to 512 bytes for 256 values
    return round_up(n_inputs, 512) * 2;
}

inline size_t column_groups(const weight_format & format, int64_t n_inputs) {
    return round_up(n_inputs / format.group_values, GROUPS_PADDING);
}

inline size_t column_bytes(const weight_format & format, int64_t n_inputs) {
    return round_up(column_values_bytes(n_inputs) + 8 * column_groups(format, n_inputs), 64);
}

inline column_parts parts_of_column(char * column, const weight_format & format, int64_t n_inputs) {
    char * sums = column + column_values_bytes(n_inputs), * scales = sums + 4 * column_groups(format, n_inputs);
    return {(int8_t *) column, (int32_t *) sums, (float *) scales};
}

// A panel of columns holds for each group: values [group_values / w][panel_columns][w], w being 4 or, on Arm's i8mm, 8; then
// [group_sums][panel_columns] of what sums start with, or for Q2_K of sums, 32 bits; then each column's F32 scale.
inline size_t column_panel_bytes(const weight_format & format, int64_t n_inputs, int panel_columns) {
    return n_inputs / format.group_values * panel_columns * (format.group_values + 4 * format.group_sums + 4);
}

// A panel of rows holds unpacked codes [n_values / w][panel_rows][w], then F32 scales [n_blocks][panel_rows].
inline size_t row_panel_bytes(const weight_format & format, int64_t n_values, int panel_rows) {
    return n_values * panel_rows + n_values / format.block_values * panel_rows * 4;
}

}  // namespace

// Rows of a work item whose 2048 values are half of a small L2 cache, 256 KB
constexpr int SMALL_ITEM = 64;

// Panels of columns for multiply_few() have this width.
constexpr int FEW_COLUMNS = 8;

struct instruction_set {
    const char * name;
    int panel_rows, panel_columns;
    int rows_of_item;  // a multiple of panel_rows; what of them is unpacked at a time should stay in an L2 cache
    // Up to so many columns are computed from packed codes; for more it pays to unpack rows. Zero without multiply_few.
    int most_few_columns;
    bool has_q8_0;  // by multiply_rows and, from two columns on, by multiply_few, as Q6_K and Q2_K
    // One column's activations in 8 bits, for multiply_rows
    void (*quantize_column)(const weight_format & format, const float * activations, int64_t n_inputs, char * column);
    // One column's results of some rows
    void (*multiply_rows)(const weight_format & format, const char * weights, size_t row_bytes, int n_rows,
                          int64_t n_inputs, char * column, float * results);
    // n_columns <= panel_columns columns in 8 bits, for multiply_panels
    void (*quantize_panel)(const weight_format & format, const char * activations, size_t activation_bytes,
                           int n_columns, int64_t n_inputs, char * panel);
    // n_values of n_rows <= panel_rows rows; the rows that are missing hold any codes
    void (*unpack_panel)(const weight_format & format, const char * weights, size_t row_bytes, int n_rows,
                         int64_t n_values, char * panel);
    // Add a panel of rows times n_columns of a panel of columns to panel_rows results for each column, or start them
    void (*multiply_panels)(const weight_format & format, const char * row_panel, const char * column_panel,
                            int n_columns, int64_t n_values, bool start, float * results, size_t result_bytes);
    // As quantize_panel, for multiply_few, 1 <= n_columns <= FEW_COLUMNS; null where an instruction set doesn't have it
    void (*quantize_few)(const weight_format & format, const char * activations, size_t activation_bytes, int n_columns,
                         int64_t n_inputs, char * panel);
    // The results of some rows straight from packed codes, for n_columns in such panels, one behind the other, of `width` each
    void (*multiply_few)(const weight_format & format, const char * weights, size_t row_bytes, int n_rows, int64_t n_inputs,
                         const char * panels, int width, int n_columns, float * results, size_t result_bytes);
    // The results of some rows of F16 and some columns of F32; null where an instruction set doesn't have it
    void (*multiply_halves)(const char * weights, size_t row_bytes, int n_rows, int64_t n_inputs, const char * activations,
                            size_t activation_bytes, int n_columns, float * results, size_t result_bytes);
};

// Null where this build or this processor doesn't have it.
const instruction_set * avx2(void);
const instruction_set * avx_vnni(void);
const instruction_set * avx512_vnni(void);
const instruction_set * avx512_vbmi(void);
const instruction_set * avx512_amx(void);
const instruction_set * neon_dotprod(void);
const instruction_set * neon_i8mm(void);
