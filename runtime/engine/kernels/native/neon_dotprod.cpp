// Arm with dot products (Armv8.2 and later): four bytes at a time
#include "compiler.h"
#include "instruction_set.h"
#include "processor.h"
#if defined(__aarch64__)
#include <arm_neon.h>
#include <math.h>
#include <string.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif

#define PANEL_ROWS 16
#define PANEL_COLUMNS 4
#define WORD_BYTES 4

namespace {

// The exact sums of a group, with what they start with
ALWAYS_INLINE void multiply_group(const uint8_t * codes, const char * group, int group_values,
                                  int32_t exact[PANEL_COLUMNS][PANEL_ROWS]) {
    const int32x4_t starts = vld1q_s32((const int32_t *) (group + group_values * PANEL_COLUMNS));
    int32x4_t sums[4][4];  // of columns, then of rows
    UNROLL for (int i = 0; i < 4; i++) {
        sums[0][i] = vdupq_laneq_s32(starts, 0);
        sums[1][i] = vdupq_laneq_s32(starts, 1);
        sums[2][i] = vdupq_laneq_s32(starts, 2);
        sums[3][i] = vdupq_laneq_s32(starts, 3);
    }
    for (int word = 0; word < group_values / 4; word++) {
        const int8x16_t values = vld1q_s8((const int8_t *) group + word * 16);
        UNROLL for (int i = 0; i < 4; i++) {
            const int8x16_t four_rows = vld1q_s8((const int8_t *) codes + word * 64 + 16 * i);
            sums[0][i] = vdotq_laneq_s32(sums[0][i], four_rows, values, 0);
            sums[1][i] = vdotq_laneq_s32(sums[1][i], four_rows, values, 1);
            sums[2][i] = vdotq_laneq_s32(sums[2][i], four_rows, values, 2);
            sums[3][i] = vdotq_laneq_s32(sums[3][i], four_rows, values, 3);
        }
    }
    UNROLL for (int column = 0; column < 4; column++)
        UNROLL for (int i = 0; i < 4; i++)
            vst1q_s32(exact[column] + 4 * i, sums[column][i]);
}

}  // namespace

#include "neon_panels.h"

namespace {
const instruction_set here = {"neon-dotprod", PANEL_ROWS, PANEL_COLUMNS, SMALL_ITEM, 0, false, quantize_column, multiply_rows,
                              quantize_panel<>, unpack_panel, multiply_panels, nullptr, nullptr, nullptr};
}

#if defined(__clang__)
#pragma clang attribute pop
#endif

const instruction_set * neon_dotprod(void) {
    return processor_has_dotprod() ? &here : nullptr;
}
#else
const instruction_set * neon_dotprod(void) {
    return nullptr;
}
#endif
