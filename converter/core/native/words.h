/* What all loops share: numbers, vectors, and floats as words of the kind in which they are stored. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "these loops need a little-endian processor"
#endif

#define INLINE static inline __attribute__((always_inline))
#define EXPORT __attribute__((visibility("default")))

enum { BF16, F16, F32 };
enum { LANES = 16, LARGEST_GROUP = 256 };
enum { STRIP = 2048 }; /* values per pass: a multiple of every block size, few enough to stay in the cache */

#define INFINITE_BITS 0x7F800000u

/* If the nonzero magnitudes of a group are in LEAST..MOST and the largest is at most EXACT_RATIO times the smallest,
   every sum of them is exact in double, and a mean in float has a relative error below MARGIN. */
#define LEAST 1e-30f
#define MOST 1e30f
#define EXACT_RATIO 0x1p20f
#define MARGIN 0x1p-15f

/* SIMD vectors. */
typedef float Floats __attribute__((vector_size(4 * WIDTH)));
typedef int32_t Ints __attribute__((vector_size(4 * WIDTH)));
typedef float FourFloats __attribute__((vector_size(16)));
typedef int32_t FourInts __attribute__((vector_size(16)));
typedef double FourDoubles __attribute__((vector_size(32)));
typedef double Doubles __attribute__((vector_size(8 * WIDTH)));
typedef uint64_t ThirtyTwoBytes __attribute__((vector_size(32)));

INLINE float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE uint32_t to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* ---- 16-bit floats ---- */

INLINE float from_f16(uint32_t word) {
    uint32_t magnitude = word & 0x7FFF;
    uint32_t usual = (magnitude << 13) + (112u << 23); /* the exponent's bias is 127, not 15 */
    usual += magnitude >= 0x7C00 ? 112u << 23 : 0;     /* Inf or NaN */
    float tiny = (float)(int32_t)magnitude * 0x1p-24f;
    uint32_t bits = magnitude < 0x0400 ? to_bits(tiny) : usual;
    return from_bits(bits | (word & 0x8000) << 16);
}

/* Round a magnitude below 65520 to fp16, to nearest even. */
INLINE uint32_t to_f16(float magnitude) {
    uint32_t bits = to_bits(magnitude);
    uint32_t usual = ((bits + 0xFFF + (bits >> 13 & 1)) >> 13) - (112u << 10);
    /* Adding 0.5 rounds a value below 2**-14 to a multiple of 2**-24, the spacing of fp16's subnormals. */
    uint32_t tiny = to_bits(magnitude + 0.5f) - to_bits(0.5f);
    return bits < 0x38800000u ? tiny : usual;
}

INLINE float rounded_to_f16(float magnitude) {
    return magnitude < 65520 ? from_f16(to_f16(magnitude)) : INFINITY;
}

INLINE float read(const void *words, int kind, int64_t index) {
    if (kind == BF16)
        return from_bits((uint32_t)((const uint16_t *)words)[index] << 16);
    if (kind == F16)
        return from_f16(((const uint16_t *)words)[index]);
    return ((const float *)words)[index];
}

INLINE const void *from_index(const void *words, int kind, int64_t index) {
    return (const char *)words + index * (kind == F32 ? 4 : 2);
}

/* Compile a loop once per kind of words. */
#define FOR_KIND(kind, loop, ...)          \
    do {                                   \
        if ((kind) == BF16)                \
            return loop(BF16, __VA_ARGS__); \
        if ((kind) == F16)                 \
            return loop(F16, __VA_ARGS__);  \
        return loop(F32, __VA_ARGS__);      \
    } while (0)

INLINE int64_t widen_kind(int kind, const void *restrict words, int64_t n, float *restrict values) {
    uint32_t largest = 0;
    for (int64_t index = 0; index < n; index++) {
        float value = read(words, kind, index);
        uint32_t magnitude = to_bits(value) & 0x7FFFFFFF;
        largest = magnitude > largest ? magnitude : largest;
        values[index] = value;
    }
    return largest >= INFINITE_BITS;
}

/* Convert words to float32; returns whether any value isn't finite. */
EXPORT int64_t KERNEL(widen)(const void *words, int64_t kind, int64_t n, float *values) {
    FOR_KIND(kind, widen_kind, words, n, values);
}

INLINE int64_t narrow_kind(int kind, const void *restrict words, int64_t n, uint16_t *restrict halves) {
    uint32_t largest = 0;
    for (int64_t index = 0; index < n; index++) {
        uint32_t bits = to_bits(read(words, kind, index)), magnitude = bits & 0x7FFFFFFF;
        largest = magnitude > largest ? magnitude : largest;
        halves[index] = (uint16_t)(to_f16(from_bits(magnitude)) | (bits >> 16 & 0x8000));
    }
    return largest;
}

/* Convert words to fp16; returns the bits of the largest magnitude as float32. */
EXPORT int64_t KERNEL(narrow)(const void *words, int64_t kind, int64_t n, uint16_t *halves) {
    FOR_KIND(kind, narrow_kind, words, n, halves);
}
