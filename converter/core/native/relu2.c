/* The evaluation callback that runtime/engine/relu2.py describes, and the tensor structure whose size it checks. */

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

typedef struct Tensor {
    int32_t type;
    void *buffer;
    int64_t n_elements[4], strides[4];
    int32_t op, op_params[16], flags;
    struct Tensor *sources[10], *view_source;
    uint64_t view_offset;
    float *data;
    char name[64];
    void *extra;
    char padding[8];
} Tensor;

enum { GLU_OP, SWIGLU, N_REWRITTEN, N_REFUSED }; /* indices into `state` */

static bool is_like(const Tensor *tensor, const Tensor *node) {
    int64_t stride = sizeof(float);
    if (tensor->type != 0 || tensor->data == NULL)
        return false;
    for (int axis = 0; axis < 4; axis++) {
        if (tensor->n_elements[axis] != node->n_elements[axis] || tensor->strides[axis] != stride)
            return false;
        stride *= tensor->n_elements[axis];
    }
    return true;
}

/* Whether a GLU node is silu(ffn_gate) * ffn_up over whole F32 tensors and writes to its own memory. */
static bool is_known(const Tensor *node, const Tensor *gate, const Tensor *up, int64_t swiglu) {
    if (gate == NULL || up == NULL || node->op_params[0] != swiglu)
        return false;
    if (memcmp(gate->name, "ffn_gate", 8) != 0 || memcmp(up->name, "ffn_up", 6) != 0)
        return false;
    if (node->data == gate->data || node->data == up->data)
        return false;
    return is_like(node, node) && is_like(gate, node) && is_like(up, node);
}

__attribute__((visibility("default"))) int64_t relu2_tensor_bytes(void) {
    return sizeof(Tensor);
}

/* With `asked`, return whether this callback wants the node's data; without it, return whether to continue. */
__attribute__((visibility("default"))) bool relu2(const Tensor *node, bool asked, int64_t *state) {
    if (asked)
        return node->op == state[GLU_OP];
    const Tensor *gate = node->sources[0], *up = node->sources[1];
    if (!is_known(node, gate, up, state[SWIGLU])) {
        state[N_REFUSED]++;
        return true;
    }
    int64_t n_values = node->n_elements[0] * node->n_elements[1] * node->n_elements[2] * node->n_elements[3];
    const float *restrict gates = gate->data, *restrict ups = up->data;
    float *restrict out = node->data;
    for (int64_t index = 0; index < n_values; index++) {
        float value = gates[index] < 0 ? 0 : gates[index]; /* NaN stays NaN, as in numpy.maximum */
        out[index] = value * value * ups[index];
    }
    state[N_REWRITTEN]++;
    return true;
}
