// One column on Arm: rows of packed codes, read once and in the order of memory. The including file has chosen its target.
#pragma once
#define VECTOR_BLOCKS 2
#include "instruction_set.h"
#include <arm_neon.h>

namespace {

inline void place_values(int, const int8_t * values, int64_t group, int8_t * places) {
    memcpy(places + 256 * group, values, 256);
}

}  // namespace

#include "quantize.h"

namespace {

ALWAYS_INLINE int32x4_t accumulate(int32x4_t sums, uint8x16_t codes, const int8_t * values) {
    return vdotq_s32(sums, vreinterpretq_s8_u8(codes), vld1q_s8(values));
}

// 16 bytes of 2-bit codes; the activations of each bit position are `distance` bytes apart
ALWAYS_INLINE int32x4_t accumulate_positions(int32x4_t sums, uint8x16_t codes, const int8_t * values, int distance) {
    const uint8x16_t mask = vdupq_n_u8(3);
    sums = accumulate(sums, vandq_u8(codes, mask), values);
    sums = accumulate(sums, vandq_u8(vshrq_n_u8(codes, 2), mask), values + distance);
    sums = accumulate(sums, vandq_u8(vshrq_n_u8(codes, 4), mask), values + 2 * distance);
    return accumulate(sums, vshrq_n_u8(codes, 6), values + 3 * distance);
}

ALWAYS_INLINE int32_t tq2_0_sum(const uint8_t * block, const int8_t * values) {
    int32x4_t even = vdupq_n_s32(0), odd = even;
    for (int half = 0; half < 2; half++) {
        even = accumulate_positions(even, vld1q_u8(block + 32 * half), values + 128 * half, 32);
        odd = accumulate_positions(odd, vld1q_u8(block + 32 * half + 16), values + 128 * half + 16, 32);
    }
    return vaddvq_s32(vaddq_s32(even, odd));
}

// Base-3 digits: a byte's first digit is byte * 3 >> 8, and the next one is that of byte * 3 modulo 256.
ALWAYS_INLINE uint8x16_t times_3(uint8x16_t bytes) {
    return vaddq_u8(bytes, vaddq_u8(bytes, bytes));
}

ALWAYS_INLINE uint8x16_t first_digit(uint8x16_t bytes) {
    const uint8x16_t least_2 = vcgtq_u8(bytes, vdupq_n_u8(170)), least_1 = vcgtq_u8(bytes, vdupq_n_u8(85));
    return vsubq_u8(vsubq_u8(vdupq_n_u8(0), least_1), least_2);
}

// A block's last four bytes have four digits each: the bytes times 1, 3, 9 and 27
ALWAYS_INLINE uint8x16_t last_bytes(const uint8_t * block) {
    static const uint8_t powers[16] = {1, 1, 1, 1, 3, 3, 3, 3, 9, 9, 9, 9, 27, 27, 27, 27};
    uint32_t four;
    memcpy(&four, block + 48, 4);
    return vmulq_u8(vreinterpretq_u8_u32(vdupq_n_u32(four)), vld1q_u8(powers));
}

ALWAYS_INLINE int32_t tq1_0_sum(const uint8_t * block, const int8_t * values) {
    int32x4_t sums[3] = {vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)};
    for (int i = 0; i < 3; i++) {
        uint8x16_t bytes = vld1q_u8(block + 16 * i);
        const int first = i < 2 ? 16 * i : 160, distance = i < 2 ? 32 : 16;
        for (int digit = 0; digit < 5; digit++, bytes = times_3(bytes))
            sums[i] = accumulate(sums[i], first_digit(bytes), values + first + digit * distance);
    }
    sums[2] = accumulate(sums[2], first_digit(last_bytes(block)), values + 240);
    return vaddvq_s32(vaddq_s32(vaddq_s32(sums[0], sums[1]), sums[2]));
}

ALWAYS_INLINE float scale_at(const char * address) {
    __fp16 scale;
    memcpy(&scale, address, 2);
    return scale;
}

ALWAYS_INLINE float scaled(int32_t sum, const column_parts & column, int64_t group) {
    return (float) (sum - column.sums[group]) * column.scales[group];
}

ALWAYS_INLINE float block_sum(const weight_format & format, const char * weights, const column_parts & column, int64_t block) {
    const uint8_t * codes = (const uint8_t *) weights;
    if (format.type == TQ2_0)
        return scaled(tq2_0_sum(codes, column.values + 256 * block), column, block);
    if (format.type == TQ1_0)
        return scaled(tq1_0_sum(codes, column.values + 256 * block), column, block);
    const int8_t * values = column.values + 4 * q2_0_lane(block, 0, 0);
    const int32x4_t sums = accumulate_positions(vdupq_n_s32(0), vld1q_u8(codes + 2), values, 32);
    const int32x2_t groups = vpadd_s32(vget_low_s32(sums), vget_high_s32(sums));
    const int64_t second = 2 * block + 1;
    return fmaf((float) (vget_lane_s32(groups, 1) - column.sums[second]), column.scales[second],
                scaled(vget_lane_s32(groups, 0), column, 2 * block));
}

void multiply_rows(const weight_format & format, const char * weights, size_t row_bytes, int n_rows, int64_t n_inputs,
                   char * place, float * results) {
    const column_parts column = parts_of_column(place, format, n_inputs);
    for (int row = 0; row < n_rows; row++, weights += row_bytes) {
        float total = 0;
        for (int64_t block = 0; block < n_inputs / format.block_values; block++) {
            const char * stored = weights + block * format.block_bytes;
            total = fmaf(block_sum(format, stored, column, block), scale_at(stored + format.scale_offset), total);
        }
        results[row] = total;
    }
}

}  // namespace
