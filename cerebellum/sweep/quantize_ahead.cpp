#include "cerebellum/sweep/quantize_ahead.h"

#include <cassert>
#include <utility>

namespace cerebellum {

QuantizeAhead::QuantizeAhead(std::size_t count, std::function<Quantized(std::size_t)> make, bool in_background,
                             std::size_t limit_bytes)
    : count_(count), make_(std::move(make)), limit_bytes_(limit_bytes) {
    if (in_background && count > 0) thread_ = std::thread([this] { work(); });
}

QuantizeAhead::~QuantizeAhead() {
    if (!thread_.joinable()) return;
    {
        const std::lock_guard lock(mutex_);
        stopping_ = true;
    }
    changed_.notify_all();
    thread_.join();
}

void QuantizeAhead::work() {
    for (std::size_t i = 0; i < count_; ++i) {
        {
            std::unique_lock lock(mutex_);
            changed_.wait(lock, [this] { return stopping_ || ready_.empty() || ready_bytes_ < limit_bytes_; });
            if (stopping_) return;
        }
        Made made;
        try {
            made.result = make_(i);
        } catch (...) {
            made.failure = std::current_exception();
        }
        {
            const std::lock_guard lock(mutex_);
            ready_bytes_ += made.result.bytes.size();
            ready_.push_back(std::move(made));
        }
        changed_.notify_all();
    }
}

Quantized QuantizeAhead::take() {
    assert(taken_ < count_);
    const auto index = taken_++;
    if (!thread_.joinable()) return make_(index);
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !ready_.empty(); });
    auto made = std::move(ready_.front());
    ready_.pop_front();
    ready_bytes_ -= made.result.bytes.size();
    lock.unlock();
    changed_.notify_all();
    if (made.failure) std::rethrow_exception(made.failure);
    return std::move(made.result);
}

bool QuantizeAhead::is_ready() {
    if (!thread_.joinable()) return false;
    const std::lock_guard lock(mutex_);
    return !ready_.empty();
}

}  // namespace cerebellum
