// What x86_tiles.h wants of vectors of 256 bits. The including file has defined accumulate() and lanes_of().
#pragma once
#define GROUPS_AT_ONCE 1

namespace {

typedef __m256i tile_integers;
typedef __m256 tile_floats;

ALWAYS_INLINE tile_integers broadcast(int32_t value) {
    return _mm256_set1_epi32(value);
}

ALWAYS_INLINE tile_floats broadcast(float value) {
    return _mm256_set1_ps(value);
}

ALWAYS_INLINE tile_floats load_floats(const float * place) {
    return _mm256_loadu_ps(place);
}

ALWAYS_INLINE void store_floats(float * place, tile_floats values) {
    _mm256_storeu_ps(place, values);
}

ALWAYS_INLINE tile_floats multiply(tile_floats a, tile_floats b) {
    return _mm256_mul_ps(a, b);
}

ALWAYS_INLINE tile_floats multiply_add(tile_floats a, tile_floats b, tile_floats c) {
    return _mm256_fmadd_ps(a, b, c);
}

ALWAYS_INLINE tile_integers accumulate_tile(tile_integers sums, tile_integers codes, tile_integers values) {
    return accumulate(sums, codes, values);
}

ALWAYS_INLINE tile_integers codes_of_word(tile_integers word, int position) {
    return _mm256_and_si256(_mm256_srli_epi16(word, 2 * position), _mm256_set1_epi8(3));
}

ALWAYS_INLINE tile_floats floats_of(tile_integers sums) {
    return _mm256_cvtepi32_ps(lanes_of(sums));
}

// What x86_words.h wants: the vectors of rows that share a column's values
#define FEW_VECTORS(columns) ((columns) > 4 ? 1 : 2)

ALWAYS_INLINE tile_integers put_codes(tile_integers word, tile_integers codes, int position) {
    return _mm256_or_si256(word, _mm256_slli_epi16(codes, 2 * position));
}

// Bytes of five base-3 digits: four as 2-bit codes, and the fifth
ALWAYS_INLINE tile_integers four_digits(tile_integers packed, tile_integers & fifth) {
    __m256i bytes = _mm256_xor_si256(packed, _mm256_set1_epi8(-128));
    __m256i four = first_digit(bytes);
    UNROLL for (int digit = 1; digit < 4; digit++) {
        bytes = times_3(bytes);
        four = put_codes(four, first_digit(bytes), digit);
    }
    fifth = first_digit(times_3(bytes));
    return four;
}

}  // namespace
