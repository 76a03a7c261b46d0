/* The loops of the uniform codec: its steps and codes, what rounding loses, and its packing in trits. What loops.h says
   at its top holds here too. In a vector of steps or sums, a lane is one group of 16 values; in each lane the values
   are added one after the other, so the width of a vector changes no sum. */

enum { IN_GROUP = 16, TILE = WIDTH * IN_GROUP, ENTRIES = 27 };
enum { IN_NUMBER = 17, NUMBERS = 8, IN_BLOCK = IN_NUMBER * NUMBERS, BLOCK_BYTES = 27, NUMBER_BITS = 27 };
enum { INDEX_TRITS = 3, MOST_DIGITS = 3, SQUARES_PER_SUM = 256 };

typedef int8_t Codes __attribute__((vector_size(WIDTH)));

/* Return `one` where the mask is -1, `other` elsewhere. */
INLINE Floats chosen(Ints mask, Floats one, Floats other) {
    return (Floats)(((Ints)one & mask) | ((Ints)other & ~mask));
}

INLINE Floats between(Floats values, float low, float high) {
    Floats lowest = low - (Floats){0}, highest = high - (Floats){0};
    values = chosen(values < lowest, lowest, values);
    return chosen(values > highest, highest, values);
}

/* Round to integers, to nearest even: magnitudes must be below 2**22. */
INLINE Floats rounded(Floats values) {
    return (values + 0x1.8p23f) - 0x1.8p23f;
}

/* Fill the columns with the values of `n` groups of `size` that lie one after the other; other lanes hold zeros. */
INLINE void in_columns(const float *restrict values, int n, int size, Floats *restrict columns) {
    float *lanes = (float *)columns;
    for (int lane = 0; lane < n; lane++)
        for (int place = 0; place < size; place++)
            lanes[place * WIDTH + lane] = values[lane * size + place];
    for (int lane = n; lane < WIDTH; lane++)
        for (int place = 0; place < size; place++)
            lanes[place * WIDTH + lane] = 0;
}

/* 1 / step, or 0 where that is infinite or the step is 0. */
INLINE Floats inverses(Floats steps) {
    Floats quotients = 1 / steps;
    return kept_by((steps > 0) & (quotients < INFINITY), quotients);
}

/* By how much these steps lower the squared error from that of codes of zero. */
INLINE Floats gains(const Floats *restrict columns, Floats steps, float k) {
    Floats inverse = inverses(steps), products = {0}, squares = {0};
    for (int place = 0; place < IN_GROUP; place++) {
        Floats codes = rounded(between(columns[place] * inverse, -k, k));
        products += columns[place] * codes;
        squares += codes * codes;
    }
    return steps * (2 * products - steps * squares);
}

/* Magnitudes as words, which compare like them. */
#define MAGNITUDE(place) Ints m##place = (Ints)columns[place] & 0x7FFFFFFF

#define ORDER(low, high)                                     \
    do {                                                     \
        Ints falls = m##low > m##high, lower = m##low;       \
        m##low = (m##high & falls) | (lower & ~falls);       \
        m##high = (lower & falls) | (m##high & ~falls);      \
    } while (0)

/* Each group's step of least squared error: of its magnitudes at ranks 15, 10, 12 and 14, the first with most gain. */
INLINE Floats best_steps(const Floats *restrict columns, float k) {
    MAGNITUDE(0); MAGNITUDE(1); MAGNITUDE(2); MAGNITUDE(3); MAGNITUDE(4); MAGNITUDE(5); MAGNITUDE(6); MAGNITUDE(7);
    MAGNITUDE(8); MAGNITUDE(9); MAGNITUDE(10); MAGNITUDE(11); MAGNITUDE(12); MAGNITUDE(13); MAGNITUDE(14);
    MAGNITUDE(15);
    /* Green's sorting network of 60 comparisons. */
    ORDER(0, 13); ORDER(1, 12); ORDER(2, 15); ORDER(3, 14); ORDER(4, 8); ORDER(5, 6); ORDER(7, 11); ORDER(9, 10);
    ORDER(0, 5); ORDER(1, 7); ORDER(2, 9); ORDER(3, 4); ORDER(6, 13); ORDER(8, 14); ORDER(10, 15); ORDER(11, 12);
    ORDER(0, 1); ORDER(2, 3); ORDER(4, 5); ORDER(6, 8); ORDER(7, 9); ORDER(10, 11); ORDER(12, 13); ORDER(14, 15);
    ORDER(0, 2); ORDER(1, 3); ORDER(4, 10); ORDER(5, 11); ORDER(6, 7); ORDER(8, 9); ORDER(12, 14); ORDER(13, 15);
    ORDER(1, 2); ORDER(3, 12); ORDER(4, 6); ORDER(5, 7); ORDER(8, 10); ORDER(9, 11); ORDER(13, 14);
    ORDER(1, 4); ORDER(2, 6); ORDER(5, 8); ORDER(7, 10); ORDER(9, 13); ORDER(11, 14);
    ORDER(2, 4); ORDER(3, 6); ORDER(9, 12); ORDER(11, 13);
    ORDER(3, 5); ORDER(6, 8); ORDER(7, 9); ORDER(10, 12);
    ORDER(3, 4); ORDER(5, 6); ORDER(7, 8); ORDER(9, 10); ORDER(11, 12);
    ORDER(6, 7); ORDER(8, 9);
    Floats steps = (Floats)m15 / k, best = gains(columns, steps, k);
    Floats others[3] = {(Floats)m10 / k, (Floats)m12 / k, (Floats)m14 / k};
    for (int other = 0; other < 3; other++) {
        Floats gain = gains(columns, others[other], k);
        Ints better = gain > best;
        steps = chosen(better, others[other], steps);
        best = chosen(better, gain, best);
    }
    return steps;
}

INLINE int in_tile(int64_t n_groups, int64_t first) {
    return n_groups - first < WIDTH ? (int)(n_groups - first) : WIDTH;
}

/* Fill in the best step of each group of float32 values. */
EXPORT int64_t KERNEL(uniform_steps)(const float *values, int64_t n_groups, float k, float *steps) {
    for (int64_t first = 0; first < n_groups; first += WIDTH) {
        Floats columns[IN_GROUP];
        int n = in_tile(n_groups, first);
        in_columns(values + first * IN_GROUP, n, IN_GROUP, columns);
        Floats found = best_steps(columns, k);
        memcpy(steps + first, &found, 4 * n);
    }
    return 0;
}

INLINE int64_t uniform_top_kind(int kind, const void *restrict words, int64_t n_groups, float k, float *restrict top) {
    float waiting[TILE], highest = *top;
    uint32_t largest = 0;
    int n_waiting = 0;
    for (int64_t number = 0; number < n_groups; number++) {
        const void *values = from_index(words, kind, number * IN_GROUP);
        uint32_t word = largest_word(kind, values, IN_GROUP);
        largest = word > largest ? word : largest;
        if (from_word(kind, word) / k > highest) { /* else none of its magnitudes is a higher step */
            widen_kind(kind, values, IN_GROUP, waiting + n_waiting * IN_GROUP);
            n_waiting++;
        }
        if (n_waiting == WIDTH || (n_waiting && number == n_groups - 1)) {
            Floats columns[IN_GROUP];
            in_columns(waiting, n_waiting, IN_GROUP, columns);
            Floats steps = best_steps(columns, k);
            for (int lane = 0; lane < WIDTH; lane++)
                highest = steps[lane] > highest ? steps[lane] : highest;
            n_waiting = 0;
        }
    }
    *top = highest;
    return !isfinite(from_word(kind, largest));
}

/* Raise `top` to the largest best step of a group; returns whether any value isn't finite. */
EXPORT int64_t KERNEL(uniform_top)(const void *words, int64_t kind, int64_t n_groups, float k, float *top) {
    FOR_KIND(kind, uniform_top_kind, words, n_groups, k, top);
}

/* The entries around each wanted step: the first that is no lower, or the last one, and the one before that. */
INLINE void entries_around(const float *restrict entries, Floats wanted, Floats *restrict low, Floats *restrict high) {
    Ints above = {0};
    for (int entry = 0; entry < ENTRIES - 1; entry++)
        above -= entries[entry] < wanted;
    for (int lane = 0; lane < WIDTH; lane++) {
        (*high)[lane] = entries[above[lane]];
        (*low)[lane] = entries[above[lane] ? above[lane] - 1 : 0];
    }
}

/* Fill in the gain of each group of float32 values with the better of the two entries around its wanted step. */
EXPORT int64_t KERNEL(uniform_gains)(const float *values, int64_t n_groups, const float *wanted, const float *entries,
                                     float k, float *found) {
    for (int64_t first = 0; first < n_groups; first += WIDTH) {
        Floats columns[IN_GROUP], steps = {0}, low, high;
        int n = in_tile(n_groups, first);
        in_columns(values + first * IN_GROUP, n, IN_GROUP, columns);
        memcpy(&steps, wanted + first, 4 * n);
        entries_around(entries, steps, &low, &high);
        Floats low_gain = gains(columns, low, k), high_gain = gains(columns, high, k);
        Floats gain = chosen(low_gain > high_gain, low_gain, high_gain);
        memcpy(found + first, &gain, 4 * n);
    }
    return 0;
}

INLINE void code_group(const float *restrict values, float factor, float k, int8_t *restrict codes) {
    for (int index = 0; index < IN_GROUP; index += WIDTH) {
        Ints wide = __builtin_convertvector(rounded(between(load(values + index) * factor, -k, k)), Ints);
        Codes narrow = __builtin_convertvector(wide, Codes);
        memcpy(codes + index, &narrow, sizeof narrow);
    }
}

/* Fill in the codes and the step of each group of float32 values; the steps are entries. */
EXPORT int64_t KERNEL(uniform_code)(const float *restrict values, int64_t n_groups, const float *restrict entries,
                                    float k, int8_t *restrict codes, float *restrict steps) {
    for (int64_t first = 0; first < n_groups; first += WIDTH) {
        Floats columns[IN_GROUP], low, high;
        int n = in_tile(n_groups, first);
        in_columns(values + first * IN_GROUP, n, IN_GROUP, columns);
        entries_around(entries, best_steps(columns, k), &low, &high);
        Floats chosen_steps = chosen(gains(columns, low, k) > gains(columns, high, k), low, high);
        Floats inverse = inverses(chosen_steps);
        memcpy(steps + first, &chosen_steps, 4 * n);
        float factors[WIDTH];
        memcpy(factors, &inverse, sizeof factors);
        for (int lane = 0; lane < n; lane++)
            code_group(values + (first + lane) * IN_GROUP, factors[lane], k, codes + (first + lane) * IN_GROUP);
    }
    return 0;
}

/* ---- what rounding loses ---- */

/* Fill in, for every SQUARES_PER_SUM values, the sums of their squared errors and of their squares. Each sum has a part
   for every 16th value; the parts are added in halves at last. */
EXPORT int64_t KERNEL(squares)(const float *restrict values, const float *restrict stored, int64_t n,
                               double *restrict errors, double *restrict totals) {
    for (int64_t first = 0, number = 0; first < n; first += SQUARES_PER_SUM, number++) {
        int64_t n_here = n - first < SQUARES_PER_SUM ? n - first : SQUARES_PER_SUM;
        float own[SQUARES_PER_SUM] = {0}, lost[SQUARES_PER_SUM] = {0};
        for (int64_t index = 0; index < n_here; index++) {
            own[index] = values[first + index];
            lost[index] = stored[first + index] - values[first + index];
        }
        double own_sums[LANES] = {0}, lost_sums[LANES] = {0};
        for (int step = 0; step < SQUARES_PER_SUM; step += LANES)
            for (int lane = 0; lane < LANES; lane++) {
                own_sums[lane] += (double)own[step + lane] * own[step + lane];
                lost_sums[lane] += (double)lost[step + lane] * lost[step + lane];
            }
        for (int half = LANES / 2; half; half /= 2)
            for (int lane = 0; lane < half; lane++) {
                own_sums[lane] += own_sums[half + lane];
                lost_sums[lane] += lost_sums[half + lane];
            }
        totals[number] = own_sums[0];
        errors[number] = lost_sums[0];
    }
    return 0;
}

/* ---- trits: a number below 3**17 in 27 bits, eight of them in 27 bytes ---- */

INLINE void pack_block(const uint8_t *restrict trits, uint8_t *restrict stored) {
    uint64_t bits = 0;
    int n_bits = 0, n_stored = 0;
    for (int number = 0; number < NUMBERS; number++) {
        uint32_t packed = 0;
        for (int place = IN_NUMBER - 1; place >= 0; place--)
            packed = packed * 3 + trits[number * IN_NUMBER + place];
        bits |= (uint64_t)packed << n_bits;
        for (n_bits += NUMBER_BITS; n_bits >= 8; n_bits -= 8, bits >>= 8)
            stored[n_stored++] = (uint8_t)bits;
    }
}

/* A number from 3**17 on has a last trit of 3. */
INLINE void unpack_block(const uint8_t *restrict stored, uint8_t *restrict trits) {
    uint32_t rest[2 * NUMBERS]; /* of each number the lower nine digits, then of each the upper eight */
    uint8_t digits[9][2 * NUMBERS];
    uint64_t bits = 0;
    int n_bits = 0, n_read = 0;
    for (int number = 0; number < NUMBERS; number++) {
        for (; n_bits < NUMBER_BITS; n_bits += 8)
            bits |= (uint64_t)stored[n_read++] << n_bits;
        uint32_t packed = bits & ((1u << NUMBER_BITS) - 1);
        bits >>= NUMBER_BITS;
        n_bits -= NUMBER_BITS;
        rest[number] = packed % 19683;
        rest[NUMBERS + number] = packed / 19683;
    }
    for (int place = 0; place < 8; place++)
        for (int lane = 0; lane < 2 * NUMBERS; lane++) {
            uint32_t third = rest[lane] * 43691 >> 17;
            int is_last = place == 7 && lane >= NUMBERS;
            digits[place][lane] = (uint8_t)(is_last ? rest[lane] : rest[lane] - 3 * third);
            rest[lane] = third;
        }
    for (int lane = 0; lane < NUMBERS; lane++)
        digits[8][lane] = (uint8_t)rest[lane];
    for (int number = 0; number < NUMBERS; number++) {
        for (int place = 0; place < 9; place++)
            trits[number * IN_NUMBER + place] = digits[place][number];
        for (int place = 0; place < 8; place++)
            trits[number * IN_NUMBER + 9 + place] = digits[place][NUMBERS + number];
    }
}

INLINE int64_t pack_groups(const int8_t *restrict codes, const float *restrict steps, int64_t n_groups,
                           const float *restrict entries, int k, int n_digits, uint8_t *restrict stored) {
    uint8_t trits[2 * IN_BLOCK];
    int n_waiting = 0;
    for (int64_t number = 0; number < n_groups; number++) {
        int index = 0;
        for (int entry = 0; entry < ENTRIES; entry++)
            index += entries[entry] < steps[number];
        for (int place = 0; place < INDEX_TRITS; place++, index /= 3)
            trits[n_waiting++] = (uint8_t)(index % 3);
        for (int place = 0; place < IN_GROUP; place++) {
            unsigned code = (unsigned)(codes[number * IN_GROUP + place] + k);
            for (int digit = 0; digit < n_digits; digit++, code /= 3)
                trits[n_waiting++] = (uint8_t)(code % 3);
        }
        if (n_waiting < IN_BLOCK)
            continue;
        pack_block(trits, stored);
        stored += BLOCK_BYTES;
        n_waiting -= IN_BLOCK;
        memmove(trits, trits + IN_BLOCK, IN_BLOCK);
    }
    if (n_waiting) {
        memset(trits + n_waiting, 0, IN_BLOCK);
        pack_block(trits, stored);
    }
    return 0;
}

/* Write groups as trits: the index of the step among the entries, then code + k; zeros fill the last block. */
EXPORT int64_t KERNEL(pack_groups)(const int8_t *codes, const float *steps, int64_t n_groups, const float *entries,
                                   int64_t n_digits, uint8_t *stored) {
    if (n_digits == 1)
        return pack_groups(codes, steps, n_groups, entries, 1, 1, stored);
    if (n_digits == 2)
        return pack_groups(codes, steps, n_groups, entries, 4, 2, stored);
    return pack_groups(codes, steps, n_groups, entries, 13, 3, stored);
}

INLINE int64_t unpack_groups(const uint8_t *restrict stored, int skipped, int64_t n_groups, int k, int n_digits,
                             int8_t *restrict codes, uint8_t *restrict indices) {
    uint8_t trits[2 * IN_BLOCK], highest = 0;
    int per_group = INDEX_TRITS + IN_GROUP * n_digits, n_waiting = 0, first = skipped;
    for (int64_t number = 0; number < n_groups; number++) {
        while (n_waiting - first < per_group) {
            int left = n_waiting > first ? n_waiting - first : 0;
            memmove(trits, trits + first, (size_t)left);
            unpack_block(stored, trits + left);
            stored += BLOCK_BYTES;
            first = first > n_waiting ? first - n_waiting : 0;
            n_waiting = left + IN_BLOCK;
        }
        const uint8_t *here = trits + first;
        for (int place = 0; place < per_group; place++)
            highest = here[place] > highest ? here[place] : highest;
        indices[number] = (uint8_t)(here[0] + 3 * here[1] + 9 * here[2]);
        for (int place = 0; place < IN_GROUP; place++) {
            const uint8_t *digits = here + INDEX_TRITS + place * n_digits;
            int code = digits[0] + (n_digits > 1 ? 3 * digits[1] : 0) + (n_digits > 2 ? 9 * digits[2] : 0);
            codes[number * IN_GROUP + place] = (int8_t)(code - k);
        }
        first += per_group;
    }
    return highest > 2;
}

/* Read groups from trits, the first `skipped` of which aren't theirs; returns whether a number is invalid. */
EXPORT int64_t KERNEL(unpack_groups)(const uint8_t *stored, int64_t skipped, int64_t n_groups, int64_t n_digits,
                                     int8_t *codes, uint8_t *indices) {
    if (n_digits == 1)
        return unpack_groups(stored, (int)skipped, n_groups, 1, 1, codes, indices);
    if (n_digits == 2)
        return unpack_groups(stored, (int)skipped, n_groups, 4, 2, codes, indices);
    return unpack_groups(stored, (int)skipped, n_groups, 13, 3, codes, indices);
}
