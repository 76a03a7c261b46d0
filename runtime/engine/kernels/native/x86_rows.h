// One column on x86: rows of packed codes, read once and in the order of memory, which the prefetcher follows.
// The including file has chosen its target and defines
//   sums       accumulators of products: accumulate(sums, codes 0..255, activations), lanes_of(sums): 8 x 32 bits
#pragma once
#include "quantize.h"
#include <immintrin.h>

namespace {

constexpr int PREFETCH_BYTES = 2048;

ALWAYS_INLINE __m256i load(const void * address) {
    return _mm256_loadu_si256((const __m256i *) address);
}

ALWAYS_INLINE __m256i two_blocks(const char * first, const char * second) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *) first)),
                                   _mm_loadu_si128((const __m128i *) second), 1);
}

// 32 bytes of 2-bit codes times the activations of the bit positions 0, 2, 4 and 6. The codes at bits 2 and 6 are counted
// four times, in `fourfold`: it saves shifts.
ALWAYS_INLINE void accumulate_positions(__m256i & single, __m256i & fourfold, __m256i codes, const int8_t * values) {
    const __m256i low = _mm256_set1_epi8(3), high = _mm256_set1_epi8(12), shifted = _mm256_srli_epi16(codes, 4);
    single = accumulate(single, _mm256_and_si256(codes, low), load(values));
    fourfold = accumulate(fourfold, _mm256_and_si256(codes, high), load(values + 32));
    single = accumulate(single, _mm256_and_si256(shifted, low), load(values + 64));
    fourfold = accumulate(fourfold, _mm256_and_si256(shifted, high), load(values + 96));
}

ALWAYS_INLINE __m256i tq2_0_lanes(const char * block, const int8_t * values) {
    __m256i single = _mm256_setzero_si256(), fourfold = single, single2 = single, fourfold2 = single;
    accumulate_positions(single, fourfold, load(block), values);
    accumulate_positions(single2, fourfold2, load(block + 32), values + 128);
    return lanes_of(add_sums(add_sums(single, single2), quarter_sums(add_sums(fourfold, fourfold2))));
}

ALWAYS_INLINE __m256i q2_0_lanes(__m256i codes, const int8_t * values) {
    __m256i single = _mm256_setzero_si256(), fourfold = single;
    accumulate_positions(single, fourfold, codes, values);
    return lanes_of(add_sums(single, quarter_sums(fourfold)));
}

// Base-3 digits: a byte's first digit is byte * 3 >> 8, and the next one is that of byte * 3 modulo 256. All of it works on
// bytes minus 128, since comparisons are signed and 3 * 128 is 128 modulo 256.
ALWAYS_INLINE __m256i times_3(__m256i bytes) {
    return _mm256_add_epi8(bytes, _mm256_add_epi8(bytes, bytes));
}

ALWAYS_INLINE __m256i first_digit(__m256i bytes) {
    return _mm256_abs_epi8(_mm256_add_epi8(_mm256_cmpgt_epi8(bytes, _mm256_set1_epi8(85 - 128)),
                                           _mm256_cmpgt_epi8(bytes, _mm256_set1_epi8(170 - 128))));
}

ALWAYS_INLINE __m128i times_3(__m128i bytes) {
    return _mm_add_epi8(bytes, _mm_add_epi8(bytes, bytes));
}

// The 256 codes of a TQ1_0 block in the values' order
ALWAYS_INLINE void tq1_0_codes(const char * block, __m256i codes[8]) {
    const __m256i offset = _mm256_set1_epi8(-128);
    __m256i bytes = _mm256_xor_si256(load(block), offset);
    codes[0] = first_digit(bytes);
    UNROLL for (int i = 1; i < 5; i++) {
        bytes = times_3(bytes);
        codes[i] = first_digit(bytes);
    }
    // 16 bytes of five digits, two digits at a time, and the fifth beside four bytes of four digits
    const __m128i sixteen = _mm_xor_si128(_mm_loadu_si128((const __m128i *) (block + 32)), _mm256_castsi256_si128(offset));
    bytes = _mm256_inserti128_si256(_mm256_castsi128_si256(sixteen), times_3(sixteen), 1);
    codes[5] = first_digit(bytes);
    bytes = times_3(times_3(bytes));
    codes[6] = first_digit(bytes);
    bytes = times_3(times_3(bytes));
    int32_t four;
    memcpy(&four, block + 48, 4);
    const __m256i powers = _mm256_setr_epi16(1, 1, 1, 1, 3, 3, 3, 3, 9, 9, 9, 9, 27, 27, 27, 27);
    const __m256i words = _mm256_and_si256(_mm256_mullo_epi16(_mm256_cvtepu8_epi16(_mm_set1_epi32(four)), powers),
                                           _mm256_set1_epi16(255));
    const __m128i last = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    bytes = _mm256_inserti128_si256(bytes, _mm_xor_si128(last, _mm256_castsi256_si128(offset)), 1);
    codes[7] = first_digit(bytes);
}

ALWAYS_INLINE __m256i tq1_0_lanes(const char * block, const int8_t * values) {
    __m256i codes[8], even = _mm256_setzero_si256(), odd = even;
    tq1_0_codes(block, codes);
    UNROLL for (int i = 0; i < 8; i += 2) {
        even = accumulate(even, codes[i], load(values + 32 * i));
        odd = accumulate(odd, codes[i + 1], load(values + 32 * i + 32));
    }
    return lanes_of(add_sums(even, odd));
}

ALWAYS_INLINE __m256i add_pairs(__m256i a, __m256i b) {  // of neighbours in each half: a, a, b, b
    return _mm256_hadd_epi32(a, b);
}

// The sums of eight vectors' lanes
ALWAYS_INLINE __m256i add_lanes(const __m256i v[8]) {
    const __m256i low = add_pairs(add_pairs(v[0], v[1]), add_pairs(v[2], v[3]));
    const __m256i high = add_pairs(add_pairs(v[4], v[5]), add_pairs(v[6], v[7]));
    return _mm256_add_epi32(_mm256_permute2x128_si256(low, high, 0x20), _mm256_permute2x128_si256(low, high, 0x31));
}

ALWAYS_INLINE __m256 scaled(__m256i sums, const int32_t * starts, const float * scales) {
    return _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(sums, load(starts))), _mm256_loadu_ps(scales));
}

// Eight blocks, or fewer at the end of a row, times the activations; without the blocks' own scales
template <int TYPE>
ALWAYS_INLINE __m256 eight_blocks(const char * weights, int n_blocks, const column_parts & column, int64_t block) {
    __m256i lanes[8];
    if (TYPE == Q2_0) {
        UNROLL for (int i = 0; i < 4; i++) {
            const char * codes = weights + 36 * i + 2;
            const __m256i two = 2 * i + 1 < n_blocks ? two_blocks(codes, codes + 18)
                              : 2 * i < n_blocks     ? _mm256_zextsi128_si256(_mm_loadu_si128((const __m128i *) codes))
                                                     : _mm256_setzero_si256();
            lanes[i] = 2 * i < n_blocks ? q2_0_lanes(two, column.values + 64 * block + 128 * i) : two;
        }
        const __m256 low = _mm256_castsi256_ps(add_pairs(lanes[0], lanes[1]));
        const __m256 high = _mm256_castsi256_ps(add_pairs(lanes[2], lanes[3]));
        const __m256i first = _mm256_castps_si256(_mm256_shuffle_ps(low, high, 0x88));
        const __m256i second = _mm256_castps_si256(_mm256_shuffle_ps(low, high, 0xdd));
        const int64_t group = 2 * block;
        const __m256 sum = _mm256_fmadd_ps(
            _mm256_cvtepi32_ps(_mm256_sub_epi32(second, load(column.sums + group + 8))),
            _mm256_loadu_ps(column.scales + group + 8), scaled(first, column.sums + group, column.scales + group));
        return _mm256_permutevar8x32_ps(sum, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    }
    UNROLL for (int i = 0; i < 8; i++) {
        const int8_t * values = column.values + 256 * (block + i);
        lanes[i] = i >= n_blocks ? _mm256_setzero_si256()
                 : TYPE == TQ2_0 ? tq2_0_lanes(weights + 66 * i, values) : tq1_0_lanes(weights + 54 * i, values);
    }
    return scaled(add_lanes(lanes), column.sums + block, column.scales + block);
}

ALWAYS_INLINE int half_at(const char * address) {
    uint16_t bits;
    memcpy(&bits, address, 2);
    return bits;
}

ALWAYS_INLINE __m256 eight_halves(const char * first, int n_halves, int stride) {
    __m128i halves = _mm_setzero_si128();
    if (n_halves == 8) {
        halves = _mm_insert_epi16(halves, half_at(first), 0);
        halves = _mm_insert_epi16(halves, half_at(first + stride), 1);
        halves = _mm_insert_epi16(halves, half_at(first + 2 * stride), 2);
        halves = _mm_insert_epi16(halves, half_at(first + 3 * stride), 3);
        halves = _mm_insert_epi16(halves, half_at(first + 4 * stride), 4);
        halves = _mm_insert_epi16(halves, half_at(first + 5 * stride), 5);
        halves = _mm_insert_epi16(halves, half_at(first + 6 * stride), 6);
        halves = _mm_insert_epi16(halves, half_at(first + 7 * stride), 7);
    } else {
        uint16_t bits[8] = {0};
        for (int i = 0; i < n_halves; i++)
            bits[i] = (uint16_t) half_at(first + i * stride);
        halves = _mm_loadu_si128((const __m128i *) bits);
    }
    return _mm256_cvtph_ps(halves);
}

ALWAYS_INLINE void transpose_8x8(__m256 v[8]) {
    __m256 pairs[8], fours[8];
    UNROLL for (int i = 0; i < 4; i++) {
        pairs[2 * i] = _mm256_unpacklo_ps(v[2 * i], v[2 * i + 1]);
        pairs[2 * i + 1] = _mm256_unpackhi_ps(v[2 * i], v[2 * i + 1]);
    }
    UNROLL for (int i = 0; i < 2; i++) {
        fours[4 * i] = _mm256_shuffle_ps(pairs[4 * i], pairs[4 * i + 2], 0x44);
        fours[4 * i + 1] = _mm256_shuffle_ps(pairs[4 * i], pairs[4 * i + 2], 0xee);
        fours[4 * i + 2] = _mm256_shuffle_ps(pairs[4 * i + 1], pairs[4 * i + 3], 0x44);
        fours[4 * i + 3] = _mm256_shuffle_ps(pairs[4 * i + 1], pairs[4 * i + 3], 0xee);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        v[i] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20);
        v[i + 4] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
    }
}

// Sum eight rows' blocks in order, one row in each lane.
void sum_blocks(const float * sums, const float * scales, int64_t padded_blocks, int n_rows, float * results) {
    __m256 total = _mm256_setzero_ps();
    for (int64_t block = 0; block < padded_blocks; block += 8) {
        __m256 s[8], d[8];
        UNROLL for (int i = 0; i < 8; i++) {
            s[i] = _mm256_loadu_ps(sums + i * padded_blocks + block);
            d[i] = _mm256_loadu_ps(scales + i * padded_blocks + block);
        }
        transpose_8x8(s);
        transpose_8x8(d);
        UNROLL for (int i = 0; i < 8; i++)
            total = _mm256_fmadd_ps(s[i], d[i], total);
    }
    float lanes[8];
    _mm256_storeu_ps(lanes, total);
    memcpy(results, lanes, n_rows * sizeof(float));
}

template <int TYPE>
void multiply_rows_of_type(const weight_format & format, const char * weights, size_t row_bytes, int n_rows,
                           int64_t n_inputs, char * place, float * space, float * results) {
    const column_parts column = parts_of_column(place, format, n_inputs);
    const int64_t n_blocks = n_inputs / format.block_values, padded_blocks = (n_blocks + 7) / 8 * 8;
    float * scales = space + ROWS_TOGETHER * padded_blocks;
    for (int row = 0; row < n_rows; row++) {
        const char * eight = weights + row * row_bytes;
        float * sums_of_row = space + row * padded_blocks, * scales_of_row = scales + row * padded_blocks;
        int64_t block = 0;
        for (; block + 8 <= n_blocks; block += 8, eight += 8 * format.block_bytes) {
            for (int i = 0; i < 8 * format.block_bytes; i += 64)
                _mm_prefetch(eight + PREFETCH_BYTES + i, _MM_HINT_T0);
            _mm256_storeu_ps(sums_of_row + block, eight_blocks<TYPE>(eight, 8, column, block));
            _mm256_storeu_ps(scales_of_row + block, eight_halves(eight + format.scale_offset, 8, format.block_bytes));
        }
        if (block < n_blocks) {
            const int n_left = (int) (n_blocks - block);
            _mm256_storeu_ps(sums_of_row + block, eight_blocks<TYPE>(eight, n_left, column, block));
            _mm256_storeu_ps(scales_of_row + block, eight_halves(eight + format.scale_offset, n_left, format.block_bytes));
        }
    }
    sum_blocks(space, scales, padded_blocks, n_rows, results);
}

void multiply_rows(const weight_format & format, const char * weights, size_t row_bytes, int n_rows, int64_t n_inputs,
                   char * column, float * space, float * results) {
    (format.type == TQ2_0   ? multiply_rows_of_type<TQ2_0>
     : format.type == TQ1_0 ? multiply_rows_of_type<TQ1_0>
                            : multiply_rows_of_type<Q2_0>)(format, weights, row_bytes, n_rows, n_inputs, column, space,
                                                           results);
}

}  // namespace
