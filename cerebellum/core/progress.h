#pragma once

#include <atomic>
#include <chrono>
#include <string>
#include <string_view>
#include <utility>

namespace cerebellum {

/// Where long work reports to and asks whether to stop. The library itself never prints.
/// Implementations must be callable from several threads.
class Progress {
  public:
    virtual ~Progress() = default;
    /// A stage begins that will take `total` units of work (any unit; 0 where unknown).
    virtual void begin(std::string_view stage, double total) = 0;
    /// `done` of the stage's units are finished; `detail` names what is being worked on.
    virtual void advance(double done, std::string_view detail) = 0;
    virtual void end() = 0;
    /// Something the user should know, without being an error.
    virtual void warn(std::string_view message) = 0;
    virtual void info(std::string_view message) = 0;
    /// For those who want to know how it is done.
    virtual void detail(std::string_view message) = 0;
    /// Throws Interrupted when the user asked to stop. Called between units of work.
    void check() const;

    /// Set from a signal handler.
    static std::atomic<bool> stop_requested;
};

/// A stage that is shown only once it has taken a second: most often it is over before anybody could read of it.
class LateStage {
  public:
    /// The progress must outlive it.
    LateStage(Progress& progress, std::string stage, double total)
        : progress_(progress), stage_(std::move(stage)), total_(total) {}
    ~LateStage();
    LateStage(const LateStage&) = delete;
    LateStage& operator=(const LateStage&) = delete;
    /// Throws Interrupted when the user asked to stop. From one thread at a time.
    void advance(double done, std::string_view detail);

  private:
    Progress& progress_;
    std::string stage_;
    double total_;
    std::chrono::steady_clock::time_point begun_ = std::chrono::steady_clock::now();
    bool shown_ = false;
};

/// Reports nowhere; for tests and library users who do not care.
class NoProgress final : public Progress {
  public:
    void begin(std::string_view, double) override {}
    void advance(double, std::string_view) override {}
    void end() override {}
    void warn(std::string_view) override {}
    void info(std::string_view) override {}
    void detail(std::string_view) override {}
};

}  // namespace cerebellum
