/* The searches of Q4_K (quant/codecs/q4_k.py). What loops.h, uniform.h and known_grid.h say at their tops holds here
   too. Where a sub-block of 32 values is searched, a lane of a vector is one. */

enum { WIDE_SUB = 32, WIDE_SUBS = 8, HIGHEST = 15, SIXES = 63, ZERO = 8, MOST_LEVEL = 7, Q4_K_BYTES = 144 };
enum { BATCH = 16, BATCH_SUBS = BATCH * WIDE_SUBS };

/* The step of least squared error of a sub-block, and the (fractional) code of the value zero with it. */
typedef struct {
    Floats error, step, zero;
} Way;

INLINE Way better_way(Way best, Way other, Ints better) {
    return (Way){chosen(better, other.error, best.error), chosen(better, other.step, best.step),
                 chosen(better, other.zero, best.zero)};
}

INLINE Way refined(const Floats *restrict columns, Way best) {
    Floats inverse = quotients(all_equal(1), best.step), sums = {0}, code_sums = {0}, squares = {0}, products = {0};
    Floats codes[WIDE_SUB], error = {0};
    for (int place = 0; place < WIDE_SUB; place++) {
        codes[place] = rounded(between(columns[place] * inverse + best.zero, 0, HIGHEST));
        sums += columns[place];
        code_sums += codes[place];
        squares += codes[place] * codes[place];
        products += columns[place] * codes[place];
    }
    Floats spread = (float)WIDE_SUB * squares - code_sums * code_sums;
    Floats fit = quotients((float)WIDE_SUB * products - sums * code_sums, spread);
    Floats zero = quotients((fit * code_sums - sums) / (float)WIDE_SUB, fit);
    for (int place = 0; place < WIDE_SUB; place++) {
        Floats lost = (codes[place] - zero) * fit - columns[place];
        error += lost * lost;
    }
    return better_way(best, (Way){error, fit, zero}, (error < best.error) & (fit > 0) & (zero >= 0));
}

INLINE Way best_way(const Floats *restrict columns, const float *restrict factors, int n_factors) {
    Floats low = {0}, high = {0};
    for (int place = 0; place < WIDE_SUB; place++) {
        low = least_of(columns[place], low);
        high = most_of(columns[place], high);
    }
    Way best = {all_equal(INFINITY), {0}, {0}};
    for (int number = 0; number < n_factors; number++) {
        Floats step = (high - low) / (float)HIGHEST * factors[number];
        Floats lowest = between(quotients(-low, step), 0, HIGHEST), inverse = quotients(all_equal(1), step);
        Floats whole = rounded(lowest), zeros[2] = {chosen(whole > lowest, whole - 1, whole), lowest};
        Floats errors[2] = {{0}, {0}};
        for (int place = 0; place < WIDE_SUB; place++) {
            Floats scaled = columns[place] * inverse;
            for (int way = 0; way < 2; way++) {
                Floats lost = rounded(between(scaled + zeros[way], 0, HIGHEST)) - zeros[way] - scaled;
                errors[way] += lost * lost;
            }
        }
        for (int way = 0; way < 2; way++) {
            Floats error = errors[way] * (step * step);
            best = better_way(best, (Way){error, step, zeros[way]}, error < best.error);
        }
    }
    return refined(columns, best);
}

/* Write each of eight values as a 6-bit multiple of the fp16 unit that is returned. */
INLINE uint32_t in_sixes(const float *restrict values, float *restrict sixes) {
    float most = values[0];
    for (int sub = 1; sub < WIDE_SUBS; sub++)
        most = values[sub] > most ? values[sub] : most;
    uint32_t word = half_above(most / SIXES);
    for (int sub = 0; sub < WIDE_SUBS; sub++)
        sixes[sub] = nearest(clipped(quotient(values[sub], from_f16(word)), 0, SIXES));
    return word;
}

INLINE void put_q4_k(uint32_t d, uint32_t dmin, const float *restrict scales, const float *restrict minima,
                     const uint8_t *restrict codes, uint8_t *restrict block) {
    put_half(block, d);
    put_half(block + 2, dmin);
    for (int sub = 0; sub < 4; sub++) {
        int scale = (int)scales[sub], minimum = (int)minima[sub];
        int fourth_scale = (int)scales[sub + 4], fourth_minimum = (int)minima[sub + 4];
        block[4 + sub] = (uint8_t)(scale | fourth_scale >> 4 << 6);
        block[8 + sub] = (uint8_t)(minimum | fourth_minimum >> 4 << 6);
        block[12 + sub] = (uint8_t)((fourth_scale & 15) | (fourth_minimum & 15) << 4);
        for (int byte = 0; byte < 32; byte++)
            block[16 + 32 * sub + byte] = (uint8_t)(codes[64 * sub + byte] | codes[64 * sub + 32 + byte] << 4);
    }
}

INLINE void q4_k_values(const uint8_t *restrict block, float *restrict values) {
    float d = half_at(block), dmin = half_at(block + 2);
    for (int sub = 0; sub < WIDE_SUBS; sub++) {
        int low = sub % 4, scale = block[4 + low] & 63, minimum = block[8 + low] & 63;
        if (sub >= 4) {
            scale = (block[12 + low] & 15) | block[4 + low] >> 6 << 4;
            minimum = block[12 + low] >> 4 | block[8 + low] >> 6 << 4;
        }
        float step = d * (float)scale, offset = dmin * (float)minimum;
        const uint8_t *nibbles = block + 16 + sub / 2 * 32;
        for (int place = 0; place < WIDE_SUB; place++)
            values[sub * WIDE_SUB + place] = step * (float)(nibbles[place] >> sub % 2 * 4 & 15) - offset;
    }
}

VALUES(q4_k_values, Q4_K_BYTES)

/* Codes of a sub-block: (value + offset) / step, in a range and then raised by `zero`. */
INLINE void code_wide_sub(const float *restrict values, float offset, float step, float low, float high, int zero,
                          uint8_t *restrict codes) {
    for (int place = 0; place < WIDE_SUB; place += WIDTH) {
        Floats quotient_here = quotients(load(values + place) + offset, all_equal(step));
        Ints wide = __builtin_convertvector(rounded(between(quotient_here, low, high)), Ints) + zero;
        Codes narrow = __builtin_convertvector(wide, Codes);
        memcpy(codes + place, &narrow, sizeof narrow);
    }
}

/* Encode any values as Q4_K, at most BATCH blocks. */
INLINE void encode_q4_k(const float *restrict values, int n_blocks, const float *restrict factors, int n_factors,
                        uint8_t *restrict blocks) {
    float wanted[BATCH_SUBS], zeros[BATCH_SUBS];
    for (int first = 0; first < n_blocks * WIDE_SUBS; first += WIDTH) {
        Floats columns[WIDE_SUB];
        int n = in_tile(n_blocks * WIDE_SUBS, first);
        in_columns(values + first * WIDE_SUB, n, WIDE_SUB, columns);
        Way best = best_way(columns, factors, n_factors);
        memcpy(wanted + first, &best.step, 4 * n);
        memcpy(zeros + first, &best.zero, 4 * n);
    }
    for (int number = 0; number < n_blocks; number++) {
        float scales[WIDE_SUBS], minima[WIDE_SUBS], offsets[WIDE_SUBS];
        uint8_t codes[SUPER];
        uint32_t d = in_sixes(wanted + number * WIDE_SUBS, scales);
        for (int sub = 0; sub < WIDE_SUBS; sub++)
            offsets[sub] = zeros[number * WIDE_SUBS + sub] * (from_f16(d) * scales[sub]);
        uint32_t dmin = in_sixes(offsets, minima);
        for (int sub = 0; sub < WIDE_SUBS; sub++)
            code_wide_sub(values + number * SUPER + sub * WIDE_SUB, from_f16(dmin) * minima[sub],
                          from_f16(d) * scales[sub], 0, HIGHEST, 0, codes + sub * WIDE_SUB);
        put_q4_k(d, dmin, scales, minima, codes, blocks + number * Q4_K_BYTES);
    }
}

/* Fill in the Q4_K blocks of any floats within its range. */
EXPORT int64_t KERNEL(q4_k_floats)(const float *values, int64_t n_blocks, const float *factors, int64_t n_factors,
                                   uint8_t *blocks) {
    for (int64_t first = 0; first < n_blocks; first += BATCH) {
        int n = n_blocks - first < BATCH ? (int)(n_blocks - first) : BATCH;
        encode_q4_k(values + first * SUPER, n, factors, (int)n_factors, blocks + first * Q4_K_BYTES);
    }
    return 0;
}

/* How often each level above zero occurs in both groups of sub-blocks, and its value there. */
typedef struct {
    float counts[HIGHEST_LEVEL][2][BATCH_SUBS], values[HIGHEST_LEVEL][2][BATCH_SUBS], units[BATCH_SUBS];
} Levels;

/* The scale of least squared error per sub-block, from 1 to SIXES. */
INLINE Floats nearest_scales(const Levels *restrict levels, int highest, int first) {
    Floats least = all_equal(INFINITY), scales = {0}, d = load(levels->units + first);
    for (int scale = 1; scale <= SIXES; scale++) {
        Floats unit = d * (float)scale, inverse = quotients(all_equal(1), unit), errors[2] = {{0}, {0}};
        for (int level = 0; level < highest; level++)
            for (int half = 0; half < 2; half++) {
                Floats values = load(levels->values[level][half] + first);
                Floats stored = unit * least_of(rounded(values * inverse), all_equal(MOST_LEVEL));
                errors[half] += load(levels->counts[level][half] + first) * ((stored - values) * (stored - values));
            }
        Floats error = errors[0] + errors[1];
        Ints better = error < least;
        least = chosen(better, error, least);
        scales = chosen(better, all_equal((float)scale), scales);
    }
    return scales;
}

/* Encode a grid's values as Q4_K with codes symmetric around zero, at most BATCH blocks. */
INLINE void encode_evenly(const int8_t *restrict codes, const float *restrict steps, const float *restrict values,
                          int n_blocks, uint8_t *restrict blocks) {
    Levels levels;
    float wanted[BATCH_SUBS];
    uint32_t units[BATCH];
    int highest = highest_of(codes, (int64_t)n_blocks * SUPER);
    for (int number = 0; number < n_blocks; number++) {
        float largest = 0;
        for (int group = 0; group < SUBS; group++) {
            const int8_t *here = codes + number * SUPER + group * SUB;
            float step = steps[number * SUBS + group], at = (float)highest_of(here, SUB) * step;
            int sub = number * WIDE_SUBS + group / 2, none = 1;
            for (int place = 0; place < SUB; place++)
                none &= here[place] == 0;
            largest = !none && at > largest ? at : largest;
            count_levels(here, SUB, highest, levels.counts[0][group % 2] + sub, 2 * BATCH_SUBS);
            for (int level = 0; level < highest; level++)
                levels.values[level][group % 2][sub] = step * (float)(level + 1);
        }
        units[number] = half_above(largest / (4 * SIXES));
        for (int sub = 0; sub < WIDE_SUBS; sub++)
            levels.units[number * WIDE_SUBS + sub] = from_f16(units[number]);
    }
    for (int number = n_blocks; number < BATCH; number++)
        for (int sub = number * WIDE_SUBS; sub < (number + 1) * WIDE_SUBS; sub++) {
            levels.units[sub] = 0;
            for (int level = 0; level < highest; level++)
                for (int half = 0; half < 2; half++)
                    levels.values[level][half][sub] = levels.counts[level][half][sub] = 0;
        }
    for (int first = 0; first < n_blocks * WIDE_SUBS; first += WIDTH) {
        Floats scales = nearest_scales(&levels, highest, first);
        memcpy(wanted + first, &scales, sizeof scales);
    }
    for (int number = 0; number < n_blocks; number++) {
        const float *scales = wanted + number * WIDE_SUBS;
        uint8_t stored[SUPER];
        float d = from_f16(units[number]);
        for (int sub = 0; sub < WIDE_SUBS; sub++)
            code_wide_sub(values + number * SUPER + sub * WIDE_SUB, 0, d * scales[sub], -MOST_LEVEL, MOST_LEVEL, ZERO,
                          stored + sub * WIDE_SUB);
        put_q4_k(units[number], half_of(ZERO * d), scales, scales, stored, blocks + number * Q4_K_BYTES);
    }
}

INLINE float squared_error(const uint8_t *restrict block, const float *restrict values) {
    float stored[SUPER], sums[LANES] = {0};
    q4_k_values(block, stored);
    for (int step = 0; step < SUPER; step += LANES)
        for (int lane = 0; lane < LANES; lane++) {
            float lost = stored[step + lane] - values[step + lane];
            sums[lane] += lost * lost;
        }
    return folded(sums);
}

/* Fill in the Q4_K blocks of values code * step within its range: either way, whichever has the smaller error. */
EXPORT int64_t KERNEL(q4_k_grid)(const int8_t *codes, const float *steps, int64_t n_blocks, const float *factors,
                                 int64_t n_factors, uint8_t *blocks) {
    for (int64_t first = 0; first < n_blocks; first += BATCH) {
        int n = n_blocks - first < BATCH ? (int)(n_blocks - first) : BATCH;
        float values[BATCH * SUPER];
        uint8_t even[BATCH * Q4_K_BYTES], *here = blocks + first * Q4_K_BYTES;
        for (int group = 0; group < n * SUBS; group++)
            for (int place = 0; place < SUB; place++)
                values[group * SUB + place] =
                    (float)codes[first * SUPER + group * SUB + place] * steps[first * SUBS + group];
        encode_q4_k(values, n, factors, (int)n_factors, here);
        encode_evenly(codes + first * SUPER, steps + first * SUBS, values, n, even);
        for (int number = 0; number < n; number++) {
            float errors[2] = {squared_error(here + number * Q4_K_BYTES, values + number * SUPER),
                               squared_error(even + number * Q4_K_BYTES, values + number * SUPER)};
            if (errors[1] < errors[0])
                memcpy(here + number * Q4_K_BYTES, even + number * Q4_K_BYTES, Q4_K_BYTES);
        }
    }
    return 0;
}
