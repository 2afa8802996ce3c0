#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace cerebellum {

/// Physical cores of this machine (hyper-threads counted once); at least 1.
int physical_cores();

/// Calls `body(begin, end)` for consecutive chunks of [0, count) on up to `threads` threads and waits. The first
/// exception is rethrown. Chunks are dealt dynamically, so `body` must not depend on which thread it runs on.
template <typename Body>
void parallel_chunks(std::int64_t count, std::int64_t chunk, int threads, Body&& body) {
    chunk = std::max<std::int64_t>(1, chunk);
    std::atomic<std::int64_t> next{0};
    std::exception_ptr failure;
    std::mutex failure_mutex;
    const auto work = [&] {
        try {
            for (std::int64_t begin; (begin = next.fetch_add(chunk)) < count;)
                body(begin, std::min(count, begin + chunk));
        } catch (...) {
            next = count;
            const std::lock_guard lock(failure_mutex);
            if (!failure) failure = std::current_exception();
        }
    };
    const auto helpers = std::min<std::int64_t>(threads, (count + chunk - 1) / chunk) - 1;
    {
        std::vector<std::jthread> pool;
        for (std::int64_t i = 0; i < helpers; ++i) pool.emplace_back(work);
        work();
    }
    if (failure) std::rethrow_exception(failure);
}

}  // namespace cerebellum
