// AVX-512 with VNNI and VBMI (Ice Lake, Zen 4 and later): vectors of 512 bits for one column too.
#include "compiler.h"
#include "instruction_set.h"
#include "processor.h"
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#include <string.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi"))), apply_to = function)
#elif defined(__GNUC__)
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12's own headers: https://gcc.gnu.org/PR105593
#endif

#define LOOK_UP_DIGITS
#include "avx512_blocks.h"
#include "avx512_tile.h"
#include "x86_tiles.h"
#include "x86_words.h"
#include "avx512_halves.h"

namespace {
const instruction_set here = {"avx512-vbmi", PANEL_ROWS, PANEL_COLUMNS, SMALL_ITEM, 32, HAS_Q8_0, quantize_column, multiply_rows,
                              quantize_panel<>, unpack_panel, multiply_panels, quantize_few, multiply_few, multiply_halves};
}

#if defined(__clang__)
#pragma clang attribute pop
#endif

const instruction_set * avx512_vbmi(void) {
    return processor_has_avx512_vbmi() ? &here : nullptr;
}
#else
const instruction_set * avx512_vbmi(void) {
    return nullptr;
}
#endif
