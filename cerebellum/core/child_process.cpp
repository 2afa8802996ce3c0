#include "cerebellum/core/child_process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <optional>
#include <thread>

#ifdef __linux__
#include <sys/prctl.h>
#endif

#include "cerebellum/core/error.h"
#include "cerebellum/core/leftovers.h"

extern char** environ;  // NOLINT(readability-redundant-declaration): not every system's unistd.h has it

namespace cerebellum {

namespace {

std::vector<std::string> environment_of(const ChildCommand& command) {
    const auto name_of = [](std::string_view variable) { return variable.substr(0, variable.find('=')); };
    std::vector<std::string> all;
    for (char** ours = environ; *ours != nullptr; ++ours) {
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

/// A process and what it says. Ended on destruction, with all that it has started, where it still runs.
class Child {
  public:
    explicit Child(const ChildCommand& command) {
        auto arguments = command.arguments;
        auto environment = environment_of(command);
        // Everything that takes memory is done before the fork: other threads may hold the allocator's lock.
        auto argv = pointers_to(arguments);
        auto envp = pointers_to(environment);
        int output[2], failure[2];
        if (::pipe(output) != 0) fail(command, errno);
        if (::pipe(failure) != 0) {
            const int reason = errno;
            ::close(output[0]);
            ::close(output[1]);
            fail(command, reason);
        }
        for (const int end : {output[0], output[1], failure[0], failure[1]}) ::fcntl(end, F_SETFD, FD_CLOEXEC);
        process_ = ::fork();
        if (process_ == 0) {
            ::setpgid(0, 0);  // Ctrl-C is ours to handle
#ifdef __linux__
            ::prctl(PR_SET_PDEATHSIG, SIGKILL);
#endif
            for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGPIPE, SIGXFSZ}) std::signal(signal, SIG_DFL);
            const int null = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
            if (null >= 0) ::dup2(null, STDIN_FILENO);
            ::dup2(output[1], STDOUT_FILENO);
            ::dup2(output[1], STDERR_FILENO);
            environ = envp.data();
            ::execvp(argv[0], argv.data());
            const int reason = errno;
            [[maybe_unused]] const auto told = ::write(failure[1], &reason, sizeof(reason));
            ::_exit(127);
        }
        const int fork_failure = errno;
        ::close(output[1]);
        ::close(failure[1]);
        output_ = output[0];
        int reason = process_ < 0 ? fork_failure : 0;
        if (process_ > 0 && ::read(failure[0], &reason, sizeof(reason)) != sizeof(reason)) reason = 0;
        ::close(failure[0]);
        if (reason != 0) {
            end_all();
            ::close(output_);
            fail(command, reason);
        }
        group_.emplace(process_);
    }
    ~Child() {
        end_all();
        if (output_ >= 0) ::close(output_);
    }
    Child(const Child&) = delete;
    Child& operator=(const Child&) = delete;

    int output() const {
        return output_;
    }
    int wait() {
        int status = 0;
        while (process_ > 0) {
            if (::waitpid(process_, &status, 0) == process_)
                process_ = 0;
            else if (errno != EINTR)
                throw Error(fmt::format("lost track of a program: {}", std::strerror(errno)));
        }
        return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }

  private:
    [[noreturn]] static void fail(const ChildCommand& command, int reason) {
        throw Error(fmt::format("cannot run {}: {}", command.arguments.front(), std::strerror(reason)));
    }

    void end_all() {
        if (process_ <= 0) return;
        ::kill(-process_, SIGTERM);
        using namespace std::chrono_literals;
        const auto deadline = std::chrono::steady_clock::now() + 3s;
        while (::waitpid(process_, nullptr, WNOHANG) == 0) {
            if (std::chrono::steady_clock::now() > deadline) {
                ::kill(-process_, SIGKILL);
                ::waitpid(process_, nullptr, 0);
                break;
            }
            std::this_thread::sleep_for(10ms);
        }
        ::kill(-process_, SIGKILL);  // what it has started
        process_ = 0;
    }

    pid_t process_ = -1;
    std::optional<Leftover> group_;
    int output_ = -1;
};

}  // namespace

int run_child(const ChildCommand& command, const std::function<void(std::string_view)>& on_line,
              const Progress& progress) {
    Child child(command);
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
    return child.wait();
}

}  // namespace cerebellum
