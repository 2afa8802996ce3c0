#include "cerebellum/cli/terminal.h"

#include <fmt/format.h>
#include <semaphore.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string_view>
#include <thread>

#include "cerebellum/cli/shortened.h"
#include "cerebellum/cli/terminal_style.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/leftovers.h"
#include "cerebellum/core/lost_pages.h"
#include "cerebellum/core/visible_text.h"

namespace cerebellum::cli {

namespace {

sem_t stop_was_requested;
std::atomic<bool> patient{false};
constexpr int still_working = -1;
std::atomic<int> ending{still_working};  // the exit code

extern "C" void request_stop(int signal) {
    const int before = errno;
    if (Progress::stop_requested.exchange(true)) {
        ::signal(signal, SIG_DFL);
        ::raise(signal);
    }
    ::sem_post(&stop_was_requested);
    errno = before;
}

/// Matrices of a large model are multiplied for minutes, drivers and file systems wait as long as they like, and a
/// model's memory takes its time to be given back: no safe point is near enough everywhere. Everything that is worth
/// keeping is on disk already.
void end_in_time() {
    using namespace std::chrono_literals;
    while (::sem_wait(&stop_was_requested) != 0) {
    }
    std::this_thread::sleep_for(300ms);
    if (patient) return;
    constexpr int failure = 1;
    try {
        if (work_ends(failure)) NoProgress().check();
        std::this_thread::sleep_for(200ms);  // what is left to do at the end of a program
    } catch (const Interrupted& interruption) {
        fmt::print(stderr, "cerebellum: {}\n", interruption.what());
    }
    remove_leftovers();
    std::_Exit(ending);
}

/// A thread that takes no signals: they are to wake whoever waits in the system.
void start_to_watch() {
    ::sem_init(&stop_was_requested, 0, 0);
    sigset_t all, before;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &before);
    std::thread(end_in_time).detach();
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

/// What waits in the system is woken: without SA_RESTART, which std::signal sets.
void on_signal(int signal, void (*handler)(int)) {
    struct sigaction action {};
    action.sa_handler = handler;
    ::sigemptyset(&action.sa_mask);
    ::sigaction(signal, &action, nullptr);
}

/// The first so many characters of a UTF-8 text.
std::string cut(const std::string& text, std::size_t characters) {
    std::size_t seen = 0, i = 0;
    for (; i < text.size(); ++i)
        if ((static_cast<unsigned char>(text[i]) & 0xC0) != 0x80 && seen++ == characters) break;
    return text.substr(0, i);
}

}  // namespace

std::string shortened(std::string_view message) {
    constexpr std::size_t enough = 1200, beginning = 800;
    if (message.size() <= enough) return std::string(message);
    // What went wrong stands in front, what to do about it behind.
    return fmt::format("{} ... {}", cut_utf8(message, beginning), message.substr(message.size() - enough + beginning));
}

void wait_for_safe_points() {
    patient = true;
}

bool work_ends(int exit_code) {
    int expected = still_working;
    return ending.compare_exchange_strong(expected, exit_code);
}

void stop_on_signals() {
    start_to_watch();
    for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
        struct sigaction inherited {};
        ::sigaction(signal, nullptr, &inherited);
        // Whoever started us with nohup, or in the background of a shell without job control, meant it.
        if (inherited.sa_handler != SIG_IGN) on_signal(signal, request_stop);
    }
    explain_lost_pages();
    // A server that goes away while it is written to is an error with a message, like any other.
    on_signal(SIGPIPE, SIG_IGN);
    on_signal(SIGXFSZ, SIG_IGN);  // a file that grows beyond the user's limit is an error like a full disk
}

TerminalProgress::TerminalProgress(bool quiet, bool verbose)
    : quiet_(quiet), verbose_(verbose), rewrites_(is_terminal(STDERR_FILENO)) {}

void TerminalProgress::begin(std::string_view stage, double total) {
    const std::lock_guard lock(mutex_);
    stage_ = stage;
    total_ = total;
    started_ = Clock::now();
    shown_ = started_;
    left_ = TimeLeft();
    if (!quiet_ && rewrites_) line(stage_, false);
}

void TerminalProgress::advance(double done, std::string_view detail) {
    const std::lock_guard lock(mutex_);
    const auto now = Clock::now();
    const auto interval = rewrites_ ? std::chrono::milliseconds(150) : std::chrono::milliseconds(15000);
    if (quiet_ || now - shown_ < interval) return;
    shown_ = now;
    std::string text = stage_;
    if (total_ > 0.0 && done > 0.0) {
        const double share = std::min(1.0, done / total_);
        const auto left = left_.update(std::chrono::duration<double>(now - started_).count(), share);
        text += fmt::format(" {:3.0f} %", 100.0 * share);
        if (left) text += fmt::format(", {} left", format_left(*left));
        if (left && job_known_) {
            const double in_stage = std::chrono::duration<double>(now - job_stage_started_).count();
            const double whole = std::max(*left, job_stage_s_ - in_stage) + job_later_s_;
            if (whole > *left + 1.0) text += fmt::format(" ({} of all)", format_left(whole));
        }
    }
    if (!detail.empty()) text += fmt::format("; {}", detail);
    line(text, false);
}

void TerminalProgress::expect(double stage_s, double later_s) {
    const std::lock_guard lock(mutex_);
    job_known_ = true;
    job_stage_s_ = stage_s;
    job_later_s_ = later_s;
    job_stage_started_ = Clock::now();
}

void TerminalProgress::end() {
    const std::lock_guard lock(mutex_);
    const double elapsed = std::chrono::duration<double>(Clock::now() - started_).count();
    if (!quiet_) line(fmt::format("{}: done in {}", stage_, format_seconds(elapsed)), true);
}

void TerminalProgress::warn(std::string_view message) {
    const std::lock_guard lock(mutex_);
    clear_line();
    fmt::print(stderr, "warning: {}\n", visible_lines(message));
}

void TerminalProgress::info(std::string_view message) {
    const std::lock_guard lock(mutex_);
    if (quiet_) return;
    clear_line();
    fmt::print(stderr, "{}\n", visible_lines(message));
}

void TerminalProgress::detail(std::string_view message) {
    if (verbose_) info(message);
}

void TerminalProgress::line(const std::string& text, bool last) {
    const auto shown = visible(shortened(text));
    clear_line();
    // A line as wide as the terminal would wrap and could not be rewritten.
    fmt::print(stderr, "{}", rewrites_ ? cut(shown, static_cast<std::size_t>(columns_of(STDERR_FILENO) - 1)) : shown);
    line_shown_ = rewrites_ && !last;
    if (!line_shown_) fmt::print(stderr, "\n");
    std::fflush(stderr);
}

void TerminalProgress::clear_line() {
    if (line_shown_) fmt::print(stderr, "\r\033[K");
    line_shown_ = false;
}

}  // namespace cerebellum::cli
