// What all of x86 needs: loads, base-3 digits, transposed vectors, sums of lanes
#pragma once
#include <immintrin.h>
#include <stdint.h>
#include <string.h>
#include "compiler.h"

namespace {

ALWAYS_INLINE __m256i load(const void * address) {
    return _mm256_loadu_si256((const __m256i *) address);
}

ALWAYS_INLINE __m256i two_blocks(const char * first, const char * second) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *) first)),
                                   _mm_loadu_si128((const __m128i *) second), 1);
}

// Base-3 digits: a byte's first digit is byte * 3 >> 8, and the next one is that of byte * 3 modulo 256. All of it works on
// bytes minus 128, since comparisons are signed and 3 * 128 is 128 modulo 256.
ALWAYS_INLINE __m256i times_3(__m256i bytes) {
    return _mm256_add_epi8(bytes, _mm256_add_epi8(bytes, bytes));
}

ALWAYS_INLINE __m256i first_digit(__m256i bytes) {
    return _mm256_abs_epi8(_mm256_add_epi8(_mm256_cmpgt_epi8(bytes, _mm256_set1_epi8(85 - 128)),
                                           _mm256_cmpgt_epi8(bytes, _mm256_set1_epi8(170 - 128))));
}

// Prefetch the line at an address, one of BYTES that are asked for at the same time. Many lines go to the L2 cache: on a Zen 4,
// more than 24 arrive there up to twice as fast as in the L1 cache, fewer don't (docs/performance.md).
template <int64_t BYTES>
ALWAYS_INLINE void prefetch(const char * address) {
    _mm_prefetch(address, BYTES > 24 * 64 ? _MM_HINT_T1 : _MM_HINT_T0);
}

ALWAYS_INLINE int half_at(const char * address) {
    uint16_t bits;
    memcpy(&bits, address, 2);
    return bits;
}

ALWAYS_INLINE __m128 halves_of_four(const char * const places[4], int64_t offset) {
    __m128i halves = _mm_setzero_si128();
    halves = _mm_insert_epi16(halves, half_at(places[0] + offset), 0);
    halves = _mm_insert_epi16(halves, half_at(places[1] + offset), 1);
    halves = _mm_insert_epi16(halves, half_at(places[2] + offset), 2);
    halves = _mm_insert_epi16(halves, half_at(places[3] + offset), 3);
    return _mm_cvtph_ps(halves);
}

// Add an exact sum of four rows times both scales
ALWAYS_INLINE __m128 add_block(__m128 totals, __m128i exact, float column_scale, __m128 scales) {
    return _mm_fmadd_ps(_mm_mul_ps(_mm_cvtepi32_ps(exact), _mm_set1_ps(column_scale)), scales, totals);
}

ALWAYS_INLINE void transpose_8x8(__m256 v[8]) {
    __m256 pairs[8], fours[8];
    UNROLL for (int i = 0; i < 4; i++) {
        pairs[2 * i] = _mm256_unpacklo_ps(v[2 * i], v[2 * i + 1]);
        pairs[2 * i + 1] = _mm256_unpackhi_ps(v[2 * i], v[2 * i + 1]);
    }
    UNROLL for (int i = 0; i < 2; i++) {
        fours[4 * i] = _mm256_shuffle_ps(pairs[4 * i], pairs[4 * i + 2], 0x44);
        fours[4 * i + 1] = _mm256_shuffle_ps(pairs[4 * i], pairs[4 * i + 2], 0xee);
        fours[4 * i + 2] = _mm256_shuffle_ps(pairs[4 * i + 1], pairs[4 * i + 3], 0x44);
        fours[4 * i + 3] = _mm256_shuffle_ps(pairs[4 * i + 1], pairs[4 * i + 3], 0xee);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        v[i] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20);
        v[i + 4] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
    }
}

ALWAYS_INLINE __m256i add_pairs(__m256i a, __m256i b) {  // of neighbours in each half: a, a, b, b
    return _mm256_hadd_epi32(a, b);
}

// The sums of eight vectors' lanes
ALWAYS_INLINE __m256i add_lanes(const __m256i v[8]) {
    const __m256i low = add_pairs(add_pairs(v[0], v[1]), add_pairs(v[2], v[3]));
    const __m256i high = add_pairs(add_pairs(v[4], v[5]), add_pairs(v[6], v[7]));
    return _mm256_add_epi32(_mm256_permute2x128_si256(low, high, 0x20), _mm256_permute2x128_si256(low, high, 0x31));
}

}  // namespace
