#include "nodes.h"

#include <atomic>

namespace {

// `stock_bytes`: of 256 activations in the type that llama.cpp multiplies the weights with (Q8_0, Q8_K or F16)
struct weight_type {
    int type;
    size_t block_bytes, stock_bytes;
};

constexpr weight_type WEIGHT_TYPES[] = {
    {GGML_TYPE_TQ1_0, 54, 292}, {GGML_TYPE_TQ2_0, 66, 292}, {GGML_TYPE_Q2_0, 18, 272}, {GGML_TYPE_Q2_K, 84, 292},
    {GGML_TYPE_Q6_K, 210, 292}, {GGML_TYPE_Q8_0, 34, 272},  {GGML_TYPE_F16, 2, 512},
};

std::atomic<bool> g_takes_nodes{true};
std::atomic<int64_t> g_n_products{0};

const weight_type * find_type(int type) {
    for (const weight_type & known : WEIGHT_TYPES)
        if (known.type == type) return &known;
    return nullptr;
}

int64_t n_columns(const ggml_tensor * tensor) { return tensor->ne[1] * tensor->ne[2] * tensor->ne[3]; }

// Whether the columns of a tensor of floats have equal distances, across its last two axes too
bool is_one_matrix(const ggml_tensor * tensor) {
    return tensor->type == GGML_TYPE_F32 && tensor->nb[0] == sizeof(float) &&
           (tensor->ne[2] == 1 || tensor->nb[2] == tensor->nb[1] * (size_t) tensor->ne[1]) &&
           (tensor->ne[3] == 1 || tensor->nb[3] == tensor->nb[2] * (size_t) tensor->ne[2]);
}

}  // namespace

// Weights are leaves of the graph. Keys and values of attention, which may have these types too, aren't: they stay stock.
bool is_our_product(const ggml_tensor * node) {
    if (node->op != GGML_OP_MUL_MAT) return false;
    const ggml_tensor *weights = node->src[0], *activations = node->src[1];
    const weight_type * known = find_type(weights->type);
    return known && weights->op == GGML_OP_NONE && !weights->view_src && weights->nb[0] == known->block_bytes &&
           weights->ne[2] == 1 && weights->ne[3] == 1 && is_one_matrix(activations) && is_one_matrix(node) &&
           weights->ne[1] > 0 && n_columns(activations) > 0 && product_supports(weights->type, weights->ne[0]);
}

product_job job_of(const ggml_tensor * node, void * work) {
    const ggml_tensor *weights = node->src[0], *activations = node->src[1];
    product_job job{};
    job.type = weights->type;
    job.n_inputs = weights->ne[0], job.n_rows = weights->ne[1], job.n_columns = n_columns(activations);
    job.weights = (const char *) weights->data, job.row_bytes = weights->nb[1];
    job.activations = (const char *) activations->data, job.activation_bytes = activations->nb[1];
    job.results = (char *) node->data, job.result_bytes = node->nb[1];
    job.work = (char *) work;
    return job;
}

size_t work_bytes_of(const ggml_tensor * node, int n_threads) {
    const ggml_tensor *weights = node->src[0], *activations = node->src[1];
    const int64_t columns = n_columns(activations);
    const size_t ours = product_work_bytes(weights->type, weights->ne[0], columns, n_threads);
    const size_t stock = find_type(weights->type)->stock_bytes * ((weights->ne[0] + 255) / 256) * columns;
    return ours > stock ? ours : stock;
}

bool takes_nodes() { return g_takes_nodes.load(std::memory_order_relaxed); }
void count_product() { g_n_products.fetch_add(1, std::memory_order_relaxed); }

#pragma GCC visibility push(default)
extern "C" {
void kernels_take_nodes(bool take) { g_takes_nodes = take; }
int64_t kernels_products_computed(void) { return g_n_products; }
size_t kernels_tensor_bytes(void) { return sizeof(ggml_tensor); }
const char * kernels_source_digest(void) { return KERNEL_DIGEST; }
}
#pragma GCC visibility pop
