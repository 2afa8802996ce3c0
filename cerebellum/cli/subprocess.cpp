#include "cerebellum/cli/subprocess.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

#ifdef __linux__
#include <sys/prctl.h>
#endif

#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/leftovers.h"
#include "cerebellum/core/progress.h"
#include "cerebellum/core/temporary_name.h"

namespace cerebellum::cli {

namespace fs = std::filesystem;

namespace {

/// Starts the program with its output in a file. It ends with us, and Ctrl-C is ours to pass on: it must hear of it
/// once, as the second signal would end it on the spot.
pid_t start(const fs::path& program, std::vector<char*>& argv, const fs::path& output) {
    const pid_t child = ::fork();
    if (child != 0) return child;
    ::setpgid(0, 0);
#ifdef __linux__
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
#endif
    const int descriptor = ::open(output.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (descriptor >= 0 && ::dup2(descriptor, STDOUT_FILENO) >= 0) ::execv(program.c_str(), argv.data());
    ::_exit(127);
}

/// Its status.
int wait_for(pid_t child, const fs::path& program) {
    bool told = false;
    int status = 0;
    for (pid_t ended = 0; (ended = ::waitpid(child, &status, WNOHANG)) != child;) {
        if (ended < 0 && errno != EINTR)
            throw Error(fmt::format("cannot wait for {}: {}", program.string(), std::strerror(errno)));
        if (Progress::stop_requested && !std::exchange(told, true)) ::kill(child, SIGTERM);
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return status;
}

}  // namespace

int run_self(const std::vector<std::string>& arguments, const fs::path& output) {
    std::error_code error;
    const auto program = fs::read_symlink("/proc/self/exe", error);
    if (error) throw Error(fmt::format("cannot find this program itself: {}", error.message()));
    const auto partial = output.empty() ? fs::path("/dev/null") : temporary_name(output);
    const ScratchFile scratch(output.empty() ? fs::path() : partial);
    std::vector<char*> argv = {const_cast<char*>(program.c_str())};
    for (const auto& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    const pid_t child = start(program, argv, partial);
    if (child < 0) throw Error(fmt::format("cannot start {}: {}", program.string(), std::strerror(errno)));
    const Leftover group(child);
    const int status = wait_for(child, program);
    const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 1;
    if (code == 0 && !output.empty()) fs::rename(partial, output);
    return code;
}

}  // namespace cerebellum::cli
