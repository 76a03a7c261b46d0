// Which nodes of ggml's graphs are products that we compute, and the product of such a node.
#pragma once
#include "ggml.h"
#include "products.h"

bool is_our_product(const ggml_tensor * node);
product_job job_of(const ggml_tensor * node, void * work);
// The bytes of work buffer that we need for the node, or llama.cpp's own code if that is more
size_t work_bytes_of(const ggml_tensor * node, int n_threads);

// For tests, benchmarks and the self-test: whether we take nodes at all, and how many products were computed
bool takes_nodes();
void count_product();
