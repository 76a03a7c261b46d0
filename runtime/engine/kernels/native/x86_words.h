// A few columns on x86, straight from packed codes, which are never stored as bytes. Some rows lie side by side: a vector holds a
// word of 32 bits of each of them, with four neighbours for each of its four bit positions. All columns meet a word's codes while
// these are in a register. The columns' values lie in the order of words and positions. The including file has included
// x86_tiles.h and defined FEW_VECTORS(columns), codes_of_word(), put_codes() and four_digits().
#pragma once

namespace {

constexpr int UNIT_WORDS = 16;

// What is unpacked at a time: a block of a TQ type, up to four blocks of Q2_0, or up to two of Q8_0, whose words are four bytes
template <int VECTORS>
struct unit {
    static constexpr int rows = VECTORS * LANES, word_bytes = 4 * rows;
    alignas(64) uint8_t words[UNIT_WORDS * word_bytes];
    alignas(64) float scales[4][rows];
};

template <int VECTORS>
ALWAYS_INLINE void store_word(uint8_t * words, int word, __m256i vector) {
    _mm256_store_si256((__m256i *) (words + word * unit<VECTORS>::word_bytes), vector);
}

template <int VECTORS>
ALWAYS_INLINE void tq2_0_words(const char * const rows[8], int64_t offset, uint8_t * words) {
    for (int half = 0; half < 2; half++) {
        __m256 found[8];
        words_of_rows(rows, offset + 32 * half, found);
        UNROLL for (int i = 0; i < 8; i++)
            store_word<VECTORS>(words, 8 * half + i, as_integers(found[i]));
    }
}

// As they are stored, for unpack_digits()
template <int VECTORS>
ALWAYS_INLINE void tq1_0_words(const char * const rows[8], int64_t offset, uint8_t * words) {
    __m256 found[16];
    words_of_rows(rows, offset + 20, found + 5);
    words_of_rows(rows, offset, found);
    UNROLL for (int i = 0; i < 13; i++)
        store_word<VECTORS>(words, i, as_integers(found[i]));
}

// 13 words of base-3 digits become 2-bit codes: of each byte the first four. Twelve words have a fifth digit: those of four
// words are one more word.
template <int VECTORS>
ALWAYS_INLINE void unpack_digits(uint8_t * words) {
    for (int vector = 0; vector < VECTORS; vector++, words += 4 * LANES)
        for (int i = 0; i < 13; i += 4) {
            tile_integers fifths{};
            UNROLL for (int j = 0; j < 4; j++) {
                if (i + j > 12) break;
                tile_integers word, fifth;
                memcpy(&word, words + (i + j) * unit<VECTORS>::word_bytes, sizeof word);
                word = four_digits(word, fifth);
                memcpy(words + (i + j) * unit<VECTORS>::word_bytes, &word, sizeof word);
                fifths = put_codes(fifths, fifth, j);
            }
            if (i < 12)
                memcpy(words + (13 + i / 4) * unit<VECTORS>::word_bytes, &fifths, sizeof fifths);
        }
}

template <int VECTORS>
ALWAYS_INLINE void q2_0_words(const char * const rows[8], int64_t offset, int n_blocks, uint8_t * words) {
    for (int block = 0; block < n_blocks; block += 2) {
        __m256 found[8];
        UNROLL for (int row = 0; row < 8; row++) {
            const char * first = rows[row] + offset + 18 * block + 2;
            found[row] = _mm256_castsi256_ps(two_blocks(first, block + 1 < n_blocks ? first + 18 : first));
        }
        transpose_8x8(found);
        UNROLL for (int i = 0; i < 8; i++)
            store_word<VECTORS>(words, 4 * block + i, as_integers(found[i]));
    }
}

template <int VECTORS>
ALWAYS_INLINE void load_scales(const char * const rows[unit<VECTORS>::rows], int64_t offset, float * scales) {
    constexpr int n_rows = unit<VECTORS>::rows;
    uint16_t halves[n_rows];
    UNROLL for (int row = 0; row < n_rows; row++)
        memcpy(halves + row, rows[row] + offset, 2);
    UNROLL for (int row = 0; row < n_rows; row += 8)
        _mm256_store_ps(scales + row, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) (halves + row))));
}

// Bytes from -128 on become bytes from 0 on; columns' sums start with what that adds.
template <int VECTORS>
ALWAYS_INLINE void q8_0_words(const char * const rows[8], int64_t offset, int n_blocks, uint8_t * words) {
    for (int block = 0; block < n_blocks; block++) {
        __m256 found[8];
        words_of_rows(rows, offset + 34 * block + 2, found);
        UNROLL for (int i = 0; i < 8; i++)
            store_word<VECTORS>(words, 8 * block + i, _mm256_xor_si256(as_integers(found[i]), _mm256_set1_epi8(-128)));
    }
}

// Four neighbours of each row times those of some columns
template <int VECTORS, int COLUMNS>
ALWAYS_INLINE void multiply_codes(const tile_integers codes[VECTORS], const char * values, tile_integers sums[VECTORS][COLUMNS]) {
    UNROLL for (int column = 0; column < COLUMNS; column++) {
        int32_t four;
        memcpy(&four, values + 4 * column, 4);
        const tile_integers value = broadcast(four);
        UNROLL for (int vector = 0; vector < VECTORS; vector++)
            sums[vector][column] = accumulate_tile(sums[vector][column], codes[vector], value);
    }
}

// Add exact sums times both scales
template <int VECTORS, int COLUMNS>
ALWAYS_INLINE void add_floats(const tile_integers exact[VECTORS][COLUMNS], const float * column_scales, const float * scales,
                              tile_floats totals[VECTORS][COLUMNS]) {
    UNROLL for (int vector = 0; vector < VECTORS; vector++) {
        const tile_floats row_scales = load_floats(scales + vector * LANES);
        UNROLL for (int column = 0; column < COLUMNS; column++) {
            const tile_floats sum = multiply(floats_of(exact[vector][column]), broadcast(column_scales[column]));
            totals[vector][column] = multiply_add(sum, row_scales, totals[vector][column]);
        }
    }
}

// The codes of some words times the values of some columns
template <int VECTORS, int COLUMNS>
ALWAYS_INLINE void multiply_words(const uint8_t * words, int n_words, const char * values, tile_integers sums[VECTORS][COLUMNS]) {
    UNROLL_4 for (int i = 0; i < n_words; i++) {
        tile_integers word[VECTORS];
        memcpy(word, words + i * unit<VECTORS>::word_bytes, sizeof word);
        UNROLL for (int position = 0; position < 4; position++) {
            tile_integers codes[VECTORS];
            UNROLL for (int vector = 0; vector < VECTORS; vector++)
                codes[vector] = codes_of_word(word[vector], position);
            multiply_codes<VECTORS, COLUMNS>(codes, values + 4 * FEW_COLUMNS * (4 * i + position), sums);
        }
    }
}

template <int VECTORS, int COLUMNS>
ALWAYS_INLINE void start_few(const char * starts, tile_integers sums[VECTORS][COLUMNS]) {
    UNROLL for (int column = 0; column < COLUMNS; column++) {
        int32_t start;
        memcpy(&start, starts + 4 * column, 4);
        UNROLL for (int vector = 0; vector < VECTORS; vector++)
            sums[vector][column] = broadcast(start);
    }
}

template <int TYPE, int VECTORS>
void unpack_unit(const char * const rows[unit<VECTORS>::rows], int64_t offset, int n_blocks, unit<VECTORS> & unpacked) {
    constexpr int block_bytes = TYPE == TQ2_0 ? 66 : TYPE == TQ1_0 ? 54 : TYPE == Q2_0 ? 18 : 34;
    constexpr int scale_at = TYPE == TQ2_0 || TYPE == TQ1_0 ? block_bytes - 2 : 0;
    for (int row = 0; row < unit<VECTORS>::rows; row += 8) {
        if constexpr (TYPE == TQ2_0)
            tq2_0_words<VECTORS>(rows + row, offset, unpacked.words + 4 * row);
        else if constexpr (TYPE == TQ1_0)
            tq1_0_words<VECTORS>(rows + row, offset, unpacked.words + 4 * row);
        else if constexpr (TYPE == Q8_0)
            q8_0_words<VECTORS>(rows + row, offset, n_blocks, unpacked.words + 4 * row);
        else
            q2_0_words<VECTORS>(rows + row, offset, n_blocks, unpacked.words + 4 * row);
    }
    if constexpr (TYPE == TQ1_0)
        unpack_digits<VECTORS>(unpacked.words);
    for (int block = 0; block < n_blocks; block++)
        load_scales<VECTORS>(rows, offset + block * block_bytes + scale_at, unpacked.scales[block]);
}

template <int VECTORS, int COLUMNS>
ALWAYS_INLINE void add_tq_unit(const unit<VECTORS> & unpacked, const char * columns, tile_floats totals[VECTORS][COLUMNS]) {
    tile_integers exact[VECTORS][COLUMNS];
    start_few<VECTORS, COLUMNS>(columns + 256 * FEW_COLUMNS, exact);
    multiply_words<VECTORS, COLUMNS>(unpacked.words, UNIT_WORDS, columns, exact);
    add_floats<VECTORS, COLUMNS>(exact, (const float *) (columns + 260 * FEW_COLUMNS), unpacked.scales[0], totals);
}

template <int VECTORS, int COLUMNS>
ALWAYS_INLINE void add_q2_0_unit(const unit<VECTORS> & unpacked, int n_blocks, const char * columns,
                                 tile_floats totals[VECTORS][COLUMNS]) {
    constexpr size_t group_bytes = FEW_COLUMNS * (32 + 8);
    for (int block = 0; block < n_blocks; block++, columns += 2 * group_bytes) {
        tile_integers first[VECTORS][COLUMNS], second[VECTORS][COLUMNS];
        start_few<VECTORS, COLUMNS>(columns + 32 * FEW_COLUMNS, first);
        start_few<VECTORS, COLUMNS>(columns + 32 * FEW_COLUMNS + group_bytes, second);
        multiply_words<VECTORS, COLUMNS>(unpacked.words + 4 * block * unit<VECTORS>::word_bytes, 2, columns, first);
        multiply_words<VECTORS, COLUMNS>(unpacked.words + (4 * block + 2) * unit<VECTORS>::word_bytes, 2, columns + group_bytes,
                                         second);
        const float * column_scales = (const float *) (columns + 36 * FEW_COLUMNS);
        UNROLL for (int vector = 0; vector < VECTORS; vector++) {
            const tile_floats row_scales = load_floats(unpacked.scales[block] + vector * LANES);
            UNROLL for (int column = 0; column < COLUMNS; column++) {
                tile_floats sum = multiply(floats_of(first[vector][column]), broadcast(column_scales[column]));
                sum = multiply_add(floats_of(second[vector][column]), broadcast(column_scales[column + group_bytes / 4]), sum);
                totals[vector][column] = multiply_add(sum, row_scales, totals[vector][column]);
            }
        }
    }
}

template <int VECTORS, int COLUMNS>
ALWAYS_INLINE void add_q8_0_unit(const unit<VECTORS> & unpacked, int n_blocks, const char * columns,
                                 tile_floats totals[VECTORS][COLUMNS]) {
    for (int block = 0; block < n_blocks; block++, columns += FEW_COLUMNS * (32 + 8)) {
        tile_integers exact[VECTORS][COLUMNS];
        start_few<VECTORS, COLUMNS>(columns + 32 * FEW_COLUMNS, exact);
        UNROLL for (int i = 0; i < 8; i++) {
            tile_integers codes[VECTORS];
            memcpy(codes, unpacked.words + (8 * block + i) * unit<VECTORS>::word_bytes, sizeof codes);
            multiply_codes<VECTORS, COLUMNS>(codes, columns + 4 * FEW_COLUMNS * i, exact);
        }
        add_floats<VECTORS, COLUMNS>(exact, (const float *) (columns + 36 * FEW_COLUMNS), unpacked.scales[block], totals);
    }
}

// The results of up to n_rows rows
template <int VECTORS, int COLUMNS>
ALWAYS_INLINE void store_few(const tile_floats totals[VECTORS][COLUMNS], int n_rows, float * results, size_t result_bytes) {
    constexpr int ROWS = VECTORS * LANES;
    UNROLL for (int column = 0; column < COLUMNS; column++) {
        float lanes[ROWS];
        UNROLL for (int vector = 0; vector < VECTORS; vector++)
            store_floats(lanes + vector * LANES, totals[vector][column]);
        memcpy((char *) results + column * result_bytes, lanes, (n_rows < ROWS ? n_rows : ROWS) * sizeof(float));
    }
}

// Rows side by side; those behind the last one are computed like it and left out. What the next rows need is prefetched in the
// order of memory.
template <int TYPE, int COLUMNS>
void multiply_few_rows(const char * weights, size_t row_bytes, int n_rows, int64_t n_inputs, const char * columns,
                       float * results, size_t result_bytes) {
    constexpr int VECTORS = FEW_VECTORS(COLUMNS), ROWS = unit<VECTORS>::rows;
    constexpr int64_t unit_bytes = TYPE == TQ2_0 ? 66 : TYPE == TQ1_0 ? 54 : TYPE == Q2_0 ? 72 : 68;
    constexpr int64_t unit_values = TYPE == Q8_0 ? 64 : 256;
    constexpr int block_values = TYPE == Q8_0 ? 32 : TYPE == Q2_0 ? 64 : 256;
    constexpr int group_values = TYPE == Q8_0 || TYPE == Q2_0 ? 32 : 256;
    const char * rows[ROWS];
    for (int row = 0; row < ROWS; row++)
        rows[row] = weights + (row < n_rows ? row : n_rows - 1) * row_bytes;
    const char * ahead = weights + ROWS * row_bytes;
    tile_floats totals[VECTORS][COLUMNS];
    UNROLL for (int column = 0; column < COLUMNS; column++)
        UNROLL for (int vector = 0; vector < VECTORS; vector++)
            totals[vector][column] = broadcast(0.0f);
    unit<VECTORS> units[2];  // one is unpacked while the other is multiplied
    const auto blocks_from = [=](int64_t value) {
        return (int) ((n_inputs - value < unit_values ? n_inputs - value : unit_values) / block_values);
    };
    unpack_unit<TYPE, VECTORS>(rows, 0, blocks_from(0), units[0]);
    int64_t offset = 0;
    int current = 0;
    for (int64_t value = 0; value < n_inputs; value += unit_values, ahead += ROWS * unit_bytes, current ^= 1) {
        for (int i = 0; i < ROWS * unit_bytes; i += 64)
            prefetch<ROWS * unit_bytes>(ahead + i);
        offset += unit_bytes;
        if (value + unit_values < n_inputs)
            unpack_unit<TYPE, VECTORS>(rows, offset, blocks_from(value + unit_values), units[current ^ 1]);
        if constexpr (TYPE == Q2_0)
            add_q2_0_unit<VECTORS, COLUMNS>(units[current], blocks_from(value), columns, totals);
        else if constexpr (TYPE == Q8_0)
            add_q8_0_unit<VECTORS, COLUMNS>(units[current], blocks_from(value), columns, totals);
        else
            add_tq_unit<VECTORS, COLUMNS>(units[current], columns, totals);
        columns += FEW_COLUMNS * (unit_values + unit_values / group_values * 8);
    }
    store_few<VECTORS, COLUMNS>(totals, n_rows, results, result_bytes);
}

template <int TYPE, int COLUMNS>
void multiply_few_columns(const char * weights, size_t row_bytes, int n_rows, int64_t n_inputs, const char * columns,
                          int n_columns, float * results, size_t result_bytes) {
    if constexpr (COLUMNS > (TYPE == Q8_0 ? 1 : 2))  // of 57 columns of Q8_0, the last panel has one
        if (n_columns < COLUMNS)
            return multiply_few_columns<TYPE, COLUMNS - 1>(weights, row_bytes, n_rows, n_inputs, columns, n_columns, results,
                                                           result_bytes);
    for (int row = 0; row < n_rows; row += unit<FEW_VECTORS(COLUMNS)>::rows)
        multiply_few_rows<TYPE, COLUMNS>(weights + row * row_bytes, row_bytes, n_rows - row, n_inputs, columns, results + row,
                                         result_bytes);
}

}  // namespace

#include "x86_k_words.h"

namespace {

// Where four neighbours of a TQ type's 256 values come from, for each word and bit position
struct word_order {
    uint8_t tq2_0[64], tq1_0[64];

    constexpr word_order() : tq2_0(), tq1_0() {
        for (int word = 0; word < UNIT_WORDS; word++)
            for (int position = 0; position < 4; position++) {
                const int fifth = 4 * (word - 13) + position;
                tq2_0[4 * word + position] = (uint8_t) (word / 8 * 128 + 32 * position + word % 8 * 4);
                tq1_0[4 * word + position] = (uint8_t) (word < 8    ? 32 * position + 4 * word
                                                        : word < 12 ? 160 + 16 * position + 4 * (word - 8)
                                                        : word < 13 ? 240 + 4 * position
                                                        : fifth < 8 ? 128 + 4 * fifth
                                                                    : 224 + 4 * (fifth - 8));
            }
    }
};

constexpr word_order WORD_ORDER;

void quantize_few(const weight_format & format, const char * activations, size_t activation_bytes, int n_columns,
                  int64_t n_inputs, char * panel) {
    if (format.type == Q8_0)
        return quantize_panel_of_groups<32, FEW_COLUMNS, 4, Q8_0>(activations, activation_bytes, n_columns, n_inputs, panel);
    if (format.type == Q6_K)
        return quantize_panel_of_parts<FEW_COLUMNS, Q6_K>(activations, activation_bytes, n_columns, n_inputs, panel);
    if (format.type == Q2_K)
        return quantize_panel_of_parts<FEW_COLUMNS, Q2_K>(activations, activation_bytes, n_columns, n_inputs, panel);
    if (format.type == Q2_0)
        return quantize_panel_of_groups<32, FEW_COLUMNS, 4>(activations, activation_bytes, n_columns, n_inputs, panel);
    quantize_panel_of_groups<256, FEW_COLUMNS, 4>(activations, activation_bytes, n_columns, n_inputs, panel,
                                                  format.type == TQ2_0 ? WORD_ORDER.tq2_0 : WORD_ORDER.tq1_0);
}

void multiply_few(const weight_format & format, const char * weights, size_t row_bytes, int n_rows, int64_t n_inputs,
                  const char * panels, int width, int n_columns, float * results, size_t result_bytes) {
    if (format.type == Q6_K || format.type == Q2_K)
        return (format.type == Q6_K ? multiply_k_columns<Q6_K> : multiply_k_columns<Q2_K>)(
            weights, row_bytes, n_rows, n_inputs, panels, width, n_columns, results, result_bytes);
    auto multiply = format.type == TQ2_0   ? multiply_few_columns<TQ2_0, FEW_COLUMNS>
                    : format.type == TQ1_0 ? multiply_few_columns<TQ1_0, FEW_COLUMNS>
                                           : multiply_few_columns<Q2_0, FEW_COLUMNS>;
    if constexpr (HAS_Q8_0)
        if (format.type == Q8_0)
            multiply = multiply_few_columns<Q8_0, FEW_COLUMNS>;
    for (int column = 0; column < n_columns; column += width, panels += column_panel_bytes(format, n_inputs, FEW_COLUMNS))
        multiply(weights, row_bytes, n_rows, n_inputs, panels, n_columns - column < width ? n_columns - column : width,
                 (float *) ((char *) results + column * result_bytes), result_bytes);
}

}  // namespace
