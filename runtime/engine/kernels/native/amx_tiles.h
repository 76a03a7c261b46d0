// Many columns with AMX: a tile holds exact sums of 16 columns, its rows, and of 16 rows of weights, its lanes. Four tiles share
// what is loaded: 32 columns and 32 rows.
//
// The including file has included avx512_tile.h and x86_panels.h, with SIGNED_CODES. Instructions are written out: intrinsics
// want compilers that know AMX, and GCC before 12.4 and 13.3 may drop the shapes that LDTILECFG reads: https://gcc.gnu.org/PR114098
#pragma once
#include "quantize.h"

namespace {

constexpr int TILE = 16, TILES_COLUMNS = 2 * TILE;
static_assert(PANEL_ROWS == 2 * TILE, "two tiles of rows");

// Tiles 0 to 3 are sums, of the first and last 16 columns by the first and last 16 rows; 4 and 5 are columns, 6 and 7 rows.
struct alignas(64) tile_shapes {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};

    explicit tile_shapes(int n_values) {
        for (int tile = 0; tile < 8; tile++) {
            row_bytes[tile] = (uint16_t) (tile == 4 || tile == 5 ? n_values : 4 * TILE);
            rows[tile] = (uint8_t) (tile >= 6 ? n_values / 4 : TILE);
        }
    }
};

#define TILE_LOAD(tile, place, row_bytes) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile : : "r"(place), "r"((int64_t) (row_bytes)) : "memory")
#define TILE_STORE(tile, place) \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" : : "r"(place), "r"((int64_t) (4 * PANEL_ROWS)) : "memory")
#define TILE_ZERO(tile) __asm__ volatile("tilezero %tmm" #tile)
#define TILE_MULTIPLY_ADD(sums, columns, rows) __asm__ volatile("tdpbssd %tmm" #rows ", %tmm" #columns ", %tmm" #sums)

// Sums of a group
typedef int32_t group_sums[TILES_COLUMNS][PANEL_ROWS];

ALWAYS_INLINE tile_floats floats_at(const int32_t * sums) {
    return floats_of(_mm512_load_si512(sums));
}

template <bool ALL_COLUMNS>
ALWAYS_INLINE void store_sums(group_sums & sums) {
    TILE_STORE(0, sums[0]);
    TILE_STORE(1, sums[0] + TILE);
    if (ALL_COLUMNS) {
        TILE_STORE(2, sums[TILE]);
        TILE_STORE(3, sums[TILE] + TILE);
    }
}

// Add N_VALUES, as many as a tile takes, of all rows and columns. With `before`, the sums so far are stored there first, and sums
// start anew: in each tile just before it is needed, so that the others are multiplied meanwhile.
template <int N_VALUES, bool ALL_COLUMNS>
ALWAYS_INLINE void add_values(const uint8_t * codes, const char * columns, group_sums * before = nullptr) {
    TILE_LOAD(4, columns, N_VALUES);
    TILE_LOAD(6, codes, 4 * PANEL_ROWS);
    if (before) {
        TILE_STORE(0, (*before)[0]);
        TILE_ZERO(0);
    }
    TILE_MULTIPLY_ADD(0, 4, 6);
    TILE_LOAD(7, codes + 4 * TILE, 4 * PANEL_ROWS);
    if (before) {
        TILE_STORE(1, (*before)[0] + TILE);
        TILE_ZERO(1);
    }
    TILE_MULTIPLY_ADD(1, 4, 7);
    if (!ALL_COLUMNS)
        return;
    TILE_LOAD(5, columns + TILE * N_VALUES, N_VALUES);
    if (before) {
        TILE_STORE(2, (*before)[TILE]);
        TILE_ZERO(2);
    }
    TILE_MULTIPLY_ADD(2, 5, 6);
    if (before) {
        TILE_STORE(3, (*before)[TILE] + TILE);
        TILE_ZERO(3);
    }
    TILE_MULTIPLY_ADD(3, 5, 7);
}

// TQ types, whose blocks are groups: scale and add the sums of some columns.
ALWAYS_INLINE void add_group_of_256(const group_sums & sums, const char * columns, const float * row_scales, int start,
                                    int n_columns, float totals[][PANEL_ROWS]) {
    const float * column_scales = (const float *) (columns + 260 * TILES_COLUMNS);
    const tile_floats scales[2] = {load_floats(row_scales), load_floats(row_scales + TILE)};
    UNROLL for (int column = start; column < start + n_columns; column++) {
        const tile_floats scale = broadcast(column_scales[column]);
        UNROLL for (int half = 0; half < 2; half++) {
            float * total = totals[column] + half * TILE;
            const tile_floats sum = multiply(floats_at(sums[column] + half * TILE), scale);
            store_floats(total, multiply_add(sum, scales[half], load_floats(total)));
        }
    }
}

// Q2_0, whose blocks are two groups
constexpr size_t GROUP_OF_32_BYTES = TILES_COLUMNS * (32 + 8);

ALWAYS_INLINE void add_groups_of_32(const group_sums sums[2], const char * columns, const float * row_scales, int n_columns,
                                    float totals[][PANEL_ROWS]) {
    const float * first_scales = (const float *) (columns + 36 * TILES_COLUMNS);
    const float * second_scales = first_scales + GROUP_OF_32_BYTES / 4;
    const tile_floats scales[2] = {load_floats(row_scales), load_floats(row_scales + TILE)};
    UNROLL_4 for (int column = 0; column < n_columns; column++) {
        const tile_floats first = broadcast(first_scales[column]), second = broadcast(second_scales[column]);
        UNROLL for (int half = 0; half < 2; half++) {
            float * total = totals[column] + half * TILE;
            tile_floats sum = multiply(floats_at(sums[0][column] + half * TILE), first);
            sum = multiply_add(floats_at(sums[1][column] + half * TILE), second, sum);
            store_floats(total, multiply_add(sum, scales[half], load_floats(total)));
        }
    }
}

// While the tiles of a block are computed, and the sums of the block before are stored, those of the block before that are scaled
// and added: what a tile has just stored can't be loaded for a while. The first block stores what nobody reads.
template <bool ALL_COLUMNS>
void multiply_tq_tiles(const uint8_t * codes, const float * scales, const char * columns, int64_t n_values,
                       float totals[][PANEL_ROWS]) {
    constexpr int some = (ALL_COLUMNS ? TILES_COLUMNS : TILE) / 4;
    constexpr size_t block_bytes = 264 * TILES_COLUMNS;
    alignas(64) group_sums sums[2];
    const int64_t n_blocks = n_values / 256;
    for (int64_t block = 0; block < n_blocks + 2; block++, columns += block_bytes, scales += PANEL_ROWS) {
        group_sums & before = sums[(block + 1) % 2];
        if (block == n_blocks)
            store_sums<ALL_COLUMNS>(before);
        UNROLL for (int part = 0; part < 4; part++) {
            if (block < n_blocks) {
                add_values<64, ALL_COLUMNS>(codes, columns + part * 64 * TILES_COLUMNS, part == 0 ? &before : nullptr);
                codes += 64 * PANEL_ROWS;
            }
            if (block >= 2)
                add_group_of_256(sums[block % 2], columns - 2 * block_bytes, scales - 2 * PANEL_ROWS, part * some, some, totals);
        }
    }
}

template <bool ALL_COLUMNS>
void multiply_q2_0_tiles(const uint8_t * codes, const float * scales, const char * columns, int64_t n_values,
                         float totals[][PANEL_ROWS]) {
    constexpr int n_columns = ALL_COLUMNS ? TILES_COLUMNS : TILE;
    constexpr size_t block_bytes = 2 * GROUP_OF_32_BYTES;
    alignas(64) group_sums sums[2][2];
    const int64_t n_blocks = n_values / 64;
    for (int64_t block = 0; block < n_blocks + 2; block++, columns += block_bytes, scales += PANEL_ROWS) {
        group_sums & before = sums[(block + 1) % 2][1];
        if (block < n_blocks)
            add_values<32, ALL_COLUMNS>(codes, columns, &before);
        else if (block == n_blocks)
            store_sums<ALL_COLUMNS>(before);
        if (block >= 2)
            add_groups_of_32(sums[block % 2], columns - 2 * block_bytes, scales - 2 * PANEL_ROWS, n_columns, totals);
        if (block < n_blocks)
            add_values<32, ALL_COLUMNS>(codes + 32 * PANEL_ROWS, columns + GROUP_OF_32_BYTES, &sums[block % 2][0]);
        codes += 64 * PANEL_ROWS;
    }
}

void multiply_tiles(const weight_format & format, const char * row_panel, const char * columns, int n_columns, int64_t n_values,
                    bool start, float * results, size_t result_bytes) {
    // Columns of results lie far from each other, often at places that share a set of a cache.
    alignas(64) float totals[TILES_COLUMNS][PANEL_ROWS];
    const auto results_of = [&](int column) { return (float *) ((char *) results + column * result_bytes); };
    if (start)
        memset(totals, 0, sizeof totals);
    else
        for (int column = 0; column < n_columns; column++)
            memcpy(totals[column], results_of(column), sizeof totals[column]);
    static const tile_shapes shapes_of_256{64}, shapes_of_32{32};
    __asm__ volatile("ldtilecfg %0" : : "m"(format.type == Q2_0 ? shapes_of_32 : shapes_of_256));
    const auto multiply_all = format.type == Q2_0 ? multiply_q2_0_tiles<true> : multiply_tq_tiles<true>;
    const auto multiply_half = format.type == Q2_0 ? multiply_q2_0_tiles<false> : multiply_tq_tiles<false>;
    (n_columns > TILE ? multiply_all : multiply_half)((const uint8_t *) row_panel,
                                                      (const float *) (row_panel + n_values * PANEL_ROWS), columns, n_values, totals);
    __asm__ volatile("tilerelease");
    for (int column = 0; column < n_columns; column++)
        memcpy(results_of(column), totals[column], sizeof totals[column]);
}

}  // namespace
