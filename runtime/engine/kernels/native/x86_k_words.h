// A few columns of Q6_K and Q2_K on x86, rows side by side as in x86_words.h. Each 16 values of a row have a factor of their own,
// so codes are unpacked into bytes once for all columns. The including file has included x86_panels.h and defined
// six_bits(), as_bytes(), add_scaled(), add_word_products(), floats_of_integers(), CODES_COLUMNS and PARTS_COLUMNS.
#pragma once

namespace {

constexpr int K_WORDS = 64, K_PARTS = 16;  // of a block's 256 values: four in a word, 16 in a part

// A block of each row. With SUMS_OF_PAIRS, and for Q2_K, a factor is the same 16 bits twice, else one of 32.
template <int VECTORS>
struct k_unit {
    static constexpr int rows = VECTORS * LANES, word_bytes = 4 * rows;
    alignas(64) uint8_t codes[K_WORDS * word_bytes];
    alignas(64) int32_t factors[K_PARTS][rows];
    alignas(64) int32_t minima[K_PARTS / 2][rows];  // Q2_K: of two parts, 16 bits each
    alignas(64) float scales[rows], minimum_scales[rows];
};

ALWAYS_INLINE void store_lanes(int32_t * lanes, __m256i vector) {
    _mm256_storeu_si256((__m256i *) lanes, vector);
}

// The four words of eight rows' 16 bytes at `offset`
ALWAYS_INLINE void four_words_of_rows(const char * const rows[8], int64_t offset, __m256i words[4]) {
    __m256 loaded[4], pairs[4];
    UNROLL for (int row = 0; row < 4; row++)
        loaded[row] = _mm256_castsi256_ps(two_blocks(rows[row] + offset, rows[row + 4] + offset));
    UNROLL for (int i = 0; i < 2; i++) {
        pairs[2 * i] = _mm256_unpacklo_ps(loaded[2 * i], loaded[2 * i + 1]);
        pairs[2 * i + 1] = _mm256_unpackhi_ps(loaded[2 * i], loaded[2 * i + 1]);
    }
    UNROLL for (int i = 0; i < 2; i++) {
        words[2 * i] = as_integers(_mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44));
        words[2 * i + 1] = as_integers(_mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xee));
    }
}

// Of each lane the bytes a, b, c and d, zero where negative
ALWAYS_INLINE __m256i bytes_of_lanes(__m256i lanes, int a, int b, int c, int d) {
    const int lane = (a & 255) | (b & 255) << 8 | (c & 255) << 16 | (int) ((unsigned) (d & 255) << 24);
    const __m128i places = _mm_add_epi8(_mm_set1_epi32(lane), _mm_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c));
    return _mm256_shuffle_epi8(lanes, _mm256_broadcastsi128_si256(places));
}

template <int VECTORS>
ALWAYS_INLINE void q6_k_factors(const char * const rows[8], int64_t offset, int first_row, k_unit<VECTORS> & unpacked) {
    __m256i words[4];
    four_words_of_rows(rows, offset, words);
    UNROLL for (int part = 0; part < K_PARTS; part++) {
        const int byte = part % 4;
#ifdef SUMS_OF_PAIRS
        const __m256i factor = _mm256_srai_epi16(bytes_of_lanes(words[part / 4], -128, byte, -128, byte), 8);
#else
        const __m256i factor = _mm256_srai_epi32(bytes_of_lanes(words[part / 4], -128, -128, -128, byte), 24);
#endif
        store_lanes(unpacked.factors[part] + first_row, factor);
    }
}

template <int VECTORS>
ALWAYS_INLINE void q2_k_factors(const char * const rows[8], int64_t offset, int first_row, k_unit<VECTORS> & unpacked) {
    const __m256i low = _mm256_set1_epi8(15);
    __m256i words[4];
    four_words_of_rows(rows, offset, words);
    UNROLL for (int word = 0; word < 4; word++) {
        const __m256i factors = _mm256_and_si256(words[word], low);
        const __m256i minima = _mm256_and_si256(_mm256_srli_epi16(words[word], 4), low);
        UNROLL for (int byte = 0; byte < 4; byte++)
            store_lanes(unpacked.factors[4 * word + byte] + first_row, bytes_of_lanes(factors, byte, -128, byte, -128));
        UNROLL for (int pair = 0; pair < 2; pair++)
            store_lanes(unpacked.minima[2 * word + pair] + first_row,
                        bytes_of_lanes(minima, 2 * pair, -128, 2 * pair + 1, -128));
    }
}

// What the next rows need is prefetched in the order of memory, a few lines at a time: a hundred at once wait for each other.
template <int BYTES, int ALL_BYTES>
ALWAYS_INLINE void prefetch_part(const char *& ahead) {
    UNROLL for (int i = 0; i < BYTES; i += 64)
        prefetch<ALL_BYTES>(ahead + i);
    ahead += BYTES;
}

// Four bits of each code in the first 128 bytes of a block, the other two in the next 64, 16 parts' factors, a scale
template <int VECTORS>
void unpack_q6_k(const char * const rows[k_unit<VECTORS>::rows], int64_t offset, const char * ahead, k_unit<VECTORS> & unpacked) {
    constexpr int word_bytes = k_unit<VECTORS>::word_bytes;
    alignas(64) uint8_t packed[48 * word_bytes];
    for (int row = 0; row < k_unit<VECTORS>::rows; row += 8) {
        for (int i = 0; i < 6; i++) {
            __m256 words[8];
            prefetch_part<8 * 210 / 6, k_unit<VECTORS>::rows * 210>(ahead);
            words_of_rows(rows + row, offset + 32 * i, words);
            UNROLL for (int word = 0; word < 8; word++)
                _mm256_store_si256((__m256i *) (packed + (8 * i + word) * word_bytes + 4 * row), as_integers(words[word]));
        }
        q6_k_factors<VECTORS>(rows + row, offset + 192, row, unpacked);
    }
    for (int half = 0; half < 2; half++)
        for (int word = 0; word < 8; word++)
            UNROLL for (int vector = 0; vector < VECTORS; vector++) {
                tile_integers low[2], high;
                const uint8_t * place = packed + (16 * half + word) * word_bytes + vector * sizeof high;
                memcpy(low, place, sizeof high);
                memcpy(low + 1, place + 8 * word_bytes, sizeof high);
                memcpy(&high, packed + (32 + 8 * half + word) * word_bytes + vector * sizeof high, sizeof high);
                UNROLL for (int position = 0; position < 4; position++) {
                    const tile_integers codes = six_bits(low[position % 2], high, position);
                    memcpy(unpacked.codes + (32 * half + 8 * position + word) * word_bytes + vector * sizeof codes, &codes,
                           sizeof codes);
                }
            }
    load_scales<VECTORS>(rows, offset + 208, unpacked.scales);
}

// 16 parts' factors and minima of four bits each, 64 bytes of codes, their scales
template <int VECTORS>
void unpack_q2_k(const char * const rows[k_unit<VECTORS>::rows], int64_t offset, const char * ahead, k_unit<VECTORS> & unpacked) {
    constexpr int word_bytes = k_unit<VECTORS>::word_bytes;
    alignas(64) uint8_t packed[16 * word_bytes];
    for (int row = 0; row < k_unit<VECTORS>::rows; row += 8) {
        for (int half = 0; half < 2; half++) {
            __m256 words[8];
            prefetch_part<8 * 84 / 2, k_unit<VECTORS>::rows * 84>(ahead);
            words_of_rows(rows + row, offset + 16 + 32 * half, words);
            UNROLL for (int word = 0; word < 8; word++)
                _mm256_store_si256((__m256i *) (packed + (8 * half + word) * word_bytes + 4 * row), as_integers(words[word]));
        }
        q2_k_factors<VECTORS>(rows + row, offset, row, unpacked);
    }
    for (int half = 0; half < 2; half++)
        for (int word = 0; word < 8; word++)
            UNROLL for (int vector = 0; vector < VECTORS; vector++) {
                tile_integers four;
                memcpy(&four, packed + (8 * half + word) * word_bytes + vector * sizeof four, sizeof four);
                UNROLL for (int position = 0; position < 4; position++) {
                    const int index = 32 * half + 8 * position + word;
                    tile_integers factor;
                    memcpy(&factor, unpacked.factors[index / 4] + vector * LANES, sizeof factor);
                    const tile_integers codes = as_bytes(codes_of_word(four, position), factor);
                    memcpy(unpacked.codes + index * word_bytes + vector * sizeof codes, &codes, sizeof codes);
                }
            }
    load_scales<VECTORS>(rows, offset + 80, unpacked.scales);
    load_scales<VECTORS>(rows, offset + 82, unpacked.minimum_scales);
    for (float & scale : unpacked.minimum_scales)
        scale = -scale;
}

// A panel of columns has for each 256 values: these; for each part of Q6_K what its sum starts with, or for each two parts of
// Q2_K the sums of their values in 16 bits; the scales.
constexpr int K_VALUES_BYTES = 256 * FEW_COLUMNS;
constexpr int k_sums(int type) { return type == Q6_K ? K_PARTS : K_PARTS / 2; }

// As many columns meet a block while it is unpacked.
constexpr int K_TOTALS = 32;

// All values of a block times codes that have met their factors
template <int VECTORS, int COLUMNS>
ALWAYS_INLINE void multiply_k_codes(const k_unit<VECTORS> & unpacked, const char * columns,
                                    tile_integers sums[VECTORS][COLUMNS]) {
    UNROLL_4 for (int i = 0; i < K_WORDS; i++) {
        tile_integers codes[VECTORS];
        memcpy(codes, unpacked.codes + i * k_unit<VECTORS>::word_bytes, sizeof codes);
        multiply_codes<VECTORS, COLUMNS>(codes, columns + 4 * FEW_COLUMNS * i, sums);
    }
}

// The same where each part's sum meets its factor
template <int TYPE, int VECTORS, int COLUMNS>
ALWAYS_INLINE void multiply_k_parts(const k_unit<VECTORS> & unpacked, const char * columns,
                                    tile_integers sums[VECTORS][COLUMNS]) {
    for (int part = 0; part < K_PARTS; part++) {
        tile_integers exact[VECTORS][COLUMNS], factors[VECTORS];
        if (TYPE == Q6_K)
            start_few<VECTORS, COLUMNS>(columns + K_VALUES_BYTES + 4 * FEW_COLUMNS * part, exact);
        else
            memset(exact, 0, sizeof exact);
        UNROLL for (int i = 4 * part; i < 4 * part + 4; i++) {
            tile_integers codes[VECTORS];
            memcpy(codes, unpacked.codes + i * k_unit<VECTORS>::word_bytes, sizeof codes);
            multiply_codes<VECTORS, COLUMNS>(codes, columns + 4 * FEW_COLUMNS * i, exact);
        }
        memcpy(factors, unpacked.factors[part], sizeof factors);
        UNROLL for (int vector = 0; vector < VECTORS; vector++)
            UNROLL for (int column = 0; column < COLUMNS; column++)
                sums[vector][column] = add_scaled(sums[vector][column], exact[vector][column], factors[vector]);
    }
}

// Add exact sums times both scales to the totals of some columns
template <int VECTORS, int COLUMNS>
ALWAYS_INLINE void add_k_floats(const tile_integers exact[VECTORS][COLUMNS], const float * column_scales, const float * scales,
                                float totals[COLUMNS][VECTORS * LANES]) {
    UNROLL for (int vector = 0; vector < VECTORS; vector++) {
        const tile_floats row_scales = load_floats(scales + vector * LANES);
        UNROLL for (int column = 0; column < COLUMNS; column++) {
            float * total = totals[column] + vector * LANES;
            const tile_floats sum = multiply(floats_of_integers(exact[vector][column]), broadcast(column_scales[column]));
            store_floats(total, multiply_add(sum, row_scales, load_floats(total)));
        }
    }
}

template <int VECTORS, int COLUMNS>
ALWAYS_INLINE void multiply_minima(const k_unit<VECTORS> & unpacked, const char * columns, tile_integers sums[VECTORS][COLUMNS]) {
    UNROLL_4 for (int pair = 0; pair < K_PARTS / 2; pair++) {
        tile_integers minima[VECTORS];
        memcpy(minima, unpacked.minima[pair], sizeof minima);
        UNROLL for (int column = 0; column < COLUMNS; column++) {
            int32_t two;
            memcpy(&two, columns + K_VALUES_BYTES + 4 * (FEW_COLUMNS * pair + column), 4);
            UNROLL for (int vector = 0; vector < VECTORS; vector++)
                sums[vector][column] = add_word_products(sums[vector][column], minima[vector], broadcast(two));
        }
    }
}

// A block of each row times COLUMNS columns of a panel, or n_columns where that is less
template <int TYPE, int VECTORS, int COLUMNS>
ALWAYS_INLINE void add_k_unit(const k_unit<VECTORS> & unpacked, const char * columns, int n_columns,
                              float totals[][VECTORS * LANES]) {
    if constexpr (COLUMNS > 1)
        if (n_columns < COLUMNS)
            return add_k_unit<TYPE, VECTORS, COLUMNS - 1>(unpacked, columns, n_columns, totals);
    const float * column_scales = (const float *) (columns + K_VALUES_BYTES + FEW_COLUMNS * 4 * k_sums(TYPE));
    tile_integers sums[VECTORS][COLUMNS];
    memset(sums, 0, sizeof sums);
    if constexpr (TYPE == Q2_K && FACTORS_IN_BYTES)
        multiply_k_codes<VECTORS, COLUMNS>(unpacked, columns, sums);
    else
        multiply_k_parts<TYPE, VECTORS, COLUMNS>(unpacked, columns, sums);
    add_k_floats<VECTORS, COLUMNS>(sums, column_scales, unpacked.scales, totals);
    if constexpr (TYPE == Q2_K) {
        memset(sums, 0, sizeof sums);
        multiply_minima<VECTORS, COLUMNS>(unpacked, columns, sums);
        add_k_floats<VECTORS, COLUMNS>(sums, column_scales, unpacked.minimum_scales, totals);
    }
}

// Up to K_TOTALS columns, in panels of `width` columns
template <int TYPE>
void multiply_k_tile(const char * weights, size_t row_bytes, int n_rows, int64_t n_inputs, const char * panels, int width,
                     int n_columns, float * results, size_t result_bytes) {
    constexpr int VECTORS = 2, ROWS = k_unit<VECTORS>::rows, MOST = TYPE == Q2_K ? CODES_COLUMNS : PARTS_COLUMNS;
    constexpr int64_t block_bytes = TYPE == Q6_K ? 210 : 84, group_bytes = FEW_COLUMNS * (256 + 4 * k_sums(TYPE) + 4);
    const int64_t n_blocks = n_inputs / 256;
    const char * rows[ROWS];
    for (int row = 0; row < ROWS; row++)
        rows[row] = weights + (row < n_rows ? row : n_rows - 1) * row_bytes;
    const char * ahead = weights + ROWS * row_bytes;
    alignas(64) float totals[K_TOTALS][ROWS];
    memset(totals, 0, n_columns * sizeof totals[0]);
    k_unit<VECTORS> unpacked;
    for (int64_t block = 0; block < n_blocks; block++, ahead += ROWS * block_bytes) {
        (TYPE == Q6_K ? unpack_q6_k<VECTORS> : unpack_q2_k<VECTORS>)(rows, block * block_bytes, ahead, unpacked);
        for (int column = 0; column < n_columns;) {
            const char * panel = panels + (column / width * n_blocks + block) * group_bytes;
            const int left = (column / width + 1) * width < n_columns ? width - column % width : n_columns - column;
            const int n_parts = (left + MOST - 1) / MOST, some = (left + n_parts - 1) / n_parts;
            add_k_unit<TYPE, VECTORS, MOST>(unpacked, panel + 4 * (column % width), some, totals + column);
            column += some;
        }
    }
    for (int column = 0; column < n_columns; column++)
        memcpy((char *) results + column * result_bytes, totals[column], (n_rows < ROWS ? n_rows : ROWS) * sizeof(float));
}

template <int TYPE>
void multiply_k_columns(const char * weights, size_t row_bytes, int n_rows, int64_t n_inputs, const char * panels, int width,
                        int n_columns, float * results, size_t result_bytes) {
    const int some = K_TOTALS / width * width;
    const int64_t panel_bytes = n_inputs / 256 * FEW_COLUMNS * (256 + 4 * k_sums(TYPE) + 4);
    for (int column = 0; column < n_columns; column += some, panels += some / width * panel_bytes)
        for (int row = 0; row < n_rows; row += k_unit<2>::rows)
            multiply_k_tile<TYPE>(weights + row * row_bytes, row_bytes, n_rows - row, n_inputs, panels, width,
                                  n_columns - column < some ? n_columns - column : some,
                                  (float *) ((char *) results + column * result_bytes) + row, result_bytes);
}

}  // namespace
