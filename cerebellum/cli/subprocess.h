#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace cerebellum::cli {

/// Runs this very program with other arguments and waits for it; its stderr is ours. What it prints on stdout goes into
/// a file, which appears only where it ends well; without one it goes nowhere. Returns its exit code, 1 where a signal
/// ended it. Ctrl-C reaches it as well as us. Throws Error where it cannot be started.
int run_self(const std::vector<std::string>& arguments, const std::filesystem::path& output = {});

}  // namespace cerebellum::cli
