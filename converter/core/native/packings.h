/* Codes: unpacked, or in the packings of checkpoints. */

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
