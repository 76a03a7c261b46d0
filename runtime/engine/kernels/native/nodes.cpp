#include "nodes.h"
#include "ggml-backend-impl.h"

#include <atomic>

namespace {

struct weight_type {
    int type;
    size_t block_bytes;
};

constexpr weight_type WEIGHT_TYPES[] = {
    {GGML_TYPE_TQ1_0, 54}, {GGML_TYPE_TQ2_0, 66}, {GGML_TYPE_Q2_0, 18}, {GGML_TYPE_Q2_K, 84},
    {GGML_TYPE_Q6_K, 210}, {GGML_TYPE_Q8_0, 34},  {GGML_TYPE_F16, 2},
};

std::atomic<bool> g_takes_nodes{true};
std::atomic<int64_t> g_n_products{0};

// Some buffers, such as those of repacked weights, have layouts of their own.
bool lies_as_stored(const ggml_tensor * tensor) {
    if (!tensor->buffer) return true;
    const ggml_backend_buffer_type_t type = tensor->buffer->buft;
    return type->iface.is_host && type->iface.is_host(type);
}

bool is_known(const ggml_tensor * tensor) {
    for (const weight_type & known : WEIGHT_TYPES)
        if (known.type == tensor->type)
            return tensor->nb[0] == known.block_bytes && product_supports(tensor->type, tensor->ne[0]);
    return false;
}

// Weights are leaves of the graph. Keys and values of attention, which may have these types too, aren't: they stay stock.
bool are_weights(const ggml_tensor * tensor) {
    if (tensor->op != GGML_OP_NONE || tensor->view_src || tensor->ne[1] <= 0 || tensor->ne[3] != 1) return false;
    return is_known(tensor) && lies_as_stored(tensor);
}

int64_t n_columns(const ggml_tensor * tensor) { return tensor->ne[1] * tensor->ne[2] * tensor->ne[3]; }

bool are_floats(const ggml_tensor * tensor) {
    return tensor->type == GGML_TYPE_F32 && tensor->nb[0] == sizeof(float) && n_columns(tensor) > 0;
}

// Whether the columns have equal distances, across the last two axes too
bool is_one_matrix(const ggml_tensor * tensor) {
    return are_floats(tensor) && (tensor->ne[2] == 1 || tensor->nb[2] == tensor->nb[1] * (size_t) tensor->ne[1]) &&
           (tensor->ne[3] == 1 || tensor->nb[3] == tensor->nb[2] * (size_t) tensor->ne[2]);
}

}  // namespace

bool is_our_product(const ggml_tensor * node) {
    if (node->op == GGML_OP_MUL_MAT_ID)
        return are_weights(node->src[0]) && are_floats(node->src[1]) && are_floats(node) && is_experts_product(node);
    return node->op == GGML_OP_MUL_MAT && are_weights(node->src[0]) && node->src[0]->ne[2] == 1 &&
           is_one_matrix(node->src[1]) && is_one_matrix(node);
}

bool keeps_as_stored(const ggml_tensor * node) {
    return (node->op == GGML_OP_MUL_MAT || node->op == GGML_OP_MUL_MAT_ID) && is_known(node->src[0]);
}

size_t work_bytes_of(const ggml_tensor * node, int n_threads) {
    if (node->op == GGML_OP_MUL_MAT_ID) return experts_work_bytes(node, n_threads);
    return product_work_bytes(node->src[0]->type, node->src[0]->ne[0], n_columns(node->src[1]), n_threads);
}

void compute_product(const ggml_tensor * node, char * work, const product_team * team) {
    if (team->thread == 0) g_n_products.fetch_add(1, std::memory_order_relaxed);
    if (node->op == GGML_OP_MUL_MAT_ID) return compute_experts_product(node, work, team);
    const ggml_tensor *weights = node->src[0], *activations = node->src[1];
    product_job job{};
    job.type = weights->type;
    job.n_inputs = weights->ne[0], job.n_rows = weights->ne[1], job.n_columns = n_columns(activations);
    job.weights = (const char *) weights->data, job.row_bytes = weights->nb[1];
    job.activations = (const char *) activations->data, job.activation_bytes = activations->nb[1];
    job.results = (char *) node->data, job.result_bytes = node->nb[1];
    job.work = work;
    product_run(&job, team);
}

bool takes_nodes() { return g_takes_nodes.load(std::memory_order_relaxed); }

#pragma GCC visibility push(default)
extern "C" {
void kernels_take_nodes(bool take) { g_takes_nodes = take; }
int64_t kernels_products_computed(void) { return g_n_products; }
size_t kernels_tensor_bytes(void) { return sizeof(ggml_tensor); }
const char * kernels_source_digest(void) { return KERNEL_DIGEST; }
}
#pragma GCC visibility pop
