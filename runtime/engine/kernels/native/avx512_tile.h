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

ALWAYS_INLINE tile_floats floats_of(tile_integers sums) {
    return _mm512_cvtepi32_ps(sums);
}

}  // namespace
