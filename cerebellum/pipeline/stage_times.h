#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace cerebellum {

/// What a stage took, in seconds. Only measuring says what of it was quantizing and what replaying.
struct StageTime {
    std::string name;
    double wall_s = 0.0;
    std::optional<double> quantize_s;
    std::optional<double> device_busy_s;      // replaying, waiting for it included
    std::optional<double> waiting_s;          // the device had nothing to do
    std::optional<double> measured_before_s;  // what the journal held already took, in earlier runs
};

/// The stages of a run in the order in which they first began. A stage that begins within another one interrupts it:
/// every moment belongs to one stage at most. Not thread-safe.
class StageTimes {
  public:
    using Clock = std::chrono::steady_clock;
    /// `now`: for tests.
    explicit StageTimes(Clock::time_point (*now)() = Clock::now) : now_(now) {}

    void begin(std::string_view name);
    void end();
    /// Told of every begin.
    std::function<void(std::string_view name)> on_begin;
    /// Adds to a stage: to one of the name that there is already, or a new one.
    StageTime& stage(std::string_view name);
    /// Of all stages that have ended, and of those that have not up to now.
    std::vector<StageTime> stages() const;

  private:
    void stop_clock();

    Clock::time_point (*now_)();
    std::vector<StageTime> stages_;
    std::vector<std::size_t> open_;  // outermost first; the last one's clock runs
    Clock::time_point since_;
};

/// A stage for as long as this lives.
class StageTimer {
  public:
    StageTimer(StageTimes& times, std::string_view name) : times_(times) { times_.begin(name); }
    ~StageTimer() { times_.end(); }
    /// The stage is over and another one begins.
    void next(std::string_view name) {
        times_.end();
        times_.begin(name);
    }
    StageTimer(const StageTimer&) = delete;
    StageTimer& operator=(const StageTimer&) = delete;

  private:
    StageTimes& times_;
};

nlohmann::json to_json(const std::vector<StageTime>& stages);
/// A line for each, for the log.
std::string describe(const std::vector<StageTime>& stages);

}  // namespace cerebellum
