// AMX with products of bytes (Xeon since 2023), for many columns; else as AVX-512 with VNNI and VBMI.
#include "compiler.h"
#include "instruction_set.h"
#include "processor.h"
#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#include <string.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12's own headers: https://gcc.gnu.org/PR105593
#endif

#define LOOK_UP_DIGITS
#define SIGNED_CODES
#include "avx512_blocks.h"
#include "avx512_tile.h"
#include "x86_panels.h"
#include "amx_tiles.h"
#include "x86_words.h"
#include "avx512_halves.h"

namespace {
// Groups of 32 are multiplied at once, groups of 256 in fours of 64.
const instruction_set here = {"avx512-amx", PANEL_ROWS, TILES_COLUMNS, 256, 20, HAS_Q8_0, quantize_column, multiply_rows,
                              quantize_panel<TILES_COLUMNS, 32, 64>, unpack_panel, multiply_tiles, quantize_few, multiply_few,
                              multiply_halves};
}

#if defined(__clang__)
#pragma clang attribute pop
#endif

const instruction_set * avx512_amx(void) {
    return processor_has_amx_int8() ? &here : nullptr;
}
#else
const instruction_set * avx512_amx(void) {
    return nullptr;
}
#endif
