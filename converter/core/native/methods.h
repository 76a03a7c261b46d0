/* Methods: quantize floats to codes and scales. */

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
