// What x86_tiles.h wants of vectors of 512 bits
#pragma once
#define PANEL_ROWS 32
#define PANEL_COLUMNS 8
#define WORD_BYTES 4
#define GROUPS_AT_ONCE 2

namespace {

typedef __m512i tile_integers;
typedef __m512 tile_floats;

ALWAYS_INLINE tile_integers broadcast(int32_t value) {
    return _mm512_set1_epi32(value);
}

ALWAYS_INLINE tile_floats broadcast(float value) {
    return _mm512_set1_ps(value);
}

ALWAYS_INLINE tile_floats load_floats(const float * place) {
    return _mm512_loadu_ps(place);
}

ALWAYS_INLINE void store_floats(float * place, tile_floats values) {
    _mm512_storeu_ps(place, values);
}

ALWAYS_INLINE tile_floats multiply(tile_floats a, tile_floats b) {
    return _mm512_mul_ps(a, b);
}

ALWAYS_INLINE tile_floats multiply_add(tile_floats a, tile_floats b, tile_floats c) {
    return _mm512_fmadd_ps(a, b, c);
}

ALWAYS_INLINE tile_integers accumulate_tile(tile_integers sums, tile_integers codes, tile_integers values) {
    return _mm512_dpbusd_epi32(sums, codes, values);
}

ALWAYS_INLINE tile_integers codes_of_word(tile_integers word, int position) {
    return _mm512_and_si512(_mm512_srli_epi16(word, 2 * position), _mm512_set1_epi8(3));
}

ALWAYS_INLINE tile_floats floats_of(tile_integers sums) {
    return _mm512_cvtepi32_ps(sums);
}

// What x86_blocks_256.h and x86_k_rows.h want
ALWAYS_INLINE __m256i accumulate(__m256i sums, __m256i codes, __m256i values) {
    return _mm256_dpbusd_epi32(sums, codes, values);
}

ALWAYS_INLINE __m256i accumulate_words(__m256i sums, __m256i a, __m256i b) {
    return _mm256_dpwssd_epi32(sums, a, b);
}

// What x86_words.h wants: the vectors of rows that share a column's values
#define FEW_VECTORS(columns) 2

// What x86_k_words.h wants: how many columns are computed together, whether codes meet their factors as they are unpacked
#define CODES_COLUMNS 8
#define PARTS_COLUMNS 4
#define FACTORS_IN_BYTES true

ALWAYS_INLINE tile_integers six_bits(tile_integers low, tile_integers high, int position) {
    low = position < 2 ? low : _mm512_srli_epi16(low, 4);
    high = position < 2 ? _mm512_slli_epi16(high, 4 - 2 * position) : _mm512_srli_epi16(high, 2 * position - 4);
    const __m512i high_only = _mm512_and_si512(high, _mm512_set1_epi8(48));
    return _mm512_ternarylogic_epi32(_mm512_set1_epi8(15), low, high_only, 0xca);
}

ALWAYS_INLINE tile_integers as_bytes(tile_integers codes, tile_integers factors) {
    return _mm512_mullo_epi16(codes, factors);
}

ALWAYS_INLINE tile_integers add_word_products(tile_integers sums, tile_integers a, tile_integers b) {
    return _mm512_add_epi32(sums, _mm512_madd_epi16(a, b));
}

ALWAYS_INLINE tile_integers add_scaled(tile_integers sums, tile_integers exact, tile_integers factors) {
    return _mm512_add_epi32(sums, _mm512_mullo_epi32(exact, factors));
}

ALWAYS_INLINE tile_floats floats_of_integers(tile_integers sums) {
    return _mm512_cvtepi32_ps(sums);
}

ALWAYS_INLINE tile_integers put_codes(tile_integers word, tile_integers codes, int position) {
    return _mm512_or_si512(word, _mm512_slli_epi16(codes, 2 * position));
}

// Bytes of five base-3 digits: four as 2-bit codes, and the fifth
#ifdef LOOK_UP_DIGITS
ALWAYS_INLINE tile_integers four_digits(tile_integers packed, tile_integers & fifth) {
    fifth = look_up(packed, TABLES.fifth);
    return look_up(packed, TABLES.four);
}
#else
ALWAYS_INLINE tile_integers first_digit(tile_integers bytes) {
    const tile_integers one = _mm512_set1_epi8(1);
    const tile_integers digit = _mm512_maskz_mov_epi8(_mm512_cmpgt_epu8_mask(bytes, _mm512_set1_epi8(85)), one);
    return _mm512_mask_add_epi8(digit, _mm512_cmpgt_epu8_mask(bytes, _mm512_set1_epi8((char) 170)), digit, one);
}

ALWAYS_INLINE tile_integers four_digits(tile_integers bytes, tile_integers & fifth) {
    tile_integers four = first_digit(bytes);
    UNROLL for (int digit = 1; digit < 5; digit++) {
        bytes = _mm512_add_epi8(bytes, _mm512_add_epi8(bytes, bytes));
        const tile_integers code = first_digit(bytes);
        if (digit < 4)
            four = put_codes(four, code, digit);
        else
            fifth = code;
    }
    return four;
}
#endif

// What avx512_halves.h wants
#define HALVES_ROWS 4
#define HALVES_COLUMNS 6

typedef __m512 sixteen;

ALWAYS_INLINE sixteen zero_16(void) {
    return _mm512_setzero_ps();
}

ALWAYS_INLINE sixteen load_16(const float * place) {
    return _mm512_loadu_ps(place);
}

ALWAYS_INLINE sixteen widen_16(const char * halves) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) halves));
}

ALWAYS_INLINE sixteen multiply_add_16(sixteen a, sixteen b, sixteen c) {
    return _mm512_fmadd_ps(a, b, c);
}

ALWAYS_INLINE __m256 add_halves_of_16(sixteen lanes) {
    return _mm256_add_ps(_mm512_castps512_ps256(lanes), _mm512_extractf32x8_ps(lanes, 1));
}

}  // namespace
