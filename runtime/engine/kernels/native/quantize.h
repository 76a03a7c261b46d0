// Activations in 8 bits. Plain loops that compilers vectorize; a file of an instruction set includes this after it chose
// its target and defined
//   PANEL_COLUMNS, WORD_BYTES: the width of panels, and how many neighbours of a column lie together
//   VECTOR_BLOCKS: how many blocks of Q2_0 are a vector in multiply_rows
//   place_values(type, values, group, places): write a group of a TQ type where multiply_rows reads it
//   SUMS_OF_PAIRS, perhaps: sums are kept as two 16-bit halves, of the even and of the odd pairs of values
#pragma once
#include "instruction_set.h"
#include <string.h>

namespace {

inline float float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

inline uint32_t bits_of_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

// Returns the scale. As in ggml's quantize_row_q8_K: the largest value becomes 127, NaN counts as 0, and a group with an
// infinite value gets an infinite scale, which makes all its products NaN.
template <int N_VALUES>
inline float quantize_group(const float * activations, int8_t * values) {
    int32_t largest = 0;  // magnitudes as integers have the same order
    for (int i = 0; i < N_VALUES; i++) {
        int32_t bits;
        memcpy(&bits, activations + i, 4);
        const int32_t magnitude = bits & 0x7fffffff, known = magnitude & -(magnitude <= 0x7f800000);
        largest = known > largest ? known : largest;
    }
    const float to_127 = 127.0f / float_of_bits((uint32_t) largest);
    if (largest == 0 || bits_of_float(to_127) == 0x7f800000) {  // zeros, or too close to zero to be told from it
        memset(values, 0, N_VALUES);
        return 0.0f;
    }
    const float to_integer = 12582912.0f;  // 1.5 * 2^23: adding it leaves the rounded value in the lowest bits
    for (int i = 0; i < N_VALUES; i++)
        values[i] = (int8_t) bits_of_float(activations[i] * to_127 + to_integer);
    return 1.0f / to_127;
}

template <int N_VALUES>
inline int32_t sum_of(const int8_t * values) {
    int32_t sum = 0;
    for (int i = 0; i < N_VALUES; i++)
        sum += values[i];
    return sum;
}

// What a sum of codes times values starts with, so that codes count as if OFFSET were subtracted
template <int N_VALUES, int OFFSET = 1>
inline int32_t start_of(const int8_t * values) {
#ifdef SUMS_OF_PAIRS
    int32_t even = 0, odd = 0;
    for (int i = 0; i < N_VALUES; i += 4) {
        even += values[i] + values[i + 1];
        odd += values[i + 2] + values[i + 3];
    }
    return (int32_t) ((uint32_t) (uint16_t) (-OFFSET * even) | (uint32_t) (-OFFSET * odd) << 16);
#else
    return -OFFSET * sum_of<N_VALUES>(values);
#endif
}

// Two sums of 16 values, in 16 bits each
inline int32_t sums_of_two(const int8_t * values) {
    return (int32_t) ((uint32_t) (uint16_t) sum_of<16>(values) | (uint32_t) sum_of<16>(values + 16) << 16);
}

// A byte of Q2_0 holds four neighbours, and four bytes' codes of one bit position meet one 32-bit lane: transpose 4 x 4.
inline void transpose_16(const int8_t * values, int8_t * transposed) {
    alignas(16) static const int8_t order[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
#if defined(__aarch64__)
    vst1q_s8(transposed, vqtbl1q_s8(vld1q_s8(values), vreinterpretq_u8_s8(vld1q_s8(order))));
#else
    const __m128i loaded = _mm_loadu_si128((const __m128i *) values);
    _mm_storeu_si128((__m128i *) transposed, _mm_shuffle_epi8(loaded, _mm_load_si128((const __m128i *) order)));
#endif
}

// Where multiply_rows reads four values of Q2_0, of a quarter of a block: codes of some blocks are a vector, each bit position
// another one.
inline int64_t q2_0_lane(int64_t block, int sixteen, int position) {
    const int64_t vector = block / VECTOR_BLOCKS * 4 + position;
    return vector * 4 * VECTOR_BLOCKS + block % VECTOR_BLOCKS * 4 + sixteen;
}

void quantize_column_q2_0(const float * activations, int64_t n_inputs, const column_parts & column) {
    for (int64_t block = 0; block < n_inputs / 64; block++)
        for (int second = 0; second < 2; second++) {
            int8_t values[32], transposed[32];
            const int64_t group = 2 * block + second;
            column.scales[group] = quantize_group<32>(activations + 64 * block + 32 * second, values);
            column.sums[group] = sum_of<32>(values);
            for (int half = 0; half < 2; half++) {
                transpose_16(values + 16 * half, transposed);
                for (int position = 0; position < 4; position++)
                    memcpy(column.values + 4 * q2_0_lane(block, 2 * second + half, position), transposed + 4 * position, 4);
            }
        }
}

// Where multiply_rows reads a group of Q6_K or Q2_K: the values, then the sums of each 16
inline void place_parts(const int8_t * values, int8_t * places) {
    memcpy(places, values, 256);
    for (int part = 0; part < 16; part++) {
        const int16_t sum = (int16_t) sum_of<16>(values + 16 * part);
        memcpy(places + 256 + 2 * part, &sum, 2);
    }
}

void quantize_column_of_256(int type, const float * activations, int64_t n_inputs, const column_parts & column) {
    for (int64_t group = 0; group < n_inputs / 256; group++) {
        int8_t values[256];
        column.scales[group] = quantize_group<256>(activations + 256 * group, values);
        column.sums[group] = sum_of<256>(values);
        if (type == Q6_K || type == Q2_K)
            place_parts(values, column.values + 512 * group);
        else
            place_values(type, values, group, column.values);
    }
}

void quantize_column_q8_0(const float * activations, int64_t n_inputs, const column_parts & column) {
    for (int64_t group = 0; group < n_inputs / 32; group++) {
        column.scales[group] = quantize_group<32>(activations + 32 * group, column.values + 32 * group);
        column.sums[group] = sum_of<32>(column.values + 32 * group);
    }
}

void quantize_column(const weight_format & format, const float * activations, int64_t n_inputs, char * place) {
    const column_parts column = parts_of_column(place, format, n_inputs);
    memset(column.sums, 0, 4 * column_groups(format, n_inputs));
    memset(column.scales, 0, 4 * column_groups(format, n_inputs));
    if (format.type == Q8_0)
        return quantize_column_q8_0(activations, n_inputs, column);
    if (format.type != Q2_0)
        return quantize_column_of_256(format.type, activations, n_inputs, column);
    memset(column.values + n_inputs / 512 * 512, 0, column_values_bytes(n_inputs) - n_inputs / 512 * 512);
    quantize_column_q2_0(activations, n_inputs, column);
}

// `order`: where each WORD values of a group come from, null for their own order
template <int GROUP_VALUES, int COLUMNS, int WORD, int TYPE = Q2_0>
void quantize_panel_of_groups(const char * activations, size_t activation_bytes, int n_columns, int64_t n_inputs,
                              char * panel, const uint8_t * order = nullptr) {
    for (int column = 0; column < n_columns; column++) {
        const float * floats = (const float *) (activations + column * activation_bytes);
        char * place = panel;
        for (int64_t i = 0; i < n_inputs; i += GROUP_VALUES, place += COLUMNS * (GROUP_VALUES + 8)) {
            int8_t values[GROUP_VALUES], transposed[16];
            const float scale = quantize_group<GROUP_VALUES>(floats + i, values);
            const int32_t start = TYPE == Q8_0 ? -128 * sum_of<GROUP_VALUES>(values) : start_of<GROUP_VALUES>(values);
            if (GROUP_VALUES == 32 && TYPE == Q2_0)
                for (int j = 0; j < GROUP_VALUES; j += 16) {
                    transpose_16(values + j, transposed);
                    memcpy(values + j, transposed, 16);
                }
            for (int j = 0; j < GROUP_VALUES; j += WORD)
                memcpy(place + j * COLUMNS + WORD * column, values + (order ? order[j / WORD] : j), WORD);
            memcpy(place + GROUP_VALUES * COLUMNS + 4 * column, &start, 4);
            memcpy(place + (GROUP_VALUES + 4) * COLUMNS + 4 * column, &scale, 4);
        }
    }
}

// Q6_K and Q2_K: sums of each 16 values
template <int COLUMNS, int TYPE>
void quantize_panel_of_parts(const char * activations, size_t activation_bytes, int n_columns, int64_t n_inputs, char * panel) {
    constexpr int n_sums = TYPE == Q6_K ? 16 : 8;
    for (int column = 0; column < n_columns; column++) {
        const float * floats = (const float *) (activations + column * activation_bytes);
        char * place = panel + 4 * column;
        for (int64_t i = 0; i < n_inputs; i += 256, place += COLUMNS * (256 + 4 * n_sums + 4)) {
            int8_t values[256];
            const float scale = quantize_group<256>(floats + i, values);
            for (int j = 0; j < 256; j += 4)
                memcpy(place + j * COLUMNS, values + j, 4);
            for (int j = 0; j < n_sums; j++) {
                const int32_t sum = TYPE == Q6_K ? start_of<16, 32>(values + 16 * j) : sums_of_two(values + 32 * j);
                memcpy(place + (256 + 4 * j) * COLUMNS, &sum, 4);
            }
            memcpy(place + (256 + 4 * n_sums) * COLUMNS, &scale, 4);
        }
    }
}

template <int COLUMNS = PANEL_COLUMNS, int WORD_OF_32 = WORD_BYTES, int WORD_OF_256 = WORD_BYTES>
void quantize_panel(const weight_format & format, const char * activations, size_t activation_bytes, int n_columns,
                    int64_t n_inputs, char * panel) {
    (format.type == Q2_0 ? quantize_panel_of_groups<32, COLUMNS, WORD_OF_32>
                         : quantize_panel_of_groups<256, COLUMNS, WORD_OF_256>)(activations, activation_bytes, n_columns, n_inputs,
                                                                                panel, nullptr);
}

}  // namespace
