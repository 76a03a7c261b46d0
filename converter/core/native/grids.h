/* Grids: floats that are already ternary. */

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
