#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace cerebellum {

/// A tensor's quantized bytes and how long they took.
struct Quantized {
    std::vector<std::byte> bytes;
    double seconds = 0.0;
};

/// Makes what is asked for in an order known beforehand, by a thread of its own that is as far ahead as `limit_bytes`
/// of results allow (at least one), or, without one, when it is asked for. take() is for one thread.
class QuantizeAhead {
  public:
    /// `make(i)` is called for every i below `count`, in order, never twice at a time.
    QuantizeAhead(std::size_t count, std::function<Quantized(std::size_t)> make, bool in_background,
                  std::size_t limit_bytes);
    /// Ends what is under way.
    ~QuantizeAhead();
    QuantizeAhead(const QuantizeAhead&) = delete;
    QuantizeAhead& operator=(const QuantizeAhead&) = delete;

    /// The next one. Waits where it is not there yet; throws what making it has thrown, which does not concern others.
    Quantized take();
    /// Whether take() would not wait.
    bool is_ready();

  private:
    void work();

    std::size_t count_;
    std::function<Quantized(std::size_t)> make_;
    std::size_t limit_bytes_;
    std::size_t taken_ = 0;
    std::mutex mutex_;  // of what follows
    std::condition_variable changed_;
    struct Made {
        Quantized result;
        std::exception_ptr failure;
    };
    std::deque<Made> ready_;
    std::size_t ready_bytes_ = 0;
    bool stopping_ = false;
    std::thread thread_;
};

}  // namespace cerebellum
