// Blocks of one row times one column with vectors of 256 bits. The including file has chosen its target and defined
// accumulate(sums, codes 0..255, activations), add_sums(), quarter_sums(), and lanes_of(sums): eight sums of 32 bits.
#pragma once
#define VECTOR_BLOCKS 2
#include "instruction_set.h"
#include "x86_vectors.h"

namespace {

inline int64_t group_of_q2_0(int64_t block, int second) {
    return 2 * block + second;
}

inline int lane_of_sixteen(int sixteen) {
    return sixteen;
}

inline void place_values(int, const int8_t * values, int64_t group, int8_t * places) {
    memcpy(places + 256 * group, values, 256);
}

// 32 bytes of 2-bit codes times the activations of the bit positions 0, 2, 4 and 6. The codes at bits 2 and 6 are counted
// four times, in `fourfold`: it saves shifts.
ALWAYS_INLINE void accumulate_positions(__m256i & single, __m256i & fourfold, __m256i codes, const int8_t * values) {
    const __m256i low = _mm256_set1_epi8(3), high = _mm256_set1_epi8(12), shifted = _mm256_srli_epi16(codes, 4);
    single = accumulate(single, _mm256_and_si256(codes, low), load(values));
    fourfold = accumulate(fourfold, _mm256_and_si256(codes, high), load(values + 32));
    single = accumulate(single, _mm256_and_si256(shifted, low), load(values + 64));
    fourfold = accumulate(fourfold, _mm256_and_si256(shifted, high), load(values + 96));
}

ALWAYS_INLINE __m256i tq2_0_lanes(const char * block, const int8_t * values) {
    __m256i single = _mm256_setzero_si256(), fourfold = single, single2 = single, fourfold2 = single;
    accumulate_positions(single, fourfold, load(block), values);
    accumulate_positions(single2, fourfold2, load(block + 32), values + 128);
    return lanes_of(add_sums(add_sums(single, single2), quarter_sums(add_sums(fourfold, fourfold2))));
}

ALWAYS_INLINE __m256i q2_0_lanes(__m256i codes, const int8_t * values) {
    __m256i single = _mm256_setzero_si256(), fourfold = single;
    accumulate_positions(single, fourfold, codes, values);
    return lanes_of(add_sums(single, quarter_sums(fourfold)));
}

ALWAYS_INLINE __m128i times_3(__m128i bytes) {
    return _mm_add_epi8(bytes, _mm_add_epi8(bytes, bytes));
}

// The 256 codes of a TQ1_0 block in the values' order
ALWAYS_INLINE void tq1_0_codes(const char * block, __m256i codes[8]) {
    const __m256i offset = _mm256_set1_epi8(-128);
    __m256i bytes = _mm256_xor_si256(load(block), offset);
    codes[0] = first_digit(bytes);
    UNROLL for (int i = 1; i < 5; i++) {
        bytes = times_3(bytes);
        codes[i] = first_digit(bytes);
    }
    // 16 bytes of five digits, two digits at a time, and the fifth beside four bytes of four digits
    const __m128i sixteen = _mm_xor_si128(_mm_loadu_si128((const __m128i *) (block + 32)), _mm256_castsi256_si128(offset));
    bytes = _mm256_inserti128_si256(_mm256_castsi128_si256(sixteen), times_3(sixteen), 1);
    codes[5] = first_digit(bytes);
    bytes = times_3(times_3(bytes));
    codes[6] = first_digit(bytes);
    bytes = times_3(times_3(bytes));
    int32_t four;
    memcpy(&four, block + 48, 4);
    const __m256i powers = _mm256_setr_epi16(1, 1, 1, 1, 3, 3, 3, 3, 9, 9, 9, 9, 27, 27, 27, 27);
    const __m256i words = _mm256_and_si256(_mm256_mullo_epi16(_mm256_cvtepu8_epi16(_mm_set1_epi32(four)), powers),
                                           _mm256_set1_epi16(255));
    const __m128i last = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    bytes = _mm256_inserti128_si256(bytes, _mm_xor_si128(last, _mm256_castsi256_si128(offset)), 1);
    codes[7] = first_digit(bytes);
}

ALWAYS_INLINE __m256i tq1_0_lanes(const char * block, const int8_t * values) {
    __m256i codes[8], even = _mm256_setzero_si256(), odd = even;
    tq1_0_codes(block, codes);
    UNROLL for (int i = 0; i < 8; i += 2) {
        even = accumulate(even, codes[i], load(values + 32 * i));
        odd = accumulate(odd, codes[i + 1], load(values + 32 * i + 32));
    }
    return lanes_of(add_sums(even, odd));
}

template <int TYPE>
struct block_lanes {
    typedef __m256i vector;
};

// A block of each of four rows times the activations
template <int TYPE>
ALWAYS_INLINE void four_rows(__m256i sums[4], const char * const blocks[4], const column_parts & column, int64_t block) {
    UNROLL for (int row = 0; row < 4; row++)
        sums[row] = (TYPE == TQ2_0 ? tq2_0_lanes : tq1_0_lanes)(blocks[row], column.values + 256 * block);
}

// Totals with one or two blocks of Q2_0 of each of four rows, one row in each lane
ALWAYS_INLINE __m128 add_q2_0_blocks(__m128 totals, const char * const rows[4], int n_blocks, const column_parts & column,
                                     int64_t block) {
    __m256i lanes[4];
    uint16_t halves[8] = {0};
    UNROLL for (int row = 0; row < 4; row++) {
        const char * codes = rows[row] + 2;
        const __m256i two = n_blocks == 2 ? two_blocks(codes, codes + 18)
                                          : _mm256_zextsi128_si256(_mm_loadu_si128((const __m128i *) codes));
        lanes[row] = q2_0_lanes(two, column.values + 64 * block);
        memcpy(halves + row, rows[row], 2);
        if (n_blocks == 2)
            memcpy(halves + 4 + row, rows[row] + 18, 2);
    }
    const __m256 low = _mm256_castsi256_ps(add_pairs(lanes[0], lanes[1]));
    const __m256 high = _mm256_castsi256_ps(add_pairs(lanes[2], lanes[3]));
    const __m256i first = _mm256_castps_si256(_mm256_shuffle_ps(low, high, 0x88));
    const __m256i second = _mm256_castps_si256(_mm256_shuffle_ps(low, high, 0xdd));
    // Each half of a vector is a block; sums and scales of its two groups are neighbours.
    const __m256i of_first = _mm256_setr_epi32(0, 0, 0, 0, 2, 2, 2, 2), of_second = _mm256_setr_epi32(1, 1, 1, 1, 3, 3, 3, 3);
    const __m256i groups = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *) (column.sums + 2 * block)));
    const __m256 scales = _mm256_castps128_ps256(_mm_loadu_ps(column.scales + 2 * block));
    const __m256 first_floats = _mm256_cvtepi32_ps(_mm256_sub_epi32(first, _mm256_permutevar8x32_epi32(groups, of_first)));
    const __m256 second_floats = _mm256_cvtepi32_ps(_mm256_sub_epi32(second, _mm256_permutevar8x32_epi32(groups, of_second)));
    const __m256 sums = _mm256_fmadd_ps(second_floats, _mm256_permutevar8x32_ps(scales, of_second),
                                        _mm256_mul_ps(first_floats, _mm256_permutevar8x32_ps(scales, of_first)));
    const __m256 block_scales = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) halves));
    totals = _mm_fmadd_ps(_mm256_castps256_ps128(sums), _mm256_castps256_ps128(block_scales), totals);
    return _mm_fmadd_ps(_mm256_extractf128_ps(sums, 1), _mm256_extractf128_ps(block_scales, 1), totals);
}

}  // namespace
