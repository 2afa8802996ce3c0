#pragma once

// Running the real executable and looking at what it leaves behind.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "cerebellum/core/file.h"
#include "cerebellum/gguf/gguf_support_test.h"

namespace cerebellum::testing {

struct ProgramResult {
    int code = -1;  // -1 where a signal ended it
    int signal = 0;
    std::string output;  // stdout
    std::string errors;  // stderr
};

/// A started process with its output in files. Killed on destruction where it still runs.
class Program {
  public:
    Program(const std::vector<std::string>& arguments, const fs::path& folder) {
        static int count = 0;
        const std::string number = std::to_string(++count);
        out_ = folder / ("stdout-" + number);
        err_ = folder / ("stderr-" + number);
        posix_spawn_file_actions_t actions;
        posix_spawn_file_actions_init(&actions);
        posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
        posix_spawn_file_actions_addopen(&actions, 1, out_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
        posix_spawn_file_actions_addopen(&actions, 2, err_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
        std::vector<char*> argv;
        for (const auto& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
        argv.push_back(nullptr);
        const int status = posix_spawnp(&pid_, argv[0], &actions, nullptr, argv.data(), environ);
        posix_spawn_file_actions_destroy(&actions);
        if (status != 0) throw std::runtime_error("cannot start " + arguments.front());
    }
    ~Program() {
        if (pid_ > 0) {
            ::kill(pid_, SIGKILL);
            ::waitpid(pid_, nullptr, 0);
        }
    }
    Program(const Program&) = delete;
    Program& operator=(const Program&) = delete;

    pid_t process() const { return pid_; }
    void send(int signal) const {
        if (pid_ > 0) ::kill(pid_, signal);
    }
    /// What it has written to stderr so far.
    std::string errors() const { return read_file(err_); }
    /// Whether it has not ended yet.
    bool running() {
        if (pid_ <= 0) return false;
        if (::waitpid(pid_, &status_, WNOHANG) != pid_) return true;
        pid_ = 0;
        return false;
    }
    /// Killed where it has not ended by itself after a while.
    ProgramResult wait(std::chrono::seconds limit) {
        const auto deadline = std::chrono::steady_clock::now() + limit;
        while (running()) {
            if (std::chrono::steady_clock::now() > deadline) send(SIGKILL);
            std::this_thread::sleep_for(std::chrono::milliseconds(2));
        }
        return wait();
    }
    ProgramResult wait() {
        while (pid_ > 0) {
            if (::waitpid(pid_, &status_, 0) == pid_)
                pid_ = 0;
            else if (errno != EINTR)
                throw std::runtime_error("waitpid failed");
        }
        ProgramResult result;
        if (WIFEXITED(status_)) result.code = WEXITSTATUS(status_);
        if (WIFSIGNALED(status_)) result.signal = WTERMSIG(status_);
        result.output = read_file(out_);
        result.errors = read_file(err_);
        return result;
    }

  private:
    pid_t pid_ = 0;
    int status_ = 0;
    fs::path out_, err_;
};

inline std::vector<std::string> with_program(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), CEREBELLUM_EXECUTABLE);
    return arguments;
}

/// Runs cerebellum to its end, or kills it after a while. `logs` is where its output is kept meanwhile.
inline ProgramResult run_program(const std::vector<std::string>& arguments, const fs::path& logs,
                                 std::chrono::seconds limit = std::chrono::seconds(100)) {
    Program program(with_program(arguments), logs);
    return program.wait(limit);
}

/// Plain English, enough for small windows. Not the documentation itself: no figure of a test is to change with that.
inline std::string some_text() {
    const fs::path source = CEREBELLUM_SOURCE_DIR;
    return read_file(source / "LICENSE") + read_file(source / "tests/e2e/some_text.txt");
}

}  // namespace cerebellum::testing
