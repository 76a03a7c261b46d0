// Arm with products of 8-bit matrices (i8mm): two rows times two columns of eight bytes at a time
#include "compiler.h"
#include "instruction_set.h"
#include "processor.h"
#if defined(__aarch64__)
#include <arm_neon.h>
#include <math.h>
#include <string.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod,i8mm"))), apply_to = function)
#else
#pragma GCC target("arch=armv8.2-a+dotprod+i8mm")
#endif

#define PANEL_ROWS 8
#define PANEL_COLUMNS 8
#define WORD_BYTES 8

namespace {

// The exact sums of a group, with what they start with
ALWAYS_INLINE void multiply_group(const uint8_t * codes, const char * group, int group_values,
                                  int32_t exact[PANEL_COLUMNS][PANEL_ROWS]) {
    const int32_t * starts = (const int32_t *) (group + group_values * PANEL_COLUMNS);
    int32x4_t sums[4][4];  // of pairs of columns, then of rows: row 0 times column 0 and 1, row 1 times column 0 and 1
    UNROLL for (int i = 0; i < 4; i++) {
        const int32x2_t two = vld1_s32(starts + 2 * i);
        UNROLL for (int j = 0; j < 4; j++)
            sums[i][j] = vcombine_s32(two, two);
    }
    for (int word = 0; word < group_values / 8; word++) {
        int8x16_t rows[4];
        UNROLL for (int j = 0; j < 4; j++)
            rows[j] = vld1q_s8((const int8_t *) codes + word * 64 + 16 * j);
        UNROLL for (int i = 0; i < 4; i++) {
            const int8x16_t columns = vld1q_s8((const int8_t *) group + word * 64 + 16 * i);
            UNROLL for (int j = 0; j < 4; j++)
                sums[i][j] = vmmlaq_s32(sums[i][j], rows[j], columns);
        }
    }
    UNROLL for (int i = 0; i < 4; i++)
        UNROLL for (int j = 0; j < 4; j++) {
            exact[2 * i][2 * j] = vgetq_lane_s32(sums[i][j], 0);
            exact[2 * i + 1][2 * j] = vgetq_lane_s32(sums[i][j], 1);
            exact[2 * i][2 * j + 1] = vgetq_lane_s32(sums[i][j], 2);
            exact[2 * i + 1][2 * j + 1] = vgetq_lane_s32(sums[i][j], 3);
        }
}

}  // namespace

#include "neon_panels.h"

namespace {
const instruction_set here = {"neon-i8mm", PANEL_ROWS, PANEL_COLUMNS, SMALL_ITEM, 0, false, quantize_column, multiply_rows,
                              quantize_panel<>, unpack_panel, multiply_panels, nullptr, nullptr, nullptr};
}

#if defined(__clang__)
#pragma clang attribute pop
#endif

const instruction_set * neon_i8mm(void) {
    return processor_has_i8mm() ? &here : nullptr;
}
#else
const instruction_set * neon_i8mm(void) {
    return nullptr;
}
#endif
