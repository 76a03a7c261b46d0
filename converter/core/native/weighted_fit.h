/* Codes and scales of least weighted squared error: quant/weighted_fit.py explains the rule and gives the same bytes. */

/* Steps are sorted by this key: in descending order of `place`, where the scale has to fall to, then by their index. */
INLINE uint64_t step_key(float place, int index) {
    return (uint64_t)~to_bits(place) << 32 | (uint32_t)index;
}

/* Sort by the keys, from neighbours to ever longer runs; return the array that holds the result. */
INLINE uint64_t *sorted_keys(uint64_t *keys, uint64_t *other, int n) {
    for (int run = 1; run < n; run *= 2) {
        for (int start = 0; start < n; start += 2 * run) {
            int left = start, middle = start + run < n ? start + run : n, right = middle;
            int end = start + 2 * run < n ? start + 2 * run : n;
            for (int place = start; place < end; place++) {
                int from_left = right == end || (left < middle && keys[left] <= keys[right]);
                other[place] = keys[from_left ? left : right];
                left += from_left;
                right += !from_left;
            }
        }
        uint64_t *swapped = keys;
        keys = other;
        other = swapped;
    }
    return keys;
}

typedef struct {
    double scale, gain;
} Weighted;

/* The best scale above zero of values times `sign`. */
INLINE Weighted best_fit(const float *restrict values, const float *restrict weights, int group, float sign, int levels) {
    uint64_t keys[2 * LARGEST_GROUP], other[2 * LARGEST_GROUP];
    double products[2 * LARGEST_GROUP], squares[2 * LARGEST_GROUP];
    int n = 0;
    for (int index = 0; index < group; index++) {
        float magnitude = fabsf(values[index]);
        double weight = weights[index];
        products[index] = weight * magnitude;
        squares[index] = weight;
        keys[n++] = step_key(magnitude, index);
        products[group + index] = products[index];
        squares[group + index] = 3 * weight;
        if (levels == 4 && values[index] * sign > 0)
            keys[n++] = step_key(magnitude / 3, group + index);
    }
    const uint64_t *sorted = sorted_keys(keys, other, n);
    Weighted best = {0, 0};
    double product = 0, square = 0;
    for (int place = 0; place < n; place++) {
        uint32_t index = (uint32_t)sorted[place];
        product += products[index];
        square += squares[index];
        double scale = square > 0 ? product / square : 0, gain = product * scale;
        if (gain > best.gain)
            best = (Weighted){scale, gain};
    }
    return best;
}

INLINE int64_t weighted_fit_kind(int kind, const void *restrict words, int64_t n_groups, int64_t group,
                                 const float *restrict weights, int64_t n_weights, int64_t levels,
                                 int8_t *restrict codes, float *restrict scales) {
    float values[LARGEST_GROUP];
    for (int64_t number = 0; number < n_groups; number++) {
        const float *own = weights + number % n_weights * group;
        uint32_t largest = 0;
        for (int64_t index = 0; index < group; index++) {
            values[index] = read(words, kind, number * group + index);
            uint32_t magnitude = to_bits(values[index]) & 0x7FFFFFFF;
            largest = magnitude > largest ? magnitude : largest;
        }
        if (largest >= INFINITE_BITS) {
            scales[number] = NAN;
            continue;
        }
        float sign = 1;
        Weighted fit = best_fit(values, own, (int)group, 1, (int)levels);
        if (levels == 4) {
            Weighted other = best_fit(values, own, (int)group, -1, 4);
            sign = other.gain > fit.gain ? -1 : 1;
            fit = other.gain > fit.gain ? other : fit;
        }
        float scale = rounded_to_f16((float)fit.scale);
        scales[number] = scale * sign;
        float half = scale > 0 ? scale / 2 : INFINITY, beyond = levels == 4 ? 3 * half : INFINITY;
        for (int64_t index = 0; index < group; index++) {
            float value = values[index] * sign;
            codes[number * group + index] = (int8_t)((value > half) - (value < -half) + (value > beyond));
        }
    }
    return 0;
}

/* `weights` has `n_weights` groups, which take turns; the group is at most LARGEST_GROUP, `levels` 3 or 4. */
EXPORT int64_t KERNEL(weighted_fit)(const void *words, int64_t kind, int64_t n_groups, int64_t group,
                                    const float *weights, int64_t n_weights, int64_t levels, int8_t *codes,
                                    float *scales) {
    FOR_KIND(kind, weighted_fit_kind, words, n_groups, group, weights, n_weights, levels, codes, scales);
}
