#pragma once

#include <chrono>
#include <mutex>
#include <string>

#include "cerebellum/core/progress.h"
#include "cerebellum/core/time_left.h"

namespace cerebellum::cli {

/// Progress on stderr: one line that is rewritten on a terminal, a line every few seconds elsewhere.
class TerminalProgress final : public Progress {
  public:
    TerminalProgress(bool quiet, bool verbose);
    void begin(std::string_view stage, double total) override;
    void advance(double done, std::string_view detail) override;
    void end() override;
    void warn(std::string_view message) override;
    void info(std::string_view message) override;
    void detail(std::string_view message) override;
    /// The stages that follow the one that begins next will take about so long; it itself `stage_s`, in however many
    /// parts. From now on the whole job's time left is shown too.
    void expect(double stage_s, double later_s);

  private:
    using Clock = std::chrono::steady_clock;
    void line(const std::string& text, bool last);
    void clear_line();

    std::mutex mutex_;
    bool quiet_;
    bool verbose_;
    bool rewrites_;
    bool line_shown_ = false;
    std::string stage_;
    double total_ = 0.0;
    Clock::time_point started_;
    Clock::time_point shown_;
    TimeLeft left_;
    bool job_known_ = false;
    double job_stage_s_ = 0.0, job_later_s_ = 0.0;
    Clock::time_point job_stage_started_;
};

/// Ctrl-C, SIGTERM and SIGHUP ask the work to stop at the next safe point; a second one ends the program at once. Work
/// that comes to no safe point within a third of a second is not waited for: temporary files and processes of ours are
/// taken away and the program ends, as a killed one does, after which the same command goes on, too.
void stop_on_signals();

/// With MPI: the ranks have to part from each other first, which takes as long as the work of the slowest.
void wait_for_safe_points();

/// The work has ended, with this exit code, and has said why. True only for the first who calls it.
bool work_ends(int exit_code);

}  // namespace cerebellum::cli
