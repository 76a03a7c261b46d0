// Products of quantized weights with columns of F32 activations: Y[n][m] = sum_k W[m][k] * X[n][k]
#pragma once
#include <stddef.h>
#include <stdint.h>

// Those who compute one product together, and how they meet. All functions may be called by every thread.
struct product_team {
    int thread, n_threads;
    void (*barrier)(void * context);
    void (*chunk_set)(void * context, int value);   // the shared counter of work items
    int  (*chunk_add)(void * context, int value);   // returns the value before
    void * context;
};

struct product_job {
    int type;                          // ggml's number: 34 TQ1_0, 35 TQ2_0, 42 Q2_0, ...
    int64_t n_inputs, n_rows, n_columns;
    const char * weights;     size_t row_bytes;          // distance of rows
    const char * activations; size_t activation_bytes;   // distance of columns of F32
    char * results;           size_t result_bytes;       // distance of columns of F32
    char * work;                                         // product_work_bytes(), any alignment
};

// The library is built with -fvisibility=hidden; what tests call through ctypes must be visible.
#pragma GCC visibility push(default)
extern "C" {
// The instruction set that products use here: "avx2", "avx-vnni", "avx512-vnni", "avx512-vbmi", "avx512-amx", "neon-dotprod", "neon-i8mm", or "" where there is none
const char * product_instructions(void);
// For tests and benchmarks: use another instruction set; false where this processor or build doesn't have it
bool product_use(const char * instructions);
// Whether product_run computes this type with rows of so many inputs
bool product_supports(int type, int64_t n_inputs);
size_t product_work_bytes(int type, int64_t n_inputs, int64_t n_columns, int n_threads);
void product_run(const product_job * job, const product_team * team);
}
#pragma GCC visibility pop
// The caller promises: n_inputs, n_rows, n_columns >= 1; product_supports() was true; the blocks of a row lie next to each other;
// team->n_threads is at most the number that product_work_bytes() was asked for; all threads of a team call product_run() with
// the same job, and meet once more after it.
