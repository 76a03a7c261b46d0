// An accelerator device of ggml that computes our products on the CPU backend's own buffers, so that weights stay mapped. Any
// program of the pinned llama.cpp loads this library by the variable GGML_BACKEND_PATH. It needs only ggml's public interface
// for such libraries, but graphs are split around every product, where the hook (hook.cpp) costs nothing.
//
// No symbol of ggml is linked: the few functions are looked up in the program that loads this.
#include "ggml-backend-impl.h"
#include "nodes.h"

#include <atomic>
#include <stdlib.h>
#include <string.h>

#ifdef _OPENMP
#include <dlfcn.h>
#include <omp.h>

namespace {

constexpr char NAME[] = "Ternary";
constexpr char DESCRIPTION[] = "tritgguf's products of ternary weights";

struct ggml_functions {
    decltype(ggml_backend_cpu_buffer_type) * cpu_buffer_type;
    decltype(ggml_backend_cpu_buffer_from_ptr) * cpu_buffer_from_ptr;
    decltype(ggml_graph_n_nodes) * graph_n_nodes;
    decltype(ggml_graph_node) * graph_node;
} g_ggml;

template <class Function> bool find(Function & function, const char * name) {
    void * address = dlsym(RTLD_DEFAULT, name);
    if (!address)  // a program that loaded ggml for itself only
        if (void * library = dlopen("libggml-base.so.0", RTLD_NOLOAD | RTLD_LAZY)) address = dlsym(library, name);
    function = (Function) address;
    return address;
}

bool find_functions() {
    return find(g_ggml.cpu_buffer_type, "ggml_backend_cpu_buffer_type") &&
           find(g_ggml.cpu_buffer_from_ptr, "ggml_backend_cpu_buffer_from_ptr") &&
           find(g_ggml.graph_n_nodes, "ggml_graph_n_nodes") && find(g_ggml.graph_node, "ggml_graph_node");
}

// --- a backend: what computes one context's graphs ---

struct state {
    int n_threads = 1;
    ggml_abort_callback abort_callback = nullptr;
    void * abort_data = nullptr;
    std::atomic<int> next_chunk{0};
    char * work = nullptr;
    size_t work_bytes = 0;

    bool reserve(size_t bytes) {
        if (bytes <= work_bytes) return true;
        free(work);
        work = (char *) malloc(bytes);
        work_bytes = work ? bytes : 0;
        return work;
    }
};

state & state_of(ggml_backend_t backend) { return *(state *) backend->context; }

void wait_for_all(void *) {
#pragma omp barrier
}

// OpenMP's threads are those that the CPU backend uses for the nodes between ours; others would take the cores from them.
void compute(const ggml_tensor * node, state & own) {
#pragma omp parallel num_threads(own.n_threads)
    {
        product_team team{};
        team.thread = omp_get_thread_num(), team.n_threads = omp_get_num_threads();
        team.context = &own.next_chunk;
        team.barrier = wait_for_all;
        team.chunk_set = [](void * next, int value) { ((std::atomic<int> *) next)->store(value); };
        team.chunk_add = [](void * next, int value) { return ((std::atomic<int> *) next)->fetch_add(value); };
        compute_product(node, own.work, &team);
    }
}

ggml_status compute_graph(ggml_backend_t backend, ggml_cgraph * graph) {
    state & own = state_of(backend);
    const int n_nodes = g_ggml.graph_n_nodes(graph);
    for (int index = 0; index < n_nodes; index++) {
        const ggml_tensor * node = g_ggml.graph_node(graph, index);
        if (node->op != GGML_OP_MUL_MAT && node->op != GGML_OP_MUL_MAT_ID) continue;  // views need no work
        if (own.abort_callback && own.abort_callback(own.abort_data)) return GGML_STATUS_ABORTED;
        if (!own.reserve(work_bytes_of(node, own.n_threads))) return GGML_STATUS_ALLOC_FAILED;
        compute(node, own);
    }
    return GGML_STATUS_SUCCESS;
}

void free_backend(ggml_backend_t backend) {
    free(state_of(backend).work);
    delete &state_of(backend);
    delete backend;
}

void set_n_threads(ggml_backend_t backend, int n_threads) { state_of(backend).n_threads = n_threads; }

void set_abort_callback(ggml_backend_t backend, ggml_abort_callback callback, void * data) {
    state_of(backend).abort_callback = callback;
    state_of(backend).abort_data = data;
}

ggml_backend_t new_backend(ggml_backend_dev_t device, const char *) {
    static ggml_guid guid = {0x74, 0x72, 0x69, 0x74, 0x67, 0x67, 0x75, 0x66, 0x2d, 0x74, 0x65, 0x72, 0x6e, 0x61, 0x72, 0x79};
    ggml_backend_i functions{};
    functions.get_name = [](ggml_backend_t) { return NAME; };
    functions.free = free_backend;
    functions.graph_compute = compute_graph;
    return new ggml_backend{&guid, functions, device, new state};
}

// --- the device ---

void properties(ggml_backend_dev_t, ggml_backend_dev_props * found) {
    memset(found, 0, sizeof *found);
    found->name = NAME, found->description = DESCRIPTION, found->type = GGML_BACKEND_DEVICE_TYPE_ACCEL;
    found->caps.buffer_from_host_ptr = found->caps.mmap_support = true;
}

bool supports_node(ggml_backend_dev_t, const ggml_tensor * node) {
    switch (node->op) {
        case GGML_OP_NONE:
        case GGML_OP_RESHAPE:
        case GGML_OP_VIEW:
        case GGML_OP_PERMUTE:
        case GGML_OP_TRANSPOSE: return true;
        default: return takes_nodes() && is_our_product(node);
    }
}

ggml_backend_device_i device_functions() {
    ggml_backend_device_i functions{};
    functions.get_name = [](ggml_backend_dev_t) { return NAME; };
    functions.get_description = [](ggml_backend_dev_t) { return DESCRIPTION; };
    functions.get_memory = [](ggml_backend_dev_t, size_t * unused, size_t * total) { *unused = *total = 0; };
    functions.get_type = [](ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_ACCEL; };
    functions.get_props = properties;
    functions.init_backend = new_backend;
    functions.get_buffer_type = [](ggml_backend_dev_t) { return g_ggml.cpu_buffer_type(); };
    functions.buffer_from_host_ptr = [](ggml_backend_dev_t, void * start, size_t bytes, size_t) {
        return g_ggml.cpu_buffer_from_ptr(start, bytes);
    };
    functions.supports_op = supports_node;
    functions.supports_buft = [](ggml_backend_dev_t, ggml_backend_buffer_type_t type) {
        return type->iface.is_host && type->iface.is_host(type);
    };
    return functions;
}

ggml_backend_dev_t device(ggml_backend_reg_t registry, size_t) {
    static ggml_backend_device found{device_functions(), registry, nullptr};
    return &found;
}

void * function_named(ggml_backend_reg_t, const char * name) {
    if (strcmp(name, "ggml_backend_set_n_threads") == 0) return (void *) set_n_threads;
    if (strcmp(name, "ggml_backend_set_abort_callback") == 0) return (void *) set_abort_callback;
    return nullptr;
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {
// What ggml_backend_load() calls: first how good this is here, 0 for not at all, then the registry's entry
int ggml_backend_score(void) { return *product_instructions() ? 1 : 0; }

ggml_backend_reg_t ggml_backend_init(void) {
    static ggml_backend_reg_i functions{};
    if (!*product_instructions() || !find_functions()) return nullptr;
    functions.get_name = [](ggml_backend_reg_t) { return NAME; };
    functions.get_device_count = [](ggml_backend_reg_t) { return (size_t) 1; };
    functions.get_device = device;
    functions.get_proc_address = function_named;
    static ggml_backend_reg registry{GGML_BACKEND_API_VERSION, functions, nullptr};
    return &registry;
}
}
#pragma GCC visibility pop

#endif  // without OpenMP there is no such device: a second set of threads would take the cores from llama.cpp's own
