// Blocks of one row times one column with vectors of 256 bits. The including file has chosen its target and defined
// accumulate(sums, codes 0..255, activations), add_sums(), quarter_sums(), lanes_of(sums): eight sums of 32 bits, and
// accumulate_words(sums of 32 bits, words of 16, words of 16).
#pragma once
#define VECTOR_BLOCKS 2
#include "instruction_set.h"
#include "x86_vectors.h"

namespace {

constexpr int TQ1_0_PLACES = 512;

// Of one digit's values and the next one's
inline int16_t difference(int8_t values, int8_t next) {
    return (int16_t) (values - 3 * next);
}

inline void place_values(int type, const int8_t * values, int64_t group, int8_t * place) {
    if (type == TQ2_0) {
        memcpy(place + 256 * group, values, 256);
        return;
    }
    int16_t * places = (int16_t *) (place + TQ1_0_PLACES * group);  // [digit]: 16 even and 16 odd ones of 32 bytes; 16 bytes
    for (int digit = 0; digit < 5; digit++, places += 48) {
        const int8_t * of_32 = values + 32 * digit, * of_16 = values + 160 + 16 * digit;
        for (int i = 0; i < 32; i++)
            places[i / 2 + 16 * (i % 2)] = difference(of_32[i], digit < 4 ? of_32[i + 32] : 0);
        for (int i = 0; i < 16; i++)
            places[32 + i] = difference(of_16[i], digit < 4 ? of_16[i + 16] : 0);
    }
    for (int i = 0; i < 16; i++)  // four digits of the last four bytes
        places[i] = difference(values[240 + i], i < 12 ? values[244 + i] : 0);
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

// As in accumulate() of AVX2, assembler code keeps GCC from computing many products before it adds them.
ALWAYS_INLINE void accumulate_words_of(__m256i & sums, __m256i bytes, __m256i powers, const int16_t * values) {
    __m256i words = _mm256_mulhi_epu16(bytes, powers);
#if defined(__GNUC__) && defined(SUMS_OF_PAIRS)
    __asm__("vpmulhuw %3, %2, %1\n\tvpmaddwd %4, %1, %1\n\tvpaddd %1, %0, %0"
            : "+x"(sums), "=&x"(words)
            : "x"(bytes), "x"(powers), "m"(*(const __m256i_u *) values));
#else
    sums = accumulate_words(sums, words, load(values));
#endif
}

// A byte b of TQ1_0 holds digits d0 to d4, and b * 3^i >> 8 is n_i, the number that the first i of them make. A digit is
// n_(i+1) - 3 n_i, so the digits times x0 to x4 are n_1 (x0 - 3 x1) + n_2 (x1 - 3 x2) + ... + n_5 x4: no digit needs to be
// told apart. place_values() has made these differences. Bytes lie in the upper halves of words of 16 bits.
ALWAYS_INLINE __m256i tq1_0_lanes(const char * block, const int16_t * values) {
    const __m256i bytes = load(block), even = _mm256_slli_epi16(bytes, 8), odd = _mm256_and_si256(bytes, _mm256_set1_epi16(-256));
    const __m256i sixteen = _mm256_slli_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *) (block + 32))), 8);
    int32_t four;
    memcpy(&four, block + 48, 4);
    const __m256i last = _mm256_slli_epi16(_mm256_cvtepu8_epi16(_mm_set1_epi32(four)), 8);
    __m256i sums = _mm256_setzero_si256(), other_sums = sums;
    int power = 3;
    UNROLL for (int i = 0; i < 5; i++, power *= 3, values += 48) {
        const __m256i powers = _mm256_set1_epi16((short) power);
        accumulate_words_of(sums, even, powers, values);
        accumulate_words_of(other_sums, odd, powers, values + 16);
        accumulate_words_of(i % 2 ? sums : other_sums, sixteen, powers, values + 32);
    }
    accumulate_words_of(sums, last, _mm256_setr_epi16(3, 3, 3, 3, 9, 9, 9, 9, 27, 27, 27, 27, 81, 81, 81, 81), values);
    return _mm256_add_epi32(sums, other_sums);
}

template <int TYPE>
struct block_lanes {
    typedef __m256i vector;
};

// A block of each of four rows times the activations
template <int TYPE>
ALWAYS_INLINE void four_rows(__m256i sums[4], const char * const blocks[4], const column_parts & column, int64_t block) {
    UNROLL for (int row = 0; row < 4; row++)
        if constexpr (TYPE == TQ2_0)
            sums[row] = tq2_0_lanes(blocks[row], column.values + 256 * block);
        else
            sums[row] = tq1_0_lanes(blocks[row], (const int16_t *) (column.values + TQ1_0_PLACES * block));
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
