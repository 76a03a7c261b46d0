/* The steps and codes of weights on a grid per 16 columns (quant/known_grid.py), and what the searches of types that
   hold such weights share. What loops.h and uniform.h say at their tops holds here too. */

enum { SUB = 16, SUBS = 16, SUPER = 256, SUB_VECTORS = SUBS / WIDTH };
enum { HIGHEST_LEVEL = 13, MOST_MULTIPLES = 8 };

#define BF16_ROUNDING (2 * 1.01 * 0x1p-8)
#define SMALLEST_HALF 0x1p-24f
#define SMALLEST_LEVEL 0x1p-120f
#define INFINITE_HALF 0x7C00u

/* dividend / divisor, or 0 where the divisor is 0. */
INLINE Floats quotients(Floats dividends, Floats divisors) {
    Ints usable = divisors != 0;
    return kept_by(usable, dividends / chosen(usable, divisors, 1 - (Floats){0}));
}

INLINE float quotient(float dividend, float divisor) {
    return divisor == 0 ? 0 : dividend / divisor;
}

INLINE Floats least_of(Floats one, Floats other) {
    return chosen(one < other, one, other);
}

INLINE Floats most_of(Floats one, Floats other) {
    return chosen(one > other, one, other);
}

INLINE Floats all_equal(float value) {
    return value - (Floats){0};
}

INLINE Floats magnitudes_of(Floats values) {
    return (Floats)((Ints)values & 0x7FFFFFFF);
}

INLINE float clipped(float value, float low, float high) {
    value = value < low ? low : value;
    return value > high ? high : value;
}

/* Round a number below 2**22 to an integer, to nearest even. */
INLINE float nearest(float value) {
    return (value + 0x1.8p23f) - 0x1.8p23f;
}

/* The fp16 word of a magnitude, infinite beyond fp16's range. */
INLINE uint32_t half_of(float magnitude) {
    magnitude += 0.0f; /* -0 becomes 0 */
    return magnitude < 65520 ? to_f16(magnitude) : INFINITE_HALF;
}

/* The same, rounded up. */
INLINE uint32_t half_above(float magnitude) {
    uint32_t word = half_of(magnitude);
    return word < INFINITE_HALF && from_f16(word) < magnitude ? word + 1 : word;
}

INLINE void put_half(uint8_t *stored, uint32_t word) {
    uint16_t half = (uint16_t)word;
    memcpy(stored, &half, 2);
}

INLINE float half_at(const uint8_t *stored) {
    uint16_t half;
    memcpy(&half, stored, 2);
    return from_f16(half);
}

/* The highest magnitude of `n` codes, at least 1 and at most HIGHEST_LEVEL. */
INLINE int highest_of(const int8_t *restrict codes, int64_t n) {
    int highest = 1;
    for (int64_t index = 0; index < n; index++) {
        int magnitude = codes[index] < 0 ? -codes[index] : codes[index];
        highest = magnitude > highest ? magnitude : highest;
    }
    return highest < HIGHEST_LEVEL ? highest : HIGHEST_LEVEL; /* so that no array is too short */
}

/* Count how often each magnitude from 1 to `highest` occurs among `n` codes. */
INLINE void count_levels(const int8_t *restrict codes, int n, int highest, float *restrict counts, int stride) {
    for (int level = 1; level <= highest; level++) {
        int count = 0;
        for (int place = 0; place < n; place++)
            count += (codes[place] == level) + (codes[place] == -level);
        counts[(level - 1) * stride] = (float)count;
    }
}

/* Sixteen columns' sum: eight sums of two, then neighbours. */
INLINE Floats sum_of_columns(const Floats *restrict columns) {
    Floats sums[8];
    for (int place = 0; place < 8; place++)
        sums[place] = columns[place] + columns[place + 8];
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

/* Return which groups are on no grid of `highest` levels above zero; else fill in codes and steps. Groups of smaller
   values than SMALLEST_LEVEL are zeros. */
INLINE Ints on_levels(const Floats *restrict columns, int highest, Floats *restrict codes, Floats *restrict steps) {
    Floats largest = {0}, factors = {0}, products[SUB], squares[SUB];
    for (int place = 0; place < SUB; place++)
        largest = most_of(magnitudes_of(columns[place]), largest);
    Ints open = largest >= SMALLEST_LEVEL;
    for (int level = 1; level <= highest && count_of(open); level++) {
        Floats factor = (float)level / largest;
        float limit = (float)(level * BF16_ROUNDING);
        Ints fits = open;
        for (int place = 0; place < SUB; place++) {
            Floats multiples = columns[place] * factor;
            fits &= magnitudes_of(multiples - rounded(multiples)) <= limit;
        }
        factors = chosen(fits, factor, factors);
        open &= ~fits;
    }
    for (int place = 0; place < SUB; place++) {
        codes[place] = rounded(columns[place] * factors);
        products[place] = columns[place] * codes[place];
        squares[place] = codes[place] * codes[place];
    }
    Floats sums = sum_of_columns(squares);
    *steps = sum_of_columns(products) / chosen(sums == 0, all_equal(1), sums);
    return open;
}

/* Fill in the codes, from -highest to highest, and the step of each group; returns how many groups are on no grid. */
EXPORT int64_t KERNEL(grid_codes)(const float *restrict values, int64_t n_groups, int64_t highest,
                                  int8_t *restrict codes, float *restrict steps) {
    int64_t n_bad = 0;
    for (int64_t first = 0; first < n_groups; first += WIDTH) {
        Floats columns[SUB], found[SUB], step;
        int n = in_tile(n_groups, first);
        in_columns(values + first * SUB, n, SUB, columns);
        n_bad -= count_of(on_levels(columns, (int)highest, found, &step));
        memcpy(steps + first, &step, 4 * n);
        const float *lanes = (const float *)found;
        for (int lane = 0; lane < n; lane++)
            for (int place = 0; place < SUB; place++)
                codes[(first + lane) * SUB + place] = (int8_t)(int32_t)lanes[place * WIDTH + lane];
    }
    return n_bad;
}
