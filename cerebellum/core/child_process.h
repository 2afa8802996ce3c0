#pragma once

#include <sys/types.h>

#include <chrono>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cerebellum/core/descriptor.h"
#include "cerebellum/core/leftovers.h"
#include "cerebellum/core/progress.h"

namespace cerebellum {

struct ChildCommand {
    std::vector<std::string> arguments;         // the program first; looked up on the PATH where it has no slash
    std::vector<std::string> environment = {};  // NAME=VALUE, on top of ours; NAME alone removes one
    int output = -1;                            // open for writing, takes what it says on stdout; -1: a pipe to us
    bool errors_are_ours = false;               // its stderr is ours; else it goes where its stdout goes
    bool environment_is_all = false;            // none of our variables but those
    /// Called in the new process before it becomes the program, its streams being what they will be. Only what is safe
    /// between fork and exec: no memory is to be taken. It need not return.
    std::function<void()> before_exec = {};
};

struct ChildEnd {
    int code = 0;    // 128 plus the signal where one ended it
    int signal = 0;  // 0: none
};

/// Another program, without standard input, in a process group of its own: Ctrl-C is ours to handle. It does not
/// outlive this object or, however we end, this process.
class ChildProcess {
  public:
    /// Throws Error naming the program and the reason where it cannot be started.
    explicit ChildProcess(const ChildCommand& command);
    /// Ends it as end() does.
    ~ChildProcess();
    ChildProcess(const ChildProcess&) = delete;
    ChildProcess& operator=(const ChildProcess&) = delete;

    pid_t process() const { return process_; }
    /// To read what it says from, where nothing else takes it; -1 else. At its end when all who could write have ended.
    int output() const { return output_ ? output_->number() : -1; }
    /// Empty while it runs.
    std::optional<ChildEnd> ended();
    ChildEnd wait();
    void ask_to_end();
    /// Asks it to end, and kills it and what it has started where it still runs `patience` later, or a third of a
    /// second after the user asked us to stop.
    void end(std::chrono::milliseconds patience = std::chrono::seconds(3));

  private:
    bool fetch(int options);

    pid_t process_ = -1;
    std::optional<Leftover> group_;
    std::optional<ChildEnd> end_;
    std::optional<Descriptor> output_;
};

/// Runs another program to its end, without standard input, and hands over what it says on stdout and stderr, piece by
/// piece: a piece ends at a line feed or, as progress bars do it, at a carriage return. Returns its exit code, or 128
/// plus the signal that ended it. Asks `progress` at least every tenth of a second whether to stop: then the program
/// and what it has started are ended, and Interrupted is thrown. Throws Error where it cannot be started. The program
/// does not outlive this process.
int run_child(const ChildCommand& command, const std::function<void(std::string_view)>& on_line,
              const Progress& progress);

}  // namespace cerebellum
