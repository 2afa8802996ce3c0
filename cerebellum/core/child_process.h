#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "cerebellum/core/progress.h"

namespace cerebellum {

struct ChildCommand {
    std::vector<std::string> arguments;    // the program first; looked up on the PATH where it has no slash
    std::vector<std::string> environment;  // NAME=VALUE, on top of ours; NAME alone removes one
};

/// Runs another program to its end, without standard input, and hands over what it says on stdout and stderr, piece by
/// piece: a piece ends at a line feed or, as progress bars do it, at a carriage return. Returns its exit code, or 128
/// plus the signal that ended it. Asks `progress` at least every tenth of a second whether to stop: then the program
/// and what it has started are ended, and Interrupted is thrown. Throws Error where it cannot be started. The program
/// does not outlive this process.
int run_child(const ChildCommand& command, const std::function<void(std::string_view)>& on_line,
              const Progress& progress);

}  // namespace cerebellum
