// A layer's experts: weights [inputs, rows, experts], activations [inputs, columns of a token, tokens], the chosen experts
// [experts of a token, tokens], results [rows, experts of a token, tokens]. Where a token has one column, all of its experts
// get that. The tokens of each expert are brought together and multiplied with its matrix at once.
#include "nodes.h"

#include <string.h>

#include <algorithm>

namespace {

constexpr int64_t FEW_COLUMNS = 16;  // beyond, more columns never need less work space

size_t aligned(size_t bytes) { return (bytes + 63) & ~(size_t) 63; }

// Where the parts of the work buffer begin
struct parts {
    size_t starts, pairs, activations, results, product, end;

    parts(const ggml_tensor * node, int n_threads) {
        const ggml_tensor *weights = node->src[0], *chosen = node->src[2];
        const int64_t n_tokens = chosen->ne[1], n_inputs = weights->ne[0];
        size_t product_bytes = product_work_bytes(weights->type, n_inputs, n_tokens, n_threads);
        for (int64_t columns = 1; columns <= std::min(n_tokens, FEW_COLUMNS); columns++)
            product_bytes = std::max(product_bytes, product_work_bytes(weights->type, n_inputs, columns, n_threads));
        starts = 0;
        pairs = aligned((weights->ne[2] + 1) * sizeof(int32_t));
        activations = pairs + aligned(chosen->ne[0] * n_tokens * sizeof(int32_t));
        results = activations + aligned(n_inputs * n_tokens * sizeof(float));
        product = results + aligned(weights->ne[1] * n_tokens * sizeof(float));
        end = product + product_bytes + 64;
    }
};

int32_t expert_of(const ggml_tensor * chosen, int64_t pair) {
    const char * data = (const char *) chosen->data;
    return *(const int32_t *) (data + pair % chosen->ne[0] * chosen->nb[0] + pair / chosen->ne[0] * chosen->nb[1]);
}

// Sort the pairs of a token and one of its experts by expert: expert e has pairs[starts[e]] to pairs[starts[e + 1] - 1]
void sort_pairs(const ggml_tensor * chosen, int64_t n_experts, int32_t * starts, int32_t * pairs) {
    const int64_t n_pairs = chosen->ne[0] * chosen->ne[1];
    std::fill(starts, starts + n_experts + 1, 0);
    for (int64_t pair = 0; pair < n_pairs; pair++) starts[expert_of(chosen, pair) + 1]++;
    for (int64_t expert = 0; expert < n_experts; expert++) starts[expert + 1] += starts[expert];
    for (int64_t pair = 0; pair < n_pairs; pair++) pairs[starts[expert_of(chosen, pair)]++] = (int32_t) pair;
    std::copy_backward(starts, starts + n_experts, starts + n_experts + 1);  // each is where the next one's begin
    starts[0] = 0;
}

}  // namespace

bool is_experts_product(const ggml_tensor * node) {
    const ggml_tensor * chosen = node->src[2];
    return chosen && chosen->type == GGML_TYPE_I32 && node->src[1]->ne[3] == 1 && node->src[0]->ne[2] > 0;
}

size_t experts_work_bytes(const ggml_tensor * node, int n_threads) { return parts(node, n_threads).end; }

void compute_experts_product(const ggml_tensor * node, char * work, const product_team * team) {
    const ggml_tensor *weights = node->src[0], *activations = node->src[1], *chosen = node->src[2];
    work = (char *) aligned((size_t) work);
    const parts at(node, team->n_threads);
    int32_t *starts = (int32_t *) (work + at.starts), *pairs = (int32_t *) (work + at.pairs);
    const int64_t n_experts = weights->ne[2], n_chosen = chosen->ne[0];
    const size_t column_bytes = weights->ne[0] * sizeof(float), result_bytes = weights->ne[1] * sizeof(float);
    const auto column = [&](int32_t pair) {
        return (const char *) activations->data + pair / n_chosen * activations->nb[2] +
               pair % n_chosen % activations->ne[1] * activations->nb[1];
    };
    const auto result = [&](int32_t pair) {
        return (char *) node->data + pair / n_chosen * node->nb[2] + pair % n_chosen * node->nb[1];
    };
    if (team->thread == 0) sort_pairs(chosen, n_experts, starts, pairs);
    team->barrier(team->context);
    for (int64_t expert = 0; expert < n_experts; expert++) {
        const int32_t first = starts[expert], n_columns = starts[expert + 1] - first;
        if (n_columns == 0) continue;
        product_job job{};
        job.type = weights->type;
        job.n_inputs = weights->ne[0], job.n_rows = weights->ne[1], job.n_columns = n_columns;
        job.weights = (const char *) weights->data + expert * weights->nb[2], job.row_bytes = weights->nb[1];
        job.activations = column(pairs[first]), job.activation_bytes = column_bytes;
        job.results = result(pairs[first]), job.result_bytes = result_bytes;
        job.work = work + at.product;
        if (n_columns > 1) {
            job.activations = work + at.activations, job.results = work + at.results;
            for (int32_t index = team->thread; index < n_columns; index += team->n_threads)
                memcpy(work + at.activations + index * column_bytes, column(pairs[first + index]), column_bytes);
            team->barrier(team->context);
        }
        product_run(&job, team);
        team->barrier(team->context);
        if (n_columns > 1)
            for (int32_t index = team->thread; index < n_columns; index += team->n_threads)
                memcpy(result(pairs[first + index]), job.results + index * result_bytes, result_bytes);
    }
}
