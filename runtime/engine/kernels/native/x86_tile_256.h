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

// What x86_k_words.h wants: how many columns are computed together, whether codes meet their factors as they are unpacked
#define CODES_COLUMNS 4
#define PARTS_COLUMNS 4
#ifdef SUMS_OF_PAIRS
#define FACTORS_IN_BYTES false
#else
#define FACTORS_IN_BYTES true
#endif

ALWAYS_INLINE tile_integers six_bits(tile_integers low, tile_integers high, int position) {
    low = position < 2 ? low : _mm256_srli_epi16(low, 4);
    high = position < 2 ? _mm256_slli_epi16(high, 4 - 2 * position) : _mm256_srli_epi16(high, 2 * position - 4);
    return _mm256_or_si256(_mm256_and_si256(low, _mm256_set1_epi8(15)), _mm256_and_si256(high, _mm256_set1_epi8(48)));
}

ALWAYS_INLINE tile_integers as_bytes(tile_integers codes, tile_integers factors) {
    return FACTORS_IN_BYTES ? _mm256_mullo_epi16(codes, factors) : codes;
}

ALWAYS_INLINE tile_integers add_word_products(tile_integers sums, tile_integers a, tile_integers b) {
    return _mm256_add_epi32(sums, _mm256_madd_epi16(a, b));
}

ALWAYS_INLINE tile_integers add_scaled(tile_integers sums, tile_integers exact, tile_integers factors) {
#ifdef SUMS_OF_PAIRS
    return add_word_products(sums, exact, factors);
#else
    return _mm256_add_epi32(sums, _mm256_mullo_epi32(exact, factors));
#endif
}

ALWAYS_INLINE tile_floats floats_of_integers(tile_integers sums) {
    return _mm256_cvtepi32_ps(sums);
}

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
