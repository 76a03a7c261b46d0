/* The searches of NVFP4 (quant/codecs/nvfp4.py). What loops.h, uniform.h and known_grid.h say at their tops holds here
   too. A lane of a vector is a group of 16 values. */

enum { N_SCALES = 127, NVFP4_BYTES = 36, NVFP4_SUBS = 4, NVFP4_BLOCK = NVFP4_SUBS * SUB };

static const float MAGNITUDES[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
static const float MIDPOINTS[7] = {0.5f, 1.5f, 2.5f, 3.5f, 5, 7, 10};

/* The 4-bit float that is nearest to a magnitude, as a multiple of half a unit. */
INLINE Floats nearest_fours(Floats magnitudes, Floats unit) {
    Floats scaled = magnitudes / chosen(unit == 0, all_equal(INFINITY), unit), found = {0};
    for (int point = 0; point < 7; point++)
        found += kept_by(scaled > MIDPOINTS[point], all_equal(MAGNITUDES[point + 1] - MAGNITUDES[point]));
    return found;
}

/* The value of half a unit for scale bytes below 127: the bytes are floats of 4 exponent and 3 fraction bits. */
INLINE Floats halves_of(Ints scales) {
    Floats small = __builtin_convertvector(scales, Floats) * 0x1p-10f;
    return chosen(scales < 8, small, (Floats)((scales + (119 << 3)) << 20));
}

/* How many of these values are below a value of zero or more. */
INLINE Ints n_below(Floats value) {
    Floats scaled = value * 0x1p10f, whole = rounded(between(scaled, 0, 8));
    Ints small = __builtin_convertvector(whole, Ints) - (whole < scaled), bits = (Ints)value;
    Ints usual = (bits >> 20) - (119 << 3) - ((bits & 0xFFFFF) != 0), is_small = value < 0x1p-7f;
    Ints count = (small & is_small) | (usual & ~is_small), fits = count < N_SCALES;
    return (count & fits) | (N_SCALES & ~fits);
}

/* Each group's scale of least squared error, from just below `least` to just above `most`. `counts` tells how often
   each of `n` magnitudes occurs; NULL means that they are the columns of a group. */
INLINE Ints best_fours(const Floats *restrict magnitudes, const Floats *counts, int n, Floats least, Floats most) {
    Ints first = n_below(least) - 1, last = n_below(most) + 1;
    first = first & (first > 0);
    last = (last & (last < N_SCALES - 1)) | ((N_SCALES - 1) & ~(last < N_SCALES - 1));
    Ints best = first, candidate = first;
    Floats smallest = all_equal(INFINITY);
    for (;;) {
        Floats unit = halves_of(candidate), error = {0}, errors[SUB];
        for (int place = 0; place < n; place++) {
            Floats lost = unit * nearest_fours(magnitudes[place], unit) - magnitudes[place];
            errors[place] = lost * lost;
            if (counts)
                error += counts[place] * errors[place];
        }
        if (!counts)
            error = sum_of_columns(errors);
        Ints better = error < smallest;
        smallest = chosen(better, error, smallest);
        best = (candidate & better) | (best & ~better);
        Ints below = candidate < last;
        if (!count_of(below))
            return best;
        candidate -= below;
    }
}

/* Write groups with their scales into the blocks that hold them. */
INLINE void put_nvfp4(const Floats *restrict columns, Ints scales, int64_t first, int n, uint8_t *restrict blocks) {
    int32_t bits[SUB][WIDTH];
    Floats unit = halves_of(scales);
    for (int place = 0; place < SUB; place++) {
        Floats scaled = magnitudes_of(columns[place]) / chosen(unit == 0, all_equal(INFINITY), unit);
        Ints code = {0};
        for (int point = 0; point < 7; point++)
            code -= scaled > MIDPOINTS[point];
        code |= 8 & (columns[place] < 0) & (code > 0);
        memcpy(bits[place], &code, sizeof code);
    }
    for (int lane = 0; lane < n; lane++) {
        int64_t group = first + lane;
        uint8_t *block = blocks + group / NVFP4_SUBS * NVFP4_BYTES;
        block[group % NVFP4_SUBS] = (uint8_t)scales[lane];
        for (int byte = 0; byte < 8; byte++)
            block[NVFP4_SUBS + group % NVFP4_SUBS * 8 + byte] = (uint8_t)(bits[byte][lane] | bits[byte + 8][lane] << 4);
    }
}

/* Fill in the NVFP4 blocks of any floats within its range. */
EXPORT int64_t KERNEL(nvfp4_floats)(const float *values, int64_t n_groups, uint8_t *blocks) {
    for (int64_t first = 0; first < n_groups; first += WIDTH) {
        Floats columns[SUB], magnitudes[SUB], largest = {0};
        int n = in_tile(n_groups, first);
        in_columns(values + first * SUB, n, SUB, columns);
        for (int place = 0; place < SUB; place++) {
            magnitudes[place] = magnitudes_of(columns[place]);
            largest = most_of(magnitudes[place], largest);
        }
        Ints scales = best_fours(magnitudes, NULL, SUB, largest / 12, largest / 6);
        put_nvfp4(columns, scales, first, n, blocks);
    }
    return 0;
}

/* Fill in the NVFP4 blocks of values code * step within its range. */
EXPORT int64_t KERNEL(nvfp4_grid)(const int8_t *codes, const float *steps, int64_t n_groups, uint8_t *blocks) {
    for (int64_t first = 0; first < n_groups; first += WIDTH) {
        Floats columns[SUB], magnitudes[HIGHEST_LEVEL], counts[HIGHEST_LEVEL], step = {0}, most = {0};
        int n = in_tile(n_groups, first);
        float numbers[HIGHEST_LEVEL][WIDTH] = {{0}}, values[WIDTH * SUB], largest[WIDTH] = {0};
        int highest = highest_of(codes + first * SUB, (int64_t)n * SUB);
        memcpy(&step, steps + first, 4 * n);
        for (int lane = 0; lane < n; lane++) {
            const int8_t *here = codes + (first + lane) * SUB;
            count_levels(here, SUB, highest, numbers[0] + lane, WIDTH);
            for (int place = 0; place < SUB; place++)
                values[lane * SUB + place] = (float)here[place] * steps[first + lane];
            for (int level = 0; level < highest; level++)
                largest[lane] = numbers[level][lane] > 0 ? (float)(level + 1) : largest[lane];
        }
        memcpy(&most, largest, sizeof most);
        for (int level = 0; level < highest; level++) {
            magnitudes[level] = step * (float)(level + 1);
            memcpy(counts + level, numbers[level], sizeof counts[level]);
        }
        in_columns(values, n, SUB, columns);
        Ints scales = best_fours(magnitudes, counts, highest, step * most / 12, step);
        put_nvfp4(columns, scales, first, n, blocks);
    }
    return 0;
}

/* Fill in the values of NVFP4 blocks; `table` holds those of half a unit for all 256 scale bytes. */
EXPORT int64_t KERNEL(nvfp4_values)(const uint8_t *restrict blocks, int64_t n_blocks, const float *restrict table,
                                    float *restrict values) {
    for (int64_t number = 0; number < n_blocks; number++) {
        const uint8_t *block = blocks + number * NVFP4_BYTES;
        for (int sub = 0; sub < NVFP4_SUBS; sub++) {
            float unit = table[block[sub]], *here = values + number * NVFP4_BLOCK + sub * SUB;
            for (int byte = 0; byte < 8; byte++) {
                int both = block[NVFP4_SUBS + sub * 8 + byte];
                here[byte] = unit * MAGNITUDES[both & 15];
                here[byte + 8] = unit * MAGNITUDES[both >> 4];
            }
        }
    }
    return 0;
}
