// Blocks of one row times one column with vectors of 512 bits, which VBMI unpacks.
#pragma once
#define VECTOR_BLOCKS 4
#include "instruction_set.h"
#include "x86_vectors.h"

namespace {

constexpr int TQ1_0_PLACES = 320;  // five digits of 64 bytes each, of which a block has 52 and its last 4 lack a fifth

inline void place_values(int type, const int8_t * values, int64_t group, int8_t * places) {
    if (type == TQ2_0) {
        memcpy(places + 256 * group, values, 256);
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
// 2 and 6 are counted four times, in `fourfold`, which starts at zero: it saves shifts.
template <int ROWS>
ALWAYS_INLINE void add_two_bit_products(__m512i sums[ROWS], __m512i fourfold[ROWS], const __m512i codes[ROWS],
                                        const int8_t * values) {
    const __m512i low = _mm512_set1_epi8(3), high = _mm512_set1_epi8(12);
    __m512i shifted[ROWS];
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
    __m512i codes[ROWS], fourfold[ROWS];
    UNROLL for (int row = 0; row < ROWS; row++) {
        const __m512i bytes = load_up_to(blocks[row], 52);
        sums[row] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), look_up(bytes, TABLES.fifth), value);
        codes[row] = look_up(bytes, TABLES.four);
    }
    add_two_bit_products<ROWS>(sums, fourfold, codes, values);
    UNROLL for (int row = 0; row < ROWS; row++)
        sums[row] = _mm512_add_epi32(sums[row], _mm512_srai_epi32(fourfold[row], 2));
}

// TQ2_0 in vectors of 256 bits: its blocks of 66 bytes lie such that most vectors of 512 bits would cross a cache line.
ALWAYS_INLINE __m256i tq2_0_lanes(const char * block, const int8_t * values) {
    const __m256i low = _mm256_set1_epi8(3), high = _mm256_set1_epi8(12);
    __m256i single = _mm256_setzero_si256(), fourfold = single;
    UNROLL for (int half = 0; half < 2; half++, values += 128) {
        const __m256i codes = load(block + 32 * half), shifted = _mm256_srli_epi16(codes, 4);
        single = _mm256_dpbusd_epi32(single, _mm256_and_si256(codes, low), load(values));
        fourfold = _mm256_dpbusd_epi32(fourfold, _mm256_and_si256(codes, high), load(values + 32));
        single = _mm256_dpbusd_epi32(single, _mm256_and_si256(shifted, low), load(values + 64));
        fourfold = _mm256_dpbusd_epi32(fourfold, _mm256_and_si256(shifted, high), load(values + 96));
    }
    return _mm256_add_epi32(single, _mm256_srai_epi32(fourfold, 2));
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

template <int TYPE>
struct block_lanes {
    typedef __m256i vector;
};

template <>
struct block_lanes<TQ1_0> {
    typedef __m512i vector;
};

// A block of each of four rows times the activations
template <int TYPE>
ALWAYS_INLINE void four_rows(typename block_lanes<TYPE>::vector sums[4], const char * const blocks[4],
                             const column_parts & column, int64_t block) {
    if constexpr (TYPE == TQ2_0) {
        UNROLL for (int row = 0; row < 4; row++)
            sums[row] = tq2_0_lanes(blocks[row], column.values + 256 * block);
    } else {
        tq1_0_products<4>(sums, blocks, column.values + TQ1_0_PLACES * block);
    }
}

// Where the words of codes of four blocks of Q2_0 are: in the first 64 bytes, where a block is 9 words of which the first one is the
// scale, and in the last block's 16 bytes of codes
ALWAYS_INLINE __m512i words_of_codes(void) {
    return _mm512_set_epi16(39, 38, 37, 36, 35, 34, 33, 32, 26, 25, 24, 23, 22, 21, 20, 19, 17, 16, 15, 14, 13, 12, 11, 10, 8, 7,
                            6, 5, 4, 3, 2, 1);
}

// The scales of four blocks of two rows, in turn
ALWAYS_INLINE __m128i scales_of_two(__m512i first, __m512i second) {
    const __m512i words = _mm512_castsi128_si512(_mm_set_epi16(59, 27, 50, 18, 41, 9, 32, 0));
    return _mm512_castsi512_si128(_mm512_permutex2var_epi16(first, words, second));
}

ALWAYS_INLINE __m512i repeat_four_times(__m256i groups, bool second) {
    const __m512i order = _mm512_set_epi32(6, 6, 6, 6, 4, 4, 4, 4, 2, 2, 2, 2, 0, 0, 0, 0);
    return _mm512_permutexvar_epi32(second ? _mm512_add_epi32(order, _mm512_set1_epi32(1)) : order,
                                    _mm512_castsi256_si512(groups));
}

// Totals with up to four blocks of Q2_0 of each of four rows, one row in each lane
ALWAYS_INLINE __m128 add_q2_0_blocks(__m128 totals, const char * const rows[4], int n_blocks, const column_parts & column,
                                     int64_t block) {
    __m512i stored[4], codes[4], single[4], fourfold[4];
    UNROLL for (int row = 0; row < 4; row++) {
        stored[row] = n_blocks == 4 ? load_once(rows[row]) : load_up_to(rows[row], 18 * n_blocks);
        const __m128i fourth = n_blocks == 4 ? _mm_loadu_si128((const __m128i *) (rows[row] + 56)) : _mm_setzero_si128();
        codes[row] = _mm512_permutex2var_epi16(stored[row], words_of_codes(), _mm512_castsi128_si512(fourth));
        single[row] = _mm512_setzero_si512();
    }
    add_two_bit_products<4>(single, fourfold, codes, column.values + 64 * block);
    // Each quarter of a vector is a block, whose two groups are neighbours. Sums of 8 products fit 16 bits; two of them make a
    // group's sum, four times, less what the codes from 0 on add to it.
    const __m512i fours = _mm512_set1_epi16(4), ones = _mm512_set1_epi16(1), order = _mm512_set_epi64(3, 3, 2, 2, 1, 1, 0, 0);
    const __m256i of_codes = _mm256_slli_epi32(_mm256_sub_epi32(_mm256_setzero_si256(), load(column.sums + 2 * block)), 2);
    const __m512i start = _mm512_permutexvar_epi64(order, _mm512_castsi256_si512(of_codes));
    __m512 of_two_rows[2];
    UNROLL for (int i = 0; i < 2; i++) {
        const __m512i once = _mm512_packs_epi32(single[2 * i], single[2 * i + 1]);
        const __m512i four_times = _mm512_packs_epi32(fourfold[2 * i], fourfold[2 * i + 1]);
        of_two_rows[i] = _mm512_castsi512_ps(_mm512_dpwssd_epi32(_mm512_dpwssd_epi32(start, once, fours), four_times, ones));
    }
    const __m512i first = _mm512_castps_si512(_mm512_shuffle_ps(of_two_rows[0], of_two_rows[1], 0x88));
    const __m512i second = _mm512_castps_si512(_mm512_shuffle_ps(of_two_rows[0], of_two_rows[1], 0xdd));
    const __m512 first_floats = _mm512_cvtepi32_ps(_mm512_srai_epi32(first, 2));
    const __m512 second_floats = _mm512_cvtepi32_ps(_mm512_srai_epi32(second, 2));
    const __m256i scales = load(column.scales + 2 * block);
    const __m512 sums = _mm512_fmadd_ps(second_floats, _mm512_castsi512_ps(repeat_four_times(scales, true)),
                                        _mm512_mul_ps(first_floats, _mm512_castsi512_ps(repeat_four_times(scales, false))));
    const __m128i of_rows_0_1 = scales_of_two(stored[0], stored[1]), of_rows_2_3 = scales_of_two(stored[2], stored[3]);
    const __m256i halves = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_unpacklo_epi32(of_rows_0_1, of_rows_2_3)),
                                                   _mm_unpackhi_epi32(of_rows_0_1, of_rows_2_3), 1);
    const __m512 block_scales = _mm512_cvtph_ps(halves);
    totals = _mm_fmadd_ps(_mm512_castps512_ps128(sums), _mm512_castps512_ps128(block_scales), totals);
    totals = _mm_fmadd_ps(_mm512_extractf32x4_ps(sums, 1), _mm512_extractf32x4_ps(block_scales, 1), totals);
    totals = _mm_fmadd_ps(_mm512_extractf32x4_ps(sums, 2), _mm512_extractf32x4_ps(block_scales, 2), totals);
    return _mm_fmadd_ps(_mm512_extractf32x4_ps(sums, 3), _mm512_extractf32x4_ps(block_scales, 3), totals);
}

}  // namespace
