#include "cerebellum/core/progress.h"

#include "cerebellum/core/error.h"

namespace cerebellum {

std::atomic<bool> Progress::stop_requested{false};

void Progress::check() const {
    if (stop_requested.load(std::memory_order_relaxed))
        throw Interrupted("interrupted; run the same command again to resume where it stopped");
}

LateStage::~LateStage() {
    if (shown_) progress_.end();
}

void LateStage::advance(double done, std::string_view detail) {
    progress_.check();
    if (!shown_ && std::chrono::steady_clock::now() - begun_ > std::chrono::seconds(1)) {
        progress_.begin(stage_, total_);
        shown_ = true;
    }
    if (shown_) progress_.advance(done, detail);
}

}  // namespace cerebellum
