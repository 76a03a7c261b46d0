// Blocks of one row times one column with vectors of 512 bits, which VBMI unpacks.
#pragma once
#define VECTOR_BLOCKS 4
#define ROWS_AT_ONCE 2
#include "instruction_set.h"
#include "x86_vectors.h"

namespace {

constexpr int TQ1_0_PLACES = 320;  // five digits of 64 bytes each, of which a block has 52 and its last 4 lack a fifth

inline int64_t group_of_q2_0(int64_t block, int second) {
    const int64_t i = block % 8;  // pairs of lanes are added as shuffles bring them: the blocks 0, 4, 1, 5, 2, 6, 3, 7
    return block / 8 * 16 + i % 4 * 4 + i / 4 * 2 + second;
}

inline void place_values(int type, const int8_t * values, int64_t group, int8_t * places) {
    if (type == TQ2_0) {  // the two halves of a bit position beside each other
        for (int i = 0; i < 4; i++) {
            memcpy(places + 256 * group + 64 * i, values + 32 * i, 32);
            memcpy(places + 256 * group + 64 * i + 32, values + 128 + 32 * i, 32);
        }
        return;
    }
    places += TQ1_0_PLACES * group;
    memset(places, 0, TQ1_0_PLACES);
    for (int digit = 0; digit < 5; digit++) {
        memcpy(places + 64 * digit, values + 32 * digit, 32);
        memcpy(places + 64 * digit + 32, values + 160 + 16 * digit, 16);
        if (digit < 4)
            memcpy(places + 64 * digit + 48, values + 240 + 4 * digit, 4);
    }
}

ALWAYS_INLINE __m512i load_64(const void * address) {
    return _mm512_loadu_si512(address);
}

// GCC would rather load a vector again for each use, and most of those of weights cross a cache line.
ALWAYS_INLINE __m512i load_once(const void * address) {
    __m512i loaded = _mm512_loadu_si512(address);
#if defined(__GNUC__)
    __asm__("" : "+v"(loaded));
#endif
    return loaded;
}

// The first bytes, zeros after them; none are read behind them
ALWAYS_INLINE __m512i load_up_to(const char * address, int n_bytes) {
    const __mmask64 mask = n_bytes >= 64 ? ~0ull : n_bytes <= 0 ? 0 : ~0ull >> (64 - n_bytes);
    return _mm512_maskz_loadu_epi8(mask, address);
}

// For each of some rows: 64 bytes of 2-bit codes times the activations of the bit positions 0, 2, 4 and 6. The codes at bits
// 2 and 6 are counted four times and divided: it saves shifts.
template <int ROWS>
ALWAYS_INLINE void add_two_bit_products(__m512i sums[ROWS], const __m512i codes[ROWS], const int8_t * values) {
    const __m512i low = _mm512_set1_epi8(3), high = _mm512_set1_epi8(12);
    __m512i fourfold[ROWS], shifted[ROWS];
    UNROLL for (int row = 0; row < ROWS; row++) {
        shifted[row] = _mm512_srli_epi16(codes[row], 4);
        fourfold[row] = _mm512_setzero_si512();
    }
    UNROLL for (int position = 0; position < 4; position++) {
        const __m512i value = load_once(values + 64 * position);
        UNROLL for (int row = 0; row < ROWS; row++) {
            __m512i & sum = position % 2 ? fourfold[row] : sums[row];
            const __m512i & from = position < 2 ? codes[row] : shifted[row];
            sum = _mm512_dpbusd_epi32(sum, _mm512_and_si512(from, position % 2 ? high : low), value);
        }
    }
    UNROLL for (int row = 0; row < ROWS; row++)
        sums[row] = _mm512_add_epi32(sums[row], _mm512_srai_epi32(fourfold[row], 2));
}

// What a byte of TQ1_0 holds: four base-3 digits as the four 2-bit codes of another byte, and the fifth digit
struct digit_tables {
    uint8_t four[256], fifth[256];

    constexpr digit_tables() : four(), fifth() {
        for (int byte = 0; byte < 256; byte++) {
            int rest = byte;
            for (int digit = 0; digit < 4; digit++, rest = rest * 3 & 255)
                four[byte] = (uint8_t) (four[byte] | rest * 3 >> 8 << 2 * digit);
            fifth[byte] = (uint8_t) (rest * 3 >> 8);
        }
    }
};

alignas(64) constexpr digit_tables TABLES;

ALWAYS_INLINE __m512i look_up(__m512i bytes, const uint8_t table[256]) {
    const __m512i low = _mm512_permutex2var_epi8(load_64(table), bytes, load_64(table + 64));
    const __m512i high = _mm512_permutex2var_epi8(load_64(table + 128), bytes, load_64(table + 192));
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(bytes), low, high);
}

template <int ROWS>
ALWAYS_INLINE void tq1_0_products(__m512i sums[ROWS], const char * const blocks[ROWS], const int8_t * values) {
    const __m512i value = load_once(values + 256);
    __m512i codes[ROWS];
    UNROLL for (int row = 0; row < ROWS; row++) {
        const __m512i bytes = load_up_to(blocks[row], 52);
        sums[row] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), look_up(bytes, TABLES.fifth), value);
        codes[row] = look_up(bytes, TABLES.four);
    }
    add_two_bit_products<ROWS>(sums, codes, values);
}

template <int ROWS>
ALWAYS_INLINE void tq2_0_products(__m512i sums[ROWS], const char * const blocks[ROWS], const int8_t * values) {
    __m512i codes[ROWS];
    UNROLL for (int row = 0; row < ROWS; row++) {
        codes[row] = load_once(blocks[row]);
        sums[row] = _mm512_setzero_si512();
    }
    add_two_bit_products<ROWS>(sums, codes, values);
}

ALWAYS_INLINE __m512i add_pairs(__m512i a, __m512i b) {
    return _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
}

ALWAYS_INLINE __m512i add_fours(__m512i a, __m512i b) {
    return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}

// The sums of eight vectors' lanes
ALWAYS_INLINE __m256i add_lanes(const __m512i v[8]) {
    const __m512i low = add_fours(add_pairs(v[0], v[1]), add_pairs(v[2], v[3]));
    const __m512i high = add_fours(add_pairs(v[4], v[5]), add_pairs(v[6], v[7]));
    const __m512i halves = _mm512_add_epi32(_mm512_shuffle_i64x2(low, high, 0x44), _mm512_shuffle_i64x2(low, high, 0xee));
    const __m256i first = _mm512_castsi512_si256(halves), second = _mm512_extracti64x4_epi64(halves, 1);
    return _mm256_add_epi32(_mm256_permute2x128_si256(first, second, 0x20), _mm256_permute2x128_si256(first, second, 0x31));
}

typedef __m512i block_lanes;

// A block of each of four rows times the activations
template <int TYPE>
ALWAYS_INLINE void four_rows(block_lanes sums[4], const char * const blocks[4], const column_parts & column, int64_t block) {
    if constexpr (TYPE == TQ2_0)
        tq2_0_products<4>(sums, blocks, column.values + 256 * block);
    else
        tq1_0_products<4>(sums, blocks, column.values + TQ1_0_PLACES * block);
}

// Where the 32 words of codes of four blocks of Q2_0 are, a block being 9 words of which the first one is the scale: in the
// 64 bytes at the first block, or in those that begin 4 words later.
ALWAYS_INLINE __m512i words_of_codes(void) {
    return _mm512_set_epi16(63, 62, 61, 60, 31, 30, 29, 28, 26, 25, 24, 23, 22, 21, 20, 19, 17, 16, 15, 14, 13, 12, 11, 10, 8, 7,
                            6, 5, 4, 3, 2, 1);
}

ALWAYS_INLINE __m512i words_of_scales(void) {  // of eight blocks
    return _mm512_set_epi16(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 59, 50, 41, 32, 27, 18, 9, 0);
}

ALWAYS_INLINE void finish_q2_0(const __m512i lanes[2], __m512i first, __m512i second, const column_parts & column,
                               int64_t block, float * sums, float * scales) {
    const __m512 low = _mm512_castsi512_ps(lanes[0]), high = _mm512_castsi512_ps(lanes[1]);
    const __m512i exact = _mm512_add_epi32(_mm512_castps_si512(_mm512_shuffle_ps(low, high, 0x88)),
                                           _mm512_castps_si512(_mm512_shuffle_ps(low, high, 0xdd)));
    // Lanes are first and second groups in turn: those of the second ones are moved to the first ones'.
    const __m512 floats = _mm512_cvtepi32_ps(_mm512_sub_epi32(exact, load_64(column.sums + 2 * block)));
    const __m512 group_scales = _mm512_loadu_ps(column.scales + 2 * block);
    const __m512 both = _mm512_fmadd_ps(_mm512_movehdup_ps(floats), _mm512_movehdup_ps(group_scales),
                                        _mm512_mul_ps(floats, group_scales));
    const __m512i order = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 14, 10, 6, 2, 12, 8, 4, 0);
    _mm256_storeu_ps(sums, _mm512_castps512_ps256(_mm512_permutexvar_ps(order, both)));
    const __m512i halves = _mm512_permutex2var_epi16(first, words_of_scales(), second);
    _mm256_storeu_ps(scales, _mm256_cvtph_ps(_mm512_castsi512_si128(halves)));
}

template <int ROWS>
ALWAYS_INLINE void eight_blocks(const char * const weights[ROWS], int n_blocks, const column_parts & column, int64_t block,
                                     float * const sums[ROWS], float * const scales[ROWS]) {
    __m512i stored[2][ROWS], lanes[ROWS][2];
    UNROLL for (int i = 0; i < 2; i++) {
        __m512i codes[ROWS], of_rows[ROWS];
        UNROLL for (int row = 0; row < ROWS; row++) {
            const char * four = weights[row] + 72 * i;
            const int n_bytes = 18 * n_blocks - 72 * i;
            stored[i][row] = n_blocks == 8 ? load_once(four) : load_up_to(four, n_bytes);
            const __m512i later = n_blocks == 8 ? load_once(four + 8) : load_up_to(four + 8, n_bytes - 8);
            codes[row] = _mm512_permutex2var_epi16(stored[i][row], words_of_codes(), later);
            of_rows[row] = _mm512_setzero_si512();
        }
        add_two_bit_products<ROWS>(of_rows, codes, column.values + 64 * block + 256 * i);
        UNROLL for (int row = 0; row < ROWS; row++)
            lanes[row][i] = of_rows[row];
    }
    UNROLL for (int row = 0; row < ROWS; row++)
        finish_q2_0(lanes[row], stored[0][row], stored[1][row], column, block, sums[row], scales[row]);
}

}  // namespace
