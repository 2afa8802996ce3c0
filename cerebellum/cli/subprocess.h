#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace cerebellum::cli {

/// Runs this very program with other arguments and waits for it; its stderr is ours. What it prints on stdout goes into
/// a file, which appears only where it ends well; without one it goes nowhere. Returns its exit code, 1 where a signal
/// ended it. Who asks us to stop, asks it; it ends with us, however we do. Throws Error where it cannot be started.
int run_self(const std::vector<std::string>& arguments, const std::filesystem::path& output = {});

}  // namespace cerebellum::cli
