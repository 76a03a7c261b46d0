/* Codecs: pack codes into blocks of `block_bytes`, and unpack them; put_scales writes the scales. */

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
