/* What holds a grid per 16 columns, or any floats, with least squared error in Q2_K, Q3_K and Q6_K
   (quant/scaled_blocks.py). What loops.h, uniform.h and known_grid.h say at their tops holds here too. Each layout is
   described in its codec's Python file. */

/* A block's fp16 d, and the integer scale and the multiple of its codes for each sub-block. */
typedef struct {
    uint32_t d;
    float scales[SUBS], multiples[SUBS];
} Fit;

/* What `fit_grid` knows of a block: steps, sums of squared codes, and the highest multiples that the type stores. */
typedef struct {
    Floats steps[SUB_VECTORS], weights[SUB_VECTORS], most[SUB_VECTORS];
} Known;

/* Choose scales and multiples for a given d; return the squared error. */
INLINE double fit_with(const Known *restrict known, float d, int highest, float limit, Floats *restrict scales,
                       Floats *restrict multiples) {
    int n_multiples = highest < MOST_MULTIPLES ? highest : MOST_MULTIPLES;
    float errors[SUBS];
    for (int part = 0; part < SUB_VECTORS; part++) {
        Floats steps = known->steps[part], most = known->most[part], least = all_equal(INFINITY);
        Floats fewest = quotients(steps, all_equal(d * limit)), whole = rounded(fewest);
        fewest = most_of(chosen(whole < fewest, whole + 1, whole), all_equal(1));
        scales[part] = all_equal(0);
        multiples[part] = all_equal(1);
        for (int further = 0; further < n_multiples; further++) {
            Floats multiple = least_of(fewest + (float)further, most), unit = d * multiple;
            Floats scale = rounded(between(quotients(steps, unit), 0, limit));
            Floats lost = unit * scale - steps, error = lost * lost;
            Ints better = error < least;
            least = chosen(better, error, least);
            scales[part] = chosen(better, scale, scales[part]);
            multiples[part] = chosen(better, multiple, multiples[part]);
            if (further == n_multiples - 1 || !count_of(fewest + (float)further < most))
                break; /* every further multiple is `most` again */
        }
        least *= known->weights[part];
        memcpy(errors + part * WIDTH, &least, sizeof least);
    }
    FourFloats quarters[SUBS / 4];
    FourDoubles sums[SUBS / 4]; /* added in halves, as numpy does */
    memcpy(quarters, errors, sizeof errors);
    for (int quarter = 0; quarter < SUBS / 4; quarter++)
        sums[quarter] = __builtin_convertvector(quarters[quarter], FourDoubles);
    FourDoubles sum = (sums[0] + sums[2]) + (sums[1] + sums[3]);
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

/* The fit of least squared error for a block's values code * step: d is tried with every factor. */
INLINE Fit fit_grid(const int8_t *restrict codes, const float *restrict steps, int highest, float limit,
                    const float *restrict factors, int n_factors) {
    float weights[SUBS], most[SUBS], least_d = 0;
    int any = 0;
    for (int sub = 0; sub < SUBS; sub++) {
        int largest = 0, squares = 0;
        for (int place = 0; place < SUB; place++) {
            int code = codes[sub * SUB + place], magnitude = code < 0 ? -code : code;
            largest = magnitude > largest ? magnitude : largest;
            squares += code * code;
        }
        int multiple = highest / (largest ? largest : 1);
        most[sub] = (float)(multiple ? multiple : 1);
        weights[sub] = (float)squares;
        float d = steps[sub] / (limit * most[sub]);
        least_d = d > least_d ? d : least_d;
        any |= steps[sub] * weights[sub] != 0;
    }
    if (any && least_d < SMALLEST_HALF)
        least_d = SMALLEST_HALF;
    Known known;
    memcpy(known.steps, steps, sizeof known.steps);
    memcpy(known.weights, weights, sizeof known.weights);
    memcpy(known.most, most, sizeof known.most);
    Fit best = {half_above(least_d), {0}, {0}};
    for (int sub = 0; sub < SUBS; sub++)
        best.multiples[sub] = 1;
    double least = INFINITY;
    for (int candidate = 0; candidate < n_factors; candidate++) {
        Floats scales[SUB_VECTORS], multiples[SUB_VECTORS];
        uint32_t d = half_above(least_d * factors[candidate]);
        double error = fit_with(&known, from_f16(d), highest, limit, scales, multiples);
        if (error < least) {
            least = error;
            best.d = d;
            memcpy(best.scales, scales, sizeof best.scales);
            memcpy(best.multiples, multiples, sizeof best.multiples);
        }
    }
    return best;
}

/* Q2_K: sub-scale = sub-minimum. */
INLINE void put_q2_k(const Fit *fit, const int8_t *restrict codes, uint8_t *restrict block) {
    for (int sub = 0; sub < SUBS; sub++)
        block[sub] = (uint8_t)((int)fit->scales[sub] * 0x11);
    pack_pairs(codes, 1, block + 16, 84);
    put_half(block + 80, fit->d);
    put_half(block + 82, fit->d);
}

INLINE void put_q3_k(uint32_t d, const int *restrict scales, const int8_t *restrict codes, uint8_t *restrict block) {
    uint8_t sixes[SUBS];
    for (int sub = 0; sub < SUBS; sub++)
        sixes[sub] = (uint8_t)(scales[sub] + 32);
    for (int byte = 0; byte < 32; byte++) {
        int mask = 0;
        for (int part = 0; part < 8; part++)
            mask |= ((codes[32 * part + byte] + 4) >> 2) << part;
        block[byte] = (uint8_t)mask;
    }
    for (int half = 0; half < 2; half++)
        for (int byte = 0; byte < 32; byte++) {
            int low = 0;
            for (int part = 0; part < 4; part++)
                low |= ((codes[128 * half + 32 * part + byte] + 4) & 3) << 2 * part;
            block[32 + 32 * half + byte] = (uint8_t)low;
        }
    for (int sub = 0; sub < 8; sub++)
        block[96 + sub] = (uint8_t)((sixes[sub] & 15) | sixes[sub + 8] << 4);
    for (int sub = 0; sub < 4; sub++)
        block[104 + sub] = (uint8_t)(sixes[sub] >> 4 | sixes[sub + 4] >> 4 << 2 | sixes[sub + 8] >> 4 << 4 |
                                     sixes[sub + 12] >> 4 << 6);
    put_half(block + 108, d);
}

INLINE void put_q6_k(uint32_t d, const int *restrict scales, const int8_t *restrict codes, uint8_t *restrict block) {
    for (int half = 0; half < 2; half++) {
        const int8_t *here = codes + 128 * half;
        for (int byte = 0; byte < 64; byte++)
            block[64 * half + byte] = (uint8_t)(((here[byte] + 32) & 15) | ((here[byte + 64] + 32) & 15) << 4);
        for (int byte = 0; byte < 32; byte++) {
            int high = 0;
            for (int part = 0; part < 4; part++)
                high |= ((here[32 * part + byte] + 32) >> 4) << 2 * part;
            block[128 + 32 * half + byte] = (uint8_t)high;
        }
    }
    for (int sub = 0; sub < SUBS; sub++)
        block[192 + sub] = (uint8_t)scales[sub];
    put_half(block + 208, d);
}

/* Scales are negative, since there is one more of them; so are the stored codes. */
INLINE void turned(const Fit *fit, const int8_t *restrict codes, int *restrict scales, int8_t *restrict stored) {
    for (int sub = 0; sub < SUBS; sub++) {
        int multiple = (int)fit->multiples[sub];
        scales[sub] = -(int)fit->scales[sub];
        for (int place = 0; place < SUB; place++)
            stored[sub * SUB + place] = (int8_t)(-codes[sub * SUB + place] * multiple);
    }
}

/* Fill in the blocks of least squared error for values code * step; returns whether a d is beyond fp16. */
#define GRID(name, highest, limit, block_bytes, put)                                                                  \
    EXPORT int64_t KERNEL(name)(const int8_t *codes, const float *steps, int64_t n_blocks, const float *factors,     \
                                int64_t n_factors, uint8_t *blocks) {                                                \
        uint32_t largest = 0;                                                                                        \
        for (int64_t number = 0; number < n_blocks; number++) {                                                      \
            const int8_t *here = codes + number * SUPER;                                                             \
            Fit fit = fit_grid(here, steps + number * SUBS, highest, limit, factors, (int)n_factors);                \
            largest = fit.d > largest ? fit.d : largest;                                                             \
            put(&fit, here, blocks + number * block_bytes);                                                          \
        }                                                                                                            \
        return largest >= INFINITE_HALF;                                                                             \
    }

INLINE void put_fit_q3_k(const Fit *fit, const int8_t *restrict codes, uint8_t *restrict block) {
    int scales[SUBS];
    int8_t stored[SUPER];
    turned(fit, codes, scales, stored);
    put_q3_k(fit->d, scales, stored, block);
}

INLINE void put_fit_q6_k(const Fit *fit, const int8_t *restrict codes, uint8_t *restrict block) {
    int scales[SUBS];
    int8_t stored[SUPER];
    turned(fit, codes, scales, stored);
    put_q6_k(fit->d, scales, stored, block);
}

GRID(q2_k_grid, 1, 15, 84, put_q2_k)
GRID(q3_k_grid, 3, 32, 110, put_fit_q3_k)
GRID(q6_k_grid, 31, 128, 210, put_fit_q6_k)

/* ---- any floats in Q3_K and Q6_K ---- */

/* Each sub-block's scale of least squared error: every one of `tried` is the code of the largest value once. */
INLINE Floats best_scales(const Floats *restrict columns, float lowest, const float *restrict tried, int n_tried) {
    Floats peaks = columns[0], scales = {0}, most = {0};
    for (int place = 1; place < SUB; place++)
        peaks = chosen(magnitudes_of(columns[place]) > magnitudes_of(peaks), columns[place], peaks);
    Floats inverse = quotients(all_equal(-1), kept_by(~(magnitudes_of(peaks) < SMALLEST_HALF), peaks));
    for (int number = 0; number < n_tried; number++) {
        Floats factor = inverse * tried[number], products = {0}, squares = {0};
        for (int place = 0; place < SUB; place++) {
            Floats codes = rounded(between(columns[place] * factor, lowest, -lowest - 1));
            products += columns[place] * codes;
            squares += codes * codes;
        }
        Floats scale = quotients(products, squares), gain = scale * products;
        Ints better = ~(gain <= most);
        scales = chosen(better, scale, scales);
        most = chosen(better, gain, most);
    }
    return scales;
}

/* Fill in a block's integer scales and codes; return d as fp16, infinite if a scale is out of range or not finite. */
INLINE uint32_t encode_block(const float *restrict values, float lowest, float lowest_scale,
                             const float *restrict tried, int n_tried, int *restrict scales, int8_t *restrict codes) {
    float wanted[SUBS], largest = 0;
    for (int part = 0; part < SUB_VECTORS; part++) {
        Floats columns[SUB];
        in_columns(values + part * WIDTH * SUB, WIDTH, SUB, columns);
        Floats found = best_scales(columns, lowest, tried, n_tried);
        memcpy(wanted + part * WIDTH, &found, sizeof found);
    }
    for (int sub = 0; sub < SUBS; sub++) {
        if (!isfinite(wanted[sub]))
            return INFINITE_HALF;
        largest = fabsf(wanted[sub]) > fabsf(largest) || sub == 0 ? wanted[sub] : largest;
    }
    float exact = largest / lowest_scale;
    uint32_t word = half_above(fabsf(exact)), sign = to_bits(exact) >> 16 & 0x8000;
    if (word >= INFINITE_HALF)
        return INFINITE_HALF;
    float d = from_f16(word | sign);
    for (int sub = 0; sub < SUBS; sub++) {
        float scale = nearest(clipped(quotient(wanted[sub], d), lowest_scale, -lowest_scale - 1));
        Floats step = all_equal(d * scale);
        scales[sub] = (int)scale;
        for (int place = 0; place < SUB; place += WIDTH) {
            Floats quotient_here = quotients(load(values + sub * SUB + place), step);
            Ints wide = __builtin_convertvector(rounded(between(quotient_here, lowest, -lowest - 1)), Ints);
            Codes narrow = __builtin_convertvector(wide, Codes);
            memcpy(codes + sub * SUB + place, &narrow, sizeof narrow);
        }
    }
    return word | sign;
}

/* Fill in the blocks of any floats; returns whether one is out of the type's range. */
#define FLOATS(name, lowest, lowest_scale, block_bytes, put)                                                          \
    EXPORT int64_t KERNEL(name)(const float *values, int64_t n_blocks, const float *tried, int64_t n_tried,          \
                                uint8_t *blocks) {                                                                   \
        for (int64_t number = 0; number < n_blocks; number++) {                                                      \
            int scales[SUBS];                                                                                        \
            int8_t codes[SUPER];                                                                                     \
            uint32_t d = encode_block(values + number * SUPER, lowest, lowest_scale, tried, (int)n_tried, scales,    \
                                      codes);                                                                        \
            if (d == INFINITE_HALF)                                                                                  \
                return 1;                                                                                            \
            put(d, scales, codes, blocks + number * block_bytes);                                                    \
        }                                                                                                            \
        return 0;                                                                                                    \
    }

FLOATS(q3_k_floats, -4, -32, 110, put_q3_k)
FLOATS(q6_k_floats, -32, -128, 210, put_q6_k)

/* ---- reading ---- */

INLINE void q2_k_values(const uint8_t *restrict block, float *restrict values) {
    float d = half_at(block + 80), dmin = half_at(block + 82);
    for (int sub = 0; sub < SUBS; sub++) {
        const uint8_t *pairs = block + 16 + sub / 8 * 32 + sub % 2 * 16;
        float step = d * (float)(block[sub] & 15), minimum = dmin * (float)(block[sub] >> 4);
        for (int place = 0; place < SUB; place++)
            values[sub * SUB + place] = step * (float)(pairs[place] >> sub % 8 / 2 * 2 & 3) - minimum;
    }
}

INLINE void q3_k_values(const uint8_t *restrict block, float *restrict values) {
    float d = half_at(block + 108);
    for (int sub = 0; sub < SUBS; sub++) {
        const uint8_t *mask = block + sub % 2 * 16, *pairs = block + 32 + sub / 8 * 32 + sub % 2 * 16;
        int scale = (block[96 + sub % 8] >> sub / 8 * 4 & 15) | (block[104 + sub % 4] >> sub / 4 * 2 & 3) << 4;
        float step = d * (float)(scale - 32);
        for (int place = 0; place < SUB; place++) {
            int high = mask[place] >> sub / 2 & 1;
            values[sub * SUB + place] = step * (float)((pairs[place] >> sub % 8 / 2 * 2 & 3) + 4 * high - 4);
        }
    }
}

INLINE void q6_k_values(const uint8_t *restrict block, float *restrict values) {
    float d = half_at(block + 208);
    for (int sub = 0; sub < SUBS; sub++) {
        const uint8_t *low = block + sub / 8 * 64 + sub % 4 * 16, *high = block + 128 + sub / 8 * 32 + sub % 2 * 16;
        float step = d * (float)(int8_t)block[192 + sub];
        for (int place = 0; place < SUB; place++) {
            int code = (low[place] >> sub % 8 / 4 * 4 & 15) | (high[place] >> sub % 8 / 2 * 2 & 3) << 4;
            values[sub * SUB + place] = step * (float)(code - 32);
        }
    }
}

/* Fill in the values of blocks, whatever bytes they hold. */
#define VALUES(name, block_bytes)                                                                           \
    EXPORT int64_t KERNEL(name)(const uint8_t *restrict blocks, int64_t n_blocks, float *restrict values) { \
        for (int64_t number = 0; number < n_blocks; number++)                                               \
            name(blocks + number * block_bytes, values + number * SUPER);                                   \
        return 0;                                                                                           \
    }

VALUES(q2_k_values, 84)
VALUES(q3_k_values, 110)
VALUES(q6_k_values, 210)
