// Unpacking rows into panels on x86: eight rows' packed codes are transposed as 32-bit words, then unpacked, so that each
// lane holds four neighbours of its row. The including file has defined PANEL_ROWS, and SIGNED_CODES where codes shall be from -1 on.
#pragma once
#include "x86_rows.h"

namespace {

constexpr int LANES = PANEL_ROWS / 2;  // rows of a vector

ALWAYS_INLINE __m256i as_integers(__m256 vector) {
    return _mm256_castps_si256(vector);
}

// words[i]: the i-th 32 bits of eight rows' 32 bytes at `offset`
ALWAYS_INLINE void words_of_rows(const char * const rows[8], int64_t offset, __m256 words[8]) {
    UNROLL for (int row = 0; row < 8; row++)
        words[row] = _mm256_castsi256_ps(load(rows[row] + offset));
    transpose_8x8(words);
}

ALWAYS_INLINE void store_codes(uint8_t * codes, int word, __m256i vector) {
#ifdef SIGNED_CODES
    vector = _mm256_sub_epi8(vector, _mm256_set1_epi8(1));
#endif
    _mm256_storeu_si256((__m256i *) (codes + word * PANEL_ROWS * 4), vector);
}

ALWAYS_INLINE __m256i two_bits(__m256i packed, int position) {
    return _mm256_and_si256(_mm256_srli_epi16(packed, 2 * position), _mm256_set1_epi8(3));
}

ALWAYS_INLINE void unpack_tq2_0(const char * const rows[8], int64_t offset, uint8_t * codes) {
    for (int half = 0; half < 2; half++) {
        __m256 words[8];
        words_of_rows(rows, offset + 32 * half, words);
        UNROLL for (int position = 0; position < 4; position++)
            UNROLL for (int i = 0; i < 8; i++)
                store_codes(codes, 32 * half + 8 * position + i, two_bits(as_integers(words[i]), position));
    }
}

ALWAYS_INLINE void store_digits(uint8_t * codes, int word, int step, int n_digits, __m256 packed) {
    __m256i bytes = _mm256_xor_si256(as_integers(packed), _mm256_set1_epi8(-128));
    for (int digit = 0; digit < n_digits; digit++) {
        store_codes(codes, word + digit * step, first_digit(bytes));
        bytes = times_3(bytes);
    }
}

ALWAYS_INLINE void unpack_tq1_0(const char * const rows[8], int64_t offset, uint8_t * codes) {
    __m256 words[8];
    words_of_rows(rows, offset, words);
    for (int i = 0; i < 8; i++)
        store_digits(codes, i, 8, 5, words[i]);
    words_of_rows(rows, offset + 20, words);
    for (int i = 0; i < 4; i++)
        store_digits(codes, 40 + i, 4, 5, words[3 + i]);
    store_digits(codes, 60, 1, 4, words[7]);
}

ALWAYS_INLINE void unpack_q2_0(const char * const rows[8], int64_t offset, int n_blocks, uint8_t * codes) {
    __m256 words[8];
    UNROLL for (int row = 0; row < 8; row++) {
        const char * first = rows[row] + offset + 2;
        words[row] = _mm256_castsi256_ps(two_blocks(first, n_blocks == 2 ? first + 18 : first));
    }
    transpose_8x8(words);
    for (int i = 0; i < 4 * n_blocks; i++)
        UNROLL for (int position = 0; position < 4; position++)
            store_codes(codes, 4 * i + position, two_bits(as_integers(words[i]), position));
}

void unpack_eight_rows(const weight_format & format, const char * const rows[8], int64_t n_blocks, uint8_t * codes,
                       float * scales) {
    for (int64_t block = 0; block < n_blocks; block++) {
        const int64_t offset = block * format.block_bytes;
        uint8_t * codes_of_block = codes + block * format.block_values * PANEL_ROWS;
        if (format.type == TQ2_0)
            unpack_tq2_0(rows, offset, codes_of_block);
        else if (format.type == TQ1_0)
            unpack_tq1_0(rows, offset, codes_of_block);
        else if (block % 2 == 0)
            unpack_q2_0(rows, offset, block + 1 < n_blocks ? 2 : 1, codes_of_block);
        uint16_t halves[8];
        for (int row = 0; row < 8; row++)
            memcpy(halves + row, rows[row] + offset + format.scale_offset, 2);
        _mm256_storeu_ps(scales + block * PANEL_ROWS, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) halves)));
    }
}

void unpack_panel(const weight_format & format, const char * weights, size_t row_bytes, int n_rows, int64_t n_values,
                  char * panel) {
    uint8_t * codes = (uint8_t *) panel;
    float * scales = (float *) (panel + n_values * PANEL_ROWS);
    for (int row = 0; row < n_rows; row += 8) {
        const char * rows[8];
        for (int i = 0; i < 8; i++)
            rows[i] = weights + (row + i < n_rows ? row + i : n_rows - 1) * row_bytes;
        unpack_eight_rows(format, rows, n_values / format.block_values, codes + 4 * row, scales + row);
    }
}

}  // namespace
