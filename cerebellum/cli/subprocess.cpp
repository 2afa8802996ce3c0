#include "cerebellum/cli/subprocess.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>
#include <utility>

#include "cerebellum/core/child_process.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/progress.h"
#include "cerebellum/core/temporary_name.h"

namespace cerebellum::cli {

namespace fs = std::filesystem;

namespace {

/// It must hear of Ctrl-C once, as the second signal would end it on the spot.
ChildEnd wait_for(ChildProcess& child) {
    bool told = false;
    while (!child.ended()) {
        if (Progress::stop_requested && !std::exchange(told, true)) child.ask_to_end();
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return child.wait();
}

}  // namespace

int run_self(const std::vector<std::string>& arguments, const fs::path& output) {
    std::error_code error;
    const auto program = fs::read_symlink("/proc/self/exe", error);
    if (error) throw Error(fmt::format("cannot find this program itself: {}", error.message()));
    const auto partial = output.empty() ? fs::path("/dev/null") : temporary_name(output);
    const ScratchFile scratch(output.empty() ? fs::path() : partial);
    const Descriptor words(::open(partial.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
    if (words.number() < 0) throw Error(fmt::format("cannot write {}: {}", partial.string(), std::strerror(errno)));
    ChildCommand command;
    command.arguments = {program.string()};
    command.arguments.insert(command.arguments.end(), arguments.begin(), arguments.end());
    command.output = words.number();
    command.errors_are_ours = true;
    ChildProcess child(command);
    const auto end = wait_for(child);
    const int code = end.signal == 0 ? end.code : 1;
    if (code == 0 && !output.empty()) fs::rename(partial, output);
    return code;
}

}  // namespace cerebellum::cli
