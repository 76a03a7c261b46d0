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

ALWAYS_INLINE tile_floats floats_of(tile_integers sums) {
    return _mm256_cvtepi32_ps(lanes_of(sums));
}

}  // namespace
