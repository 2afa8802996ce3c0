#include "cerebellum/core/progress.h"

#include "cerebellum/core/error.h"

namespace cerebellum {

std::atomic<bool> Progress::stop_requested{false};

void Progress::check() const {
    if (stop_requested.load(std::memory_order_relaxed))
        throw Interrupted("interrupted; run the same command again to resume where it stopped");
}

}  // namespace cerebellum
