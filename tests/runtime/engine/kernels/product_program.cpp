// One product as a program, for processors that are emulated. Standard input: the instruction set's name in 16 bytes, then
// type, inputs, rows, columns, bytes of a row as int64, the rows, the columns. Standard output: the results.
#include <stdio.h>
#include <string.h>

#include <vector>

#include "products.h"

static bool read_all(void * place, size_t n_bytes) {
    return fread(place, 1, n_bytes, stdin) == n_bytes;
}

static int counter;

int main() {
    char name[16];
    int64_t numbers[5];
    if (!read_all(name, sizeof name) || !read_all(numbers, sizeof numbers)) return 2;
    if (!product_use(name) || strcmp(product_instructions(), name) != 0) return 3;
    const auto [type, n_inputs, n_rows, n_columns, row_bytes] = numbers;
    if (!product_supports((int) type, n_inputs)) return 4;
    std::vector<char> weights(n_rows * row_bytes), work(product_work_bytes((int) type, n_inputs, n_columns, 1));
    std::vector<float> activations(n_columns * n_inputs), results(n_columns * n_rows);
    if (!read_all(weights.data(), weights.size()) || !read_all(activations.data(), 4 * activations.size())) return 2;
    const product_job job = {(int) type, n_inputs, n_rows, n_columns, weights.data(), (size_t) row_bytes,
                             (const char *) activations.data(), (size_t) (4 * n_inputs), (char *) results.data(),
                             (size_t) (4 * n_rows), work.data()};
    const product_team team = {0, 1, [](void *) {}, [](void *, int value) { counter = value; },
                               [](void *, int value) { return (counter += value) - value; }, nullptr};
    product_run(&job, &team);
    return fwrite(results.data(), 4, results.size(), stdout) == results.size() ? 0 : 5;
}
