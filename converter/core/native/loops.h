/* The loops where a conversion spends its time. Each gives the same bytes as the numpy code beside its call, which
   explains the rule; the tests compare both. Python calls them through ctypes, which releases the GIL.

   A function returns a count or a magnitude, as its comment says, else 0. Arrays are contiguous and hold `n_groups`
   groups of `group` values. Floats are words of the kind in which they are stored. Build with -ffp-contract=off: a
   fused multiply-add would round differently. The compiler is GCC or Clang.

   One file per processor level includes this header and defines KERNEL(name), a function's name at that level, and
   WIDTH, the number of 32-bit values in a register. */

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

/* ---- methods: quantize floats to codes and scales ---- */

/* Each code is sign(value) if the magnitude exceeds the threshold, else 0; the threshold is 0 or more. */
INLINE void quantize_by_threshold(int kind, const void *restrict words, int64_t group, float threshold,
                                  int8_t *restrict codes) {
    if (kind == BF16) { /* words compare like the magnitudes they hold */
        const uint16_t *narrow_words = words;
        int16_t limit = (int16_t)(to_bits(threshold) >> 16);
        for (int64_t index = 0; index < group; index++) {
            int16_t word = (int16_t)narrow_words[index];
            int16_t beyond = (int16_t)(word & 0x7FFF) > limit;
            codes[index] = (int8_t)(word < 0 ? -beyond : beyond);
        }
        return;
    }
    for (int64_t index = 0; index < group; index++) {
        float value = read(words, kind, index);
        codes[index] = (int8_t)((value > threshold) - (value < -threshold));
    }
}

INLINE float folded(float *sums) {
    for (int half = LANES / 2; half; half /= 2)
        for (int lane = 0; lane < half; lane++)
            sums[lane] += sums[half + lane];
    return sums[0];
}

INLINE int64_t absmean_kind(int kind, const void *restrict words, int64_t n_groups, int64_t group, float least,
                            int8_t *restrict codes, float *restrict means) {
    for (int64_t number = 0; number < n_groups; number++) {
        const void *values = from_index(words, kind, number * group);
        float sums[LANES] = {0};
        for (int64_t step = 0; step < group; step += LANES)
            for (int lane = 0; lane < LANES; lane++)
                sums[lane] += fabsf(read(values, kind, step + lane));
        float mean = folded(sums) / (float)group;
        means[number] = mean;
        quantize_by_threshold(kind, values, group, mean > least ? mean / 2 : INFINITY, codes + number * group);
    }
    return 0;
}

/* The group is a multiple of LANES; all codes are 0 in groups whose mean is `least` or less. */
EXPORT int64_t KERNEL(absmean)(const void *words, int64_t kind, int64_t n_groups, int64_t group, float least,
                               int8_t *codes, float *means) {
    FOR_KIND(kind, absmean_kind, words, n_groups, group, least, codes, means);
}

typedef struct {
    float low, high; /* the best threshold is between them */
    double sum;      /* sum of the magnitudes above `high` */
    int n_above, n_between;
} Bracket;

INLINE Floats load(const float *values) {
    Floats loaded;
    memcpy(&loaded, values, sizeof loaded);
    return loaded;
}

/* Return the values where the mask is -1, 0 elsewhere. */
INLINE Floats kept_by(Ints mask, Floats values) {
    return (Floats)((Ints)values & mask);
}

INLINE float sum_of(Floats lanes) {
    FourFloats parts[WIDTH / 4], sum = {0};
    memcpy(parts, &lanes, sizeof lanes);
    for (int part = 0; part < WIDTH / 4; part++)
        sum += parts[part];
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

INLINE int count_of(Ints lanes) {
    FourInts parts[WIDTH / 4], sum = {0};
    memcpy(parts, &lanes, sizeof lanes);
    for (int part = 0; part < WIDTH / 4; part++)
        sum += parts[part];
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* A threshold, the number of magnitudes above it, and half their mean. */
typedef struct {
    float threshold, half_mean;
    int n_above;
} Above;

/* Fill in both in one pass, each in two independent sums, so that additions don't wait for each other. */
INLINE void look_above(const float *restrict magnitudes, int64_t group, Above *low, Above *high) {
    Floats sums[4] = {{0}};
    Ints counts[4] = {{0}};
    for (int64_t index = 0; index < group; index += 2 * WIDTH)
        for (int which = 0; which < 4; which++) {
            Floats values = load(magnitudes + index + which / 2 * WIDTH);
            Ints above = values > (which % 2 ? high->threshold : low->threshold);
            sums[which] += kept_by(above, values);
            counts[which] -= above;
        }
    low->n_above = count_of(counts[0] + counts[2]);
    high->n_above = count_of(counts[1] + counts[3]);
    low->half_mean = sum_of(sums[0] + sums[2]) / (float)low->n_above / 2;
    high->half_mean = sum_of(sums[1] + sums[3]) / (float)high->n_above / 2;
}

/* The best threshold is a fixed point: it equals half the mean of the magnitudes above it. That half mean never falls
   as the threshold grows, so iterating from 0 upwards and from half the largest magnitude downwards encloses all fixed
   points. Stop when neither end changes, or when no magnitude is left between them. If sums could be rounded, return
   the whole range. */
INLINE Bracket bracketed(const float *restrict magnitudes, int64_t group, float smallest, float largest) {
    Bracket bracket = {0, largest, 0, 0, (int)group};
    if (smallest < LEAST || largest > MOST || largest > smallest * EXACT_RATIO)
        return bracket;
    Above low = {0, 0, 0}, high = {largest / 2, 0, 0};
    int n_low, n_high;
    look_above(magnitudes, group, &low, &high);
    do {
        n_low = low.n_above;
        n_high = high.n_above;
        low.threshold = low.half_mean * (1 - MARGIN);
        high.threshold = high.half_mean * (1 + MARGIN);
        look_above(magnitudes, group, &low, &high);
    } while (low.n_above != high.n_above && (low.n_above != n_low || high.n_above != n_high));
    Doubles sums = {0};
    for (int64_t index = 0; index < group; index += WIDTH) {
        Floats values = load(magnitudes + index);
        sums += __builtin_convertvector(kept_by(values > high.threshold, values), Doubles);
    }
    FourDoubles parts[WIDTH / 4], sum = {0};
    memcpy(parts, &sums, sizeof sums);
    for (int part = 0; part < WIDTH / 4; part++)
        sum += parts[part];
    bracket.sum = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    bracket.low = low.threshold;
    bracket.high = high.threshold;
    bracket.n_above = high.n_above;
    bracket.n_between = low.n_above - high.n_above;
    return bracket;
}

/* Sort the magnitudes inside the bracket in descending order, and try every number of kept values there. */
INLINE float best_scale(const float *restrict magnitudes, int64_t group, Bracket bracket) {
    double between[LARGEST_GROUP + 1], kept = bracket.sum, best_mean = 0, best_gain = 0, smallest = INFINITY;
    int n_between = 0, n_kept = bracket.n_above;
    for (int64_t step = 0; step < group && n_between < bracket.n_between; step += 2 * LANES) {
        Ints inside = {0};
        for (int64_t index = step; index < step + 2 * LANES; index += WIDTH) {
            Floats values = load(magnitudes + index);
            inside |= (values > bracket.low) & (values <= bracket.high);
        }
        if (!count_of(inside))
            continue;
        for (int64_t index = step; index < step + 2 * LANES; index++) { /* no branch, since it would be mispredicted */
            between[n_between] = magnitudes[index];
            n_between += (magnitudes[index] > bracket.low) & (magnitudes[index] <= bracket.high);
        }
    }
    for (int number = 1; number < n_between; number++) {
        double magnitude = between[number];
        int place = number;
        for (; place > 0 && between[place - 1] < magnitude; place--)
            between[place] = between[place - 1];
        between[place] = magnitude;
    }
    between[n_between] = bracket.low;
    for (int place = 0; place <= n_between; place++) {
        double mean = n_kept ? kept / n_kept : 0;
        if (smallest > mean / 2 && mean / 2 >= between[place] && kept * mean > best_gain) {
            best_mean = mean;
            best_gain = kept * mean;
        }
        smallest = between[place];
        kept += smallest;
        n_kept++;
    }
    return (float)best_mean;
}

INLINE int64_t mse_kind(int kind, const void *restrict words, int64_t n_groups, int64_t group, int8_t *restrict codes,
                        float *restrict scales) {
    float magnitudes[LARGEST_GROUP];
    for (int64_t number = 0; number < n_groups; number++) {
        const void *values = from_index(words, kind, number * group);
        uint32_t largest = 0, smallest = UINT32_MAX; /* `smallest` is that of the nonzero magnitudes */
        for (int64_t index = 0; index < group; index++) {
            uint32_t magnitude = to_bits(read(values, kind, index)) & 0x7FFFFFFF;
            magnitudes[index] = from_bits(magnitude);
            largest = magnitude > largest ? magnitude : largest;
            smallest = magnitude - 1 < smallest ? magnitude - 1 : smallest; /* 0 - 1 wraps to the largest number */
        }
        if (largest >= INFINITE_BITS) {
            scales[number] = NAN;
            continue;
        }
        Bracket bracket = bracketed(magnitudes, group, from_bits(smallest + 1), from_bits(largest));
        float scale = rounded_to_f16(best_scale(magnitudes, group, bracket));
        scales[number] = scale;
        quantize_by_threshold(kind, values, group, scale > 0 ? scale / 2 : INFINITY, codes + number * group);
    }
    return 0;
}

/* The group is a multiple of 2 * LANES and at most LARGEST_GROUP. Scales are rounded to fp16; the scale of a group with
   a NaN or Inf is NaN. */
EXPORT int64_t KERNEL(mse)(const void *words, int64_t kind, int64_t n_groups, int64_t group, int8_t *codes,
                           float *scales) {
    FOR_KIND(kind, mse_kind, words, n_groups, group, codes, scales);
}

/* ---- grids: floats that are already ternary ---- */

/* A word without its sign bit; such numbers compare like the magnitudes. */
INLINE uint32_t magnitude_word(int kind, const void *words, int64_t index) {
    return kind == F32 ? ((const uint32_t *)words)[index] & 0x7FFFFFFF : ((const uint16_t *)words)[index] & 0x7FFFu;
}

INLINE float from_word(int kind, uint32_t word) {
    return kind == BF16 ? from_bits(word << 16) : kind == F16 ? from_f16(word) : from_bits(word);
}

INLINE uint32_t largest_word(int kind, const void *restrict words, int64_t group) {
    uint32_t largest = 0;
    for (int64_t index = 0; index < group; index++) {
        uint32_t magnitude = magnitude_word(kind, words, index);
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest;
}

INLINE int64_t largest_kind(int kind, const void *restrict words, int64_t n_groups, int64_t group,
                            float *restrict scales, int64_t *restrict n_zeros) {
    int64_t n_bad_groups = 0;
    for (int64_t number = 0; number < n_groups; number++) {
        const void *values = from_index(words, kind, number * group);
        uint32_t largest = largest_word(kind, values, group), zeros = 0, others = 0;
        for (int64_t index = 0; index < group; index++) {
            uint32_t magnitude = magnitude_word(kind, values, index);
            zeros += magnitude == 0;
            others += (magnitude != 0) & (magnitude != largest);
        }
        scales[number] = from_word(kind, largest);
        *n_zeros += zeros;
        n_bad_groups += others != 0;
    }
    return n_bad_groups;
}

/* Fill in the largest magnitude of each group and count zeros; returns how many groups hold another magnitude. */
EXPORT int64_t KERNEL(largest)(const void *words, int64_t kind, int64_t n_groups, int64_t group, float *scales,
                       int64_t *n_zeros) {
    FOR_KIND(kind, largest_kind, words, n_groups, group, scales, n_zeros);
}

INLINE int64_t on_grid_kind(int kind, const void *restrict words, int64_t n_groups, int64_t group,
                            float *restrict scales, int8_t *restrict codes) {
    int64_t n_outliers = 0;
    for (int64_t number = 0; number < n_groups; number++) {
        const void *values = from_index(words, kind, number * group);
        uint32_t largest = largest_word(kind, values, group), outliers = 0;
        scales[number] = from_word(kind, largest);
        for (int64_t index = 0; index < group; index++) {
            uint32_t magnitude = magnitude_word(kind, values, index);
            int negative = kind == F32 ? ((const int32_t *)values)[index] < 0 : ((const int16_t *)values)[index] < 0;
            int nonzero = magnitude != 0;
            outliers += nonzero & (magnitude != largest);
            codes[number * group + index] = (int8_t)(negative ? -nonzero : nonzero);
        }
        n_outliers += outliers;
    }
    return n_outliers;
}

/* Fill in the largest magnitude and the signs of each group; returns how many values have another magnitude. */
EXPORT int64_t KERNEL(on_grid)(const void *words, int64_t kind, int64_t n_groups, int64_t group, float *scales,
                               int8_t *codes) {
    FOR_KIND(kind, on_grid_kind, words, n_groups, group, scales, codes);
}

/* Fill in the largest relative error of rounding to fp16 among the values above 0. */
EXPORT int64_t KERNEL(fp16_error)(const float *restrict values, int64_t n, float *restrict error) {
    uint32_t most = 0; /* the bits of a float; bits of magnitudes compare like the magnitudes */
    for (int64_t index = 0; index < n; index++) {
        float value = values[index];
        uint32_t rounded = to_bits(from_f16(to_f16(fabsf(value))));
        uint32_t overflows = -(uint32_t)(value >= 65520), counts = -(uint32_t)(value > 0); /* masks, not branches */
        float stored = from_bits((rounded & ~overflows) | (INFINITE_BITS & overflows));
        uint32_t bits = to_bits(fabsf(stored - value) / value) & counts;
        most = bits > most ? bits : most;
    }
    *error = from_bits(most);
    return 0;
}

EXPORT int64_t KERNEL(dequantize)(const int8_t *restrict codes, const float *restrict scales, int64_t n_groups,
                                  int64_t group, float *restrict values) {
    for (int64_t number = 0; number < n_groups; number++)
        for (int64_t index = number * group; index < (number + 1) * group; index++)
            values[index] = (float)codes[index] * scales[number];
    return 0;
}

/* values += scaling * (left . right), each value's products added in order; left is (n_rows, rank), right (rank,
   n_columns). */
EXPORT int64_t KERNEL(add_product)(const float *restrict left, const float *restrict right, int64_t n_rows, int64_t rank,
                                   int64_t n_columns, float scaling, float *restrict values) {
    enum { BLOCK = 256 };
    float sums[BLOCK];
    for (int64_t row = 0; row < n_rows; row++)
        for (int64_t first = 0; first < n_columns; first += BLOCK) {
            int64_t n = n_columns - first < BLOCK ? n_columns - first : BLOCK;
            memset(sums, 0, sizeof sums);
            for (int64_t place = 0; place < rank; place++) {
                const float *factors = right + place * n_columns + first;
                float factor = left[row * rank + place];
                for (int64_t column = 0; column < n; column++)
                    sums[column] += factor * factors[column];
            }
            float *found = values + row * n_columns + first;
            for (int64_t column = 0; column < n; column++)
                found[column] += sums[column] * scaling;
        }
    return 0;
}

/* ---- codes: unpacked, or in the packings of checkpoints ---- */

enum { CODES, BASE3, FOUR_ROWS, FOURS, QUARTERS };
enum { FOURS_GROUP = 128, FOURS_HEAD = 2, FOURS_BYTES = 34 }; /* columns; bytes before their codes, and in all */

#define EACH_BYTE 0x0101010101010101u

/* Bits `shift` and `shift` + 1 of each byte are code + 1; returns nonzero if there is an invalid code. */
INLINE uint64_t unpack_four_rows(const uint8_t *restrict stored, int shift, int64_t n, int8_t *restrict codes) {
    uint64_t invalid = 0;
    int64_t n_whole = n / 8 * 8;
    for (int64_t index = 0; index < n_whole; index += 8) {
        uint64_t eight;
        memcpy(&eight, stored + index, 8);
        eight = eight >> shift & 3 * EACH_BYTE;
        invalid |= eight & eight >> 1 & EACH_BYTE;
        eight = ((eight | 0x80 * EACH_BYTE) - EACH_BYTE) ^ 0x80 * EACH_BYTE; /* minus 1, byte by byte */
        memcpy(codes + index, &eight, 8);
    }
    for (int64_t index = n_whole; index < n; index++) {
        int digit = stored[index] >> shift & 3;
        invalid |= digit == 3;
        codes[index] = (int8_t)(digit - 1);
    }
    return invalid;
}

/* The base-3 digits of a byte, lowest first, are four codes + 1; returns nonzero if a byte is invalid (above 80). */
INLINE uint64_t unpack_base3(const uint8_t *restrict stored, int64_t n, int8_t *restrict codes) {
    uint32_t invalid = 0;
    for (int64_t index = 0; index < n / 4; index++) {
        uint32_t byte = stored[index], ninth = byte * 57 >> 9;
        uint32_t pairs = byte + ninth * ((1 << 16) - 9); /* two digits each: the rest below, the ninth above */
        uint32_t digits = pairs + (pairs * 11 >> 5 & 0x00030003) * ((1 << 8) - 3); /* a digit in each byte */
        uint32_t four = ((digits | 0x80808080u) - 0x01010101u) ^ 0x80808080u;      /* minus 1, byte by byte */
        memcpy(codes + 4 * index, &four, 4);
        invalid |= byte > 80;
    }
    return invalid;
}

/* Bits 2i and 2i + 1 of a byte are the code + 1 of the i-th of four neighbours, in blocks of FOURS_GROUP columns. */
INLINE void unpack_fours(const uint8_t *restrict stored, int64_t n, int8_t *restrict codes) {
    for (int64_t number = 0; number < n / FOURS_GROUP; number++) {
        const uint8_t *packed = stored + number * FOURS_BYTES + FOURS_HEAD;
        for (int byte = 0; byte < FOURS_GROUP / 4; byte++) {
            uint32_t four = packed[byte];
            four = (four | four << 6 | four << 12 | four << 18) & 0x03030303u;     /* a digit in each byte */
            four = ((four | 0x80808080u) - 0x01010101u) ^ 0x80808080u;             /* minus 1, byte by byte */
            memcpy(codes + number * FOURS_GROUP + 4 * byte, &four, 4);
        }
    }
}

/* Bits 6 - 2i and 7 - 2i of byte p of 32 are the code + 1 of column 32i + p; returns nonzero if a code is invalid. */
INLINE uint64_t unpack_quarters(const uint8_t *restrict stored, int64_t n, int8_t *restrict codes) {
    uint64_t invalid = 0;
    for (int64_t start = 0; start < n; start += 128)
        for (int quarter = 0; quarter < 4; quarter++)
            invalid |= unpack_four_rows(stored + start / 4, 6 - 2 * quarter, 32, codes + start + 32 * quarter);
    return invalid;
}

/* Fill in the scales, fp16 in the first bytes of each of `n_blocks` blocks of FOURS; returns whether a code is 2. */
EXPORT int64_t KERNEL(look_at_fours)(const uint8_t *restrict stored, int64_t n_blocks, float *restrict scales) {
    uint64_t high = 0;
    for (int64_t number = 0; number < n_blocks; number++) {
        const uint8_t *block = stored + number * FOURS_BYTES;
        uint64_t eights[FOURS_GROUP / 32];
        uint16_t half;
        memcpy(&half, block, FOURS_HEAD);
        memcpy(eights, block + FOURS_HEAD, sizeof eights);
        scales[number] = from_f16(half);
        for (int index = 0; index < FOURS_GROUP / 32; index++)
            high |= eights[index] & eights[index] >> 1 & 0x55 * EACH_BYTE;
    }
    return high != 0;
}

/* ---- codecs: pack codes into blocks of `block_bytes`, and unpack them; put_scales writes the scales ---- */

/* 2 bits per code in 64 bytes: TQ2_0, and Q2_K where its scales are 1. */
INLINE void pack_pairs(const int8_t *restrict codes, int64_t n_blocks, uint8_t *restrict blocks, int64_t block_bytes) {
    for (int64_t half = 0; half < 2 * n_blocks; half++) {
        const int8_t *trits = codes + half * 128;
        uint8_t *packed = blocks + half / 2 * block_bytes + half % 2 * 32;
        for (int byte = 0; byte < 32; byte++) {
            int low = (trits[byte] + 1) | (trits[byte + 32] + 1) << 2;
            packed[byte] = (uint8_t)(low | (trits[byte + 64] + 1) << 4 | (trits[byte + 96] + 1) << 6);
        }
    }
}

/* The same from the packing FOUR_ROWS: it holds code + 1 in pairs of bits too, so the pairs only move. */
INLINE uint64_t four_rows_to_pairs(const uint8_t *restrict stored, int shift, int64_t n_blocks,
                                   uint8_t *restrict blocks, int64_t block_bytes) {
    ThirtyTwoBytes invalid = {0};
    for (int64_t half = 0; half < 2 * n_blocks; half++) {
        ThirtyTwoBytes pairs = {0};
        for (int place = 0; place < 4; place++) {
            ThirtyTwoBytes digits;
            memcpy(&digits, stored + half * 128 + place * 32, 32);
            pairs |= (digits >> shift & 3 * EACH_BYTE) << 2 * place;
        }
        invalid |= pairs & pairs >> 1 & 0x55 * EACH_BYTE;
        memcpy(blocks + half / 2 * block_bytes + half % 2 * 32, &pairs, 32);
    }
    return invalid[0] | invalid[1] | invalid[2] | invalid[3];
}

/* The same from the packing QUARTERS, which has the four codes of a byte in the opposite order. */
INLINE uint64_t quarters_to_pairs(const uint8_t *restrict stored, int64_t n_blocks, uint8_t *restrict blocks,
                                  int64_t block_bytes) {
    ThirtyTwoBytes invalid = {0};
    for (int64_t half = 0; half < 2 * n_blocks; half++) {
        ThirtyTwoBytes pairs;
        memcpy(&pairs, stored + half * 32, 32);
        pairs = (pairs & 0x0F * EACH_BYTE) << 4 | (pairs >> 4 & 0x0F * EACH_BYTE);
        pairs = (pairs & 0x33 * EACH_BYTE) << 2 | (pairs >> 2 & 0x33 * EACH_BYTE);
        invalid |= pairs & pairs >> 1 & 0x55 * EACH_BYTE;
        memcpy(blocks + half / 2 * block_bytes + half % 2 * 32, &pairs, 32);
    }
    return invalid[0] | invalid[1] | invalid[2] | invalid[3];
}

/* Q2_0: 2 bits per code, four neighbours in a byte. */
INLINE void pack_fours(const int8_t *restrict codes, int64_t n_blocks, uint8_t *restrict blocks, int64_t block_bytes) {
    for (int64_t number = 0; number < n_blocks; number++) {
        for (int byte = 0; byte < 16; byte++) {
            uint32_t four;
            memcpy(&four, codes + number * 64 + 4 * byte, 4);
            four = ((four & 0x7F7F7F7Fu) + 0x01010101u) ^ (four & 0x80808080u); /* plus 1, byte by byte */
            blocks[number * block_bytes + byte] = (uint8_t)(four * 0x01041040u >> 24); /* from bit 8k to bit 2k */
        }
    }
}

/* The same from at most STRIP codes in the packing BASE3. The digits at bits 0, 2, 4 and 6 are
   byte + byte / 3 + 4 * (byte / 9) + 16 * (byte / 27): each digit d_k of weight 3**k then counts 4**k times. */
INLINE uint64_t base3_to_fours(const uint8_t *restrict stored, int64_t n_blocks, uint8_t *restrict blocks,
                               int64_t block_bytes) {
    uint8_t fours[STRIP / 4], most = 0;
    for (int64_t index = 0; index < n_blocks * 16; index++) {
        uint8_t digits = stored[index];
        uint16_t third = (uint16_t)(digits * 171) >> 9, ninth = (uint16_t)(digits * 57) >> 9;
        uint16_t last = (uint16_t)(digits * 19) >> 9;
        most = digits > most ? digits : most;
        fours[index] = (uint8_t)(digits + third + 4 * ninth + 16 * last);
    }
    for (int64_t number = 0; number < n_blocks; number++)
        memcpy(blocks + number * block_bytes, fours + number * 16, 16);
    return most > 80;
}

/* The same from the packing FOURS, which has the same bytes for twice as many columns. */
INLINE void fours_to_fours(const uint8_t *restrict stored, int64_t n_blocks, uint8_t *restrict blocks,
                           int64_t block_bytes) {
    for (int64_t number = 0; number < n_blocks; number += 2) {
        const uint8_t *packed = stored + number / 2 * FOURS_BYTES + FOURS_HEAD;
        memcpy(blocks + number * block_bytes, packed, 16);
        memcpy(blocks + (number + 1) * block_bytes, packed + 16, 16);
    }
}

/* Q4_0: nibbles of code + 8. */
INLINE void pack_nibbles(const int8_t *restrict codes, int64_t n_blocks, uint8_t *restrict blocks,
                         int64_t block_bytes) {
    for (int64_t number = 0; number < n_blocks; number++) {
        const int8_t *trits = codes + number * 32;
        uint8_t *packed = blocks + number * block_bytes;
        for (int byte = 0; byte < 16; byte++)
            packed[byte] = (uint8_t)((trits[byte] + 8) | (trits[byte + 16] + 8) << 4);
    }
}

/* Combine a section's digits into one base-3 number per byte, the first digit highest. */
INLINE void add_digits(const int8_t *restrict codes, int n_digits, int n_bytes, uint16_t *restrict numbers) {
    for (int byte = 0; byte < n_bytes; byte++)
        numbers[byte] = 0;
    for (int digit = 0; digit < 5; digit++)
        for (int byte = 0; byte < n_bytes; byte++)
            numbers[byte] = (uint16_t)(numbers[byte] * 3 + (digit < n_digits ? codes[digit * n_bytes + byte] + 1 : 0));
}

/* TQ1_0: three sections of base-3 digits; a byte is its number * 256 / 243, rounded up. */
INLINE void pack_base3(const int8_t *restrict codes, int64_t n_blocks, uint8_t *restrict blocks, int64_t block_bytes) {
    for (int64_t number = 0; number < n_blocks; number++) {
        uint16_t numbers[52];
        add_digits(codes + number * 256, 5, 32, numbers);
        add_digits(codes + number * 256 + 160, 5, 16, numbers + 32);
        add_digits(codes + number * 256 + 240, 4, 4, numbers + 48);
        for (int byte = 0; byte < 52; byte++)
            blocks[number * block_bytes + byte] = (uint8_t)((uint16_t)(numbers[byte] * 256 + 242) / 243);
    }
}

typedef void Pack(const int8_t *restrict codes, int64_t n_blocks, uint8_t *restrict blocks, int64_t block_bytes);

INLINE int64_t pack_rows(int packing, Pack pack, int block, const uint8_t *restrict stored, int64_t n_stored,
                         int64_t stored_bytes, const int64_t *restrict wanted, int64_t n_rows, int64_t n_columns,
                         uint8_t *restrict blocks, int64_t block_bytes) {
    uint64_t invalid = 0;
    for (int64_t number = 0; number < n_rows; number++) {
        const uint8_t *row = stored + wanted[number] % n_stored * stored_bytes;
        int shift = (int)(wanted[number] / n_stored * 2);
        for (int64_t column = 0; column < n_columns; column += STRIP) {
            int64_t n = n_columns - column < STRIP ? n_columns - column : STRIP;
            if (packing == BASE3 && pack == pack_fours) {
                invalid |= base3_to_fours(row + column / 4, n / block, blocks, block_bytes);
            } else if (packing == FOUR_ROWS && pack == pack_pairs) {
                invalid |= four_rows_to_pairs(row + column, shift, n / block, blocks, block_bytes);
            } else if (packing == FOURS && pack == pack_fours) {
                fours_to_fours(row + column / FOURS_GROUP * FOURS_BYTES, n / block, blocks, block_bytes);
            } else if (packing == FOURS) {
                int8_t strip[STRIP];
                unpack_fours(row + column / FOURS_GROUP * FOURS_BYTES, n, strip);
                pack(strip, n / block, blocks, block_bytes);
            } else if (packing == QUARTERS && pack == pack_pairs) {
                invalid |= quarters_to_pairs(row + column / 4, n / block, blocks, block_bytes);
            } else if (packing == QUARTERS) {
                int8_t strip[STRIP];
                invalid |= unpack_quarters(row + column / 4, n, strip);
                pack(strip, n / block, blocks, block_bytes);
            } else if (packing == CODES) {
                pack((const int8_t *)row + column, n / block, blocks, block_bytes);
            } else {
                int8_t strip[STRIP];
                invalid |= packing == BASE3 ? unpack_base3(row + column / 4, n, strip)
                                            : unpack_four_rows(row + column, shift, n, strip);
                pack(strip, n / block, blocks, block_bytes);
            }
            blocks += n / block * block_bytes;
        }
    }
    return invalid != 0;
}

/* Pack the wanted rows of `n_stored` rows (FOUR_ROWS: of 4 * n_stored); `blocks` points to the first block's codes.
   Returns whether there is an invalid code; FOURS has none: which types hold a code 2 is the plan's to know. */
#define PACK(name, pack, block)                                                                                \
    EXPORT int64_t KERNEL(name)(int64_t packing, const uint8_t *stored, int64_t n_stored, int64_t stored_bytes, \
                                const int64_t *wanted, int64_t n_rows, int64_t n_columns, uint8_t *blocks,      \
                                int64_t block_bytes) {                                                          \
        return pack_rows((int)packing, pack, block, stored, n_stored, stored_bytes, wanted, n_rows, n_columns,  \
                         blocks, block_bytes);                                                                  \
    }

PACK(pack_tq1_0, pack_base3, 256)
PACK(pack_tq2_0, pack_pairs, 256)
PACK(pack_q2_0, pack_fours, 64)
PACK(pack_q4_0, pack_nibbles, 32)

/* Write each scale as fp16 into `repeat` blocks, at `offset`; returns the bits of the largest magnitude as float32. */
EXPORT int64_t KERNEL(put_scales)(const float *restrict scales, int64_t n_scales, int64_t repeat,
                                  uint8_t *restrict blocks, int64_t block_bytes, int64_t offset) {
    uint32_t largest = 0;
    for (int64_t start = 0; start < n_scales; start += STRIP) {
        int64_t n = n_scales - start < STRIP ? n_scales - start : STRIP;
        uint16_t halves[STRIP];
        uint32_t most = (uint32_t)narrow_kind(F32, scales + start, n, halves);
        largest = most > largest ? most : largest;
        for (int64_t number = 0; number < n; number++)
            for (int64_t block = 0; block < repeat; block++)
                memcpy(blocks + ((start + number) * repeat + block) * block_bytes + offset, halves + number, 2);
    }
    return largest;
}

/* Returns how many bytes hold an invalid code. */
EXPORT int64_t KERNEL(unpack_pairs)(const uint8_t *restrict blocks, int64_t n_blocks, int64_t block_bytes,
                            int8_t *restrict codes) {
    int64_t n_invalid = 0;
    for (int64_t half = 0; half < 2 * n_blocks; half++) {
        const uint8_t *packed = blocks + half / 2 * block_bytes + half % 2 * 32;
        int8_t *trits = codes + half * 128;
        int invalid = 0;
        for (int byte = 0; byte < 32; byte++) {
            invalid += (packed[byte] & packed[byte] >> 1 & 0x55) != 0;
            for (int pair = 0; pair < 4; pair++)
                trits[byte + 32 * pair] = (int8_t)((packed[byte] >> 2 * pair & 3) - 1);
        }
        n_invalid += invalid;
    }
    return n_invalid;
}

INLINE void unpack_section(const uint8_t *restrict packed, int n_bytes, int n_digits, int8_t *restrict trits) {
    for (int byte = 0; byte < n_bytes; byte++) {
        uint32_t rest = packed[byte];
        for (int digit = 0; digit < n_digits; digit++) {
            rest *= 3;
            trits[digit * n_bytes + byte] = (int8_t)((int)(rest >> 8) - 1);
            rest &= 255;
        }
    }
}

EXPORT int64_t KERNEL(unpack_base3)(const uint8_t *restrict blocks, int64_t n_blocks, int64_t block_bytes,
                            int8_t *restrict codes) {
    for (int64_t number = 0; number < n_blocks; number++) {
        const uint8_t *packed = blocks + number * block_bytes;
        unpack_section(packed, 32, 5, codes + number * 256);
        unpack_section(packed + 32, 16, 5, codes + number * 256 + 160);
        unpack_section(packed + 48, 4, 4, codes + number * 256 + 240);
    }
    return 0;
}

/* ---- packed checkpoints ---- */

/* Replace each byte by the four codes that the table has for it; returns the largest byte. */
EXPORT int64_t KERNEL(look_up)(const uint8_t *restrict stored, int64_t n, const uint32_t *restrict table,
                       uint32_t *restrict fours) {
    uint8_t most = 0;
    for (int64_t index = 0; index < n; index++) {
        fours[index] = table[stored[index]];
        most = stored[index] > most ? stored[index] : most;
    }
    return most;
}

/* Unpack rows of bitnet packing, which stores four rows in one; returns whether a wanted row has an invalid code. */
EXPORT int64_t KERNEL(unpack_rows)(const uint8_t *restrict stored, int64_t n_stored, int64_t n_columns,
                                   const int64_t *restrict wanted, int64_t n_wanted, int8_t *restrict codes) {
    uint64_t invalid = 0;
    for (int64_t number = 0; number < n_wanted; number++) {
        const uint8_t *row = stored + wanted[number] % n_stored * n_columns;
        int shift = (int)(wanted[number] / n_stored * 2);
        invalid |= unpack_four_rows(row, shift, n_columns, codes + number * n_columns);
    }
    return invalid != 0;
}
