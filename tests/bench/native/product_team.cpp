// Threads that compute products one after the other, as those of llama.cpp do: they meet before each.
#include <atomic>
#include <thread>
#include <vector>

#include "products.h"

namespace {

struct team {
    int n_threads;
    std::atomic<int> arrived{0}, round{0}, chunk{0};

    void meet() {
        const int now = round.load();
        if (arrived.fetch_add(1) + 1 == n_threads) {
            arrived = 0;
            round.fetch_add(1);
            return;
        }
        while (round.load() == now) std::this_thread::yield();
    }
};

void meet(void * context) { ((team *) context)->meet(); }
void chunk_set(void * context, int value) { ((team *) context)->chunk = value; }
int chunk_add(void * context, int value) { return ((team *) context)->chunk.fetch_add(value); }

}  // namespace

extern "C" void run_products(void (*run)(const product_job *, const product_team *), const product_job * jobs, int n_jobs,
                             int n_threads) {
    team shared{n_threads};
    const auto work = [&](int thread) {
        const product_team view = {thread, n_threads, meet, chunk_set, chunk_add, &shared};
        for (int i = 0; i < n_jobs; i++) {
            run(jobs + i, &view);
            shared.meet();
        }
    };
    std::vector<std::thread> others;
    for (int thread = 1; thread < n_threads; thread++) others.emplace_back(work, thread);
    work(0);
    for (std::thread & thread : others) thread.join();
}
