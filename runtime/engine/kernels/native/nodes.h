// Which nodes of ggml's graphs are products that we compute, and how.
#pragma once
#include "ggml.h"
#include "products.h"

bool is_our_product(const ggml_tensor * node);
// Whether such products are ours if the weights aren't repacked: llama.cpp, which asks before it loads them, mustn't
bool keeps_as_stored(const ggml_tensor * node);
// The bytes of work buffer that compute_product() needs, with at most so many threads
size_t work_bytes_of(const ggml_tensor * node, int n_threads);
// All threads of a team call this for the same node; after it the caller has a barrier of its own.
void compute_product(const ggml_tensor * node, char * work, const product_team * team);

// For tests, benchmarks and the self-test: whether we take nodes at all
bool takes_nodes();

// Products with a matrix of experts' weights for each token, GGML_OP_MUL_MAT_ID
bool is_experts_product(const ggml_tensor * node);
size_t experts_work_bytes(const ggml_tensor * node, int n_threads);
void compute_experts_product(const ggml_tensor * node, char * work, const product_team * team);
