#include "cerebellum/core/child_process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <optional>
#include <thread>
#include <utility>

#ifdef __linux__
#include <sys/prctl.h>
#endif

#include "cerebellum/core/error.h"

extern char** environ;  // NOLINT(readability-redundant-declaration): not every system's unistd.h has it

namespace cerebellum {

namespace {

std::vector<std::string> environment_of(const ChildCommand& command) {
    const auto name_of = [](std::string_view variable) { return variable.substr(0, variable.find('=')); };
    std::vector<std::string> all;
    for (char** ours = environ; *ours != nullptr && !command.environment_is_all; ++ours) {
        bool changed = false;
        for (const auto& other : command.environment) changed = changed || name_of(other) == name_of(*ours);
        if (!changed) all.emplace_back(*ours);
    }
    for (const auto& other : command.environment)
        if (other.find('=') != std::string::npos) all.push_back(other);
    return all;
}

std::vector<char*> pointers_to(std::vector<std::string>& strings) {
    std::vector<char*> pointers;
    for (auto& string : strings) pointers.push_back(string.data());
    pointers.push_back(nullptr);
    return pointers;
}

[[noreturn]] void fail(const ChildCommand& command, int reason) {
    throw Error(fmt::format("cannot run {}: {}", command.arguments.front(), std::strerror(reason)));
}

/// A pipe that no other program gets.
struct Pipe {
    Descriptor out, in;
};

Pipe make_pipe(const ChildCommand& command) {
    int ends[2];
#ifdef __linux__
    // At once: another thread may start a program just now, which would keep the other end open.
    if (::pipe2(ends, O_CLOEXEC) != 0) fail(command, errno);
#else
    if (::pipe(ends) != 0) fail(command, errno);
    for (const int end : ends) ::fcntl(end, F_SETFD, FD_CLOEXEC);
#endif
    return {Descriptor(ends[0]), Descriptor(ends[1])};
}

/// Between fork and exec: only what is safe there. A reason why it cannot run goes into `failure`.
[[noreturn]] void become(const ChildCommand& command, char** argv, char** variables, int output, int failure) {
    ::setpgid(0, 0);
#ifdef __linux__
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
#endif
    for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGPIPE, SIGXFSZ}) std::signal(signal, SIG_DFL);
    const int null = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (null >= 0) ::dup2(null, STDIN_FILENO);
    ::dup2(output, STDOUT_FILENO);
    if (!command.errors_are_ours) ::dup2(output, STDERR_FILENO);
    if (command.before_exec) command.before_exec();
    environ = variables;
    ::execvp(argv[0], argv);
    const int reason = errno;
    [[maybe_unused]] const auto told = ::write(failure, &reason, sizeof(reason));
    ::_exit(127);
}

}  // namespace

ChildProcess::ChildProcess(const ChildCommand& command) {
    auto arguments = command.arguments;
    auto environment = environment_of(command);
    // Everything that takes memory is done before the fork: other threads may hold the allocator's lock.
    auto argv = pointers_to(arguments);
    auto variables = pointers_to(environment);
    auto failure = make_pipe(command);
    std::optional<Pipe> words;
    if (command.output < 0) words.emplace(make_pipe(command));
    const int output = words ? words->in.number() : command.output;
    process_ = ::fork();
    if (process_ == 0) become(command, argv.data(), variables.data(), output, failure.in.number());
    if (process_ < 0) fail(command, errno);
    failure.in.close();
    int reason = 0;
    ssize_t told = 0;
    while ((told = ::read(failure.out.number(), &reason, sizeof(reason))) < 0 && errno == EINTR) {
    }
    if (told == sizeof(reason)) {
        fetch(0);
        fail(command, reason);
    }
    group_.emplace(process_);
    if (words) output_.emplace(std::move(words->out));
}

ChildProcess::~ChildProcess() {
    end();
}

/// Whether it has ended.
bool ChildProcess::fetch(int options) {
    if (end_) return true;
    int status = 0;
    pid_t fetched = 0;
    while ((fetched = ::waitpid(process_, &status, options)) < 0 && errno == EINTR) {
    }
    if (fetched == 0) return false;
    // Where SIGCHLD is ignored nobody can say how it ended: not well, then.
    if (fetched < 0) status = 1 << 8;
    const int signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    end_ = ChildEnd{signal != 0 ? 128 + signal : WEXITSTATUS(status), signal};
    group_.reset();
    return true;
}

std::optional<ChildEnd> ChildProcess::ended() {
    fetch(WNOHANG);
    return end_;
}

ChildEnd ChildProcess::wait() {
    fetch(0);
    return *end_;
}

void ChildProcess::ask_to_end() {
    if (!ended()) ::kill(-process_, SIGTERM);
}

void ChildProcess::end(std::chrono::milliseconds patience) {
    using namespace std::chrono_literals;
    if (ended()) return;
    const auto begun = std::chrono::steady_clock::now();
    ask_to_end();
    while (!ended()) {
        const auto most = Progress::stop_requested ? std::min(patience, 300ms) : patience;
        if (std::chrono::steady_clock::now() - begun > most) break;
        std::this_thread::sleep_for(10ms);
    }
    ::kill(-process_, SIGKILL);  // it, and what it has started
    wait();
}

int run_child(const ChildCommand& command, const std::function<void(std::string_view)>& on_line,
              const Progress& progress) {
    ChildProcess child(command);
    std::string pending;
    while (true) {
        progress.check();
        pollfd waiting{child.output(), POLLIN, 0};
        constexpr int pause_ms = 100;
        if (::poll(&waiting, 1, pause_ms) <= 0) continue;
        char piece[4096];
        const auto size = ::read(child.output(), piece, sizeof(piece));
        if (size < 0 && errno == EINTR) continue;
        if (size <= 0) break;
        pending.append(piece, static_cast<std::size_t>(size));
        std::size_t begin = 0;
        for (std::size_t end; (end = pending.find_first_of("\r\n", begin)) != std::string::npos; begin = end + 1)
            if (end > begin) on_line(std::string_view(pending).substr(begin, end - begin));
        pending.erase(0, begin);
    }
    if (!pending.empty()) on_line(pending);
    return child.wait().code;
}

}  // namespace cerebellum
