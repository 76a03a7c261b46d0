// The hook. Before llama.cpp's CPU backend computes a node, it asks every "extra buffer type" whether that wants to. Each is
// a structure with a pointer to an object of C++; the hook puts an object of its own in the place of the first one's, takes
// our products and passes all else on. So there are no further graph splits, buffers or threads, and weights stay mapped.
//
// ggml exports nothing for this: the caller hands over addresses, and compares ggml's virtual tables and structures with
// what is declared here before (install.py). Declared here are the facts of ggml-cpu/traits.h and ggml-cpu-impl.h.
#include "ggml-backend-impl.h"
#include "nodes.h"

// In no unnamed namespace and not hidden: compilers would know all classes derived from them, ours alone, and turn the virtual
// calls of ggml's objects into calls of ours.
namespace of_ggml {

struct compute_params {  // struct ggml_compute_params
    int thread, n_threads;
    size_t work_bytes;
    void * work;
    void * threadpool;
    bool use_reference;
};

class __attribute__((visibility("default"))) node_traits {  // ggml::cpu::tensor_traits
  public:
    virtual ~node_traits() {}
    virtual bool work_size(int n_threads, const ggml_tensor * node, size_t & bytes) = 0;
    virtual bool compute_forward(compute_params * params, ggml_tensor * node) = 0;
};

class __attribute__((visibility("default"))) extra_buffers {  // ggml::cpu::extra_buffer_type
  public:
    virtual ~extra_buffers() {}
    virtual bool supports_op(ggml_backend_dev_t device, const ggml_tensor * node) = 0;
    virtual node_traits * get_tensor_traits(const ggml_tensor * node) = 0;
};

}  // namespace of_ggml

namespace {

using of_ggml::compute_params, of_ggml::extra_buffers, of_ggml::node_traits;

// ggml_barrier, ggml_threadpool_chunk_set and ggml_threadpool_chunk_add
struct threadpool_functions {
    void (*barrier)(void *);
    void (*chunk_set)(void *, int);
    int (*chunk_add)(void *, int);
} g_threadpool;

class our_traits : public node_traits {
    bool work_size(int n_threads, const ggml_tensor * node, size_t & bytes) override {
        bytes = work_bytes_of(node, n_threads);
        return true;
    }

    // False leaves the node to llama.cpp's own code, for which the work buffer was made if it isn't one for ours
    bool compute_forward(compute_params * params, ggml_tensor * node) override {
        if (params->work_bytes < work_bytes_of(node, params->n_threads)) return false;
        product_team team{};
        team.thread = params->thread, team.n_threads = params->n_threads, team.context = params->threadpool;
        team.barrier = g_threadpool.barrier;
        team.chunk_set = g_threadpool.chunk_set, team.chunk_add = g_threadpool.chunk_add;
        compute_product(node, (char *) params->work, &team);
        return true;
    }
};

class our_extra : public extra_buffers {
  public:
    explicit our_extra(extra_buffers * replaced) : replaced_(replaced) {}

    bool supports_op(ggml_backend_dev_t device, const ggml_tensor * node) override {
        return !(takes_nodes() && keeps_as_stored(node)) && replaced_->supports_op(device, node);
    }

    node_traits * get_tensor_traits(const ggml_tensor * node) override {
        return takes_nodes() && is_our_product(node) ? &traits_ : replaced_->get_tensor_traits(node);
    }

  private:
    extra_buffers * replaced_;
    our_traits traits_;
};

}  // namespace

#pragma GCC visibility push(default)
extern "C" {
// The virtual table of an extra buffer type's object, null where it has no object
const void * kernels_virtual_table(ggml_backend_buffer_type_t extra) {
    return extra->context ? *(const void **) extra->context : nullptr;
}

// Install the hook in `extra`, an extra buffer type of the CPU device; false if it was installed before. Not for two threads at
// once, nor while a graph is computed. The object is never freed: llama.cpp's threads may outlive this library's destructors.
bool kernels_install_hook(ggml_backend_buffer_type_t extra, void * barrier, void * chunk_set, void * chunk_add) {
    static bool installed = false;
    if (installed) return false;
    g_threadpool.barrier = (void (*)(void *)) barrier;
    g_threadpool.chunk_set = (void (*)(void *, int)) chunk_set;
    g_threadpool.chunk_add = (int (*)(void *, int)) chunk_add;
    extra->context = new our_extra((extra_buffers *) extra->context);
    return installed = true;
}
}
#pragma GCC visibility pop
