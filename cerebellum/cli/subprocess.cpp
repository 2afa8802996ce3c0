#include "cerebellum/cli/subprocess.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/temporary_name.h"

namespace cerebellum::cli {

namespace fs = std::filesystem;

int run_self(const std::vector<std::string>& arguments, const fs::path& output) {
    std::error_code error;
    const auto program = fs::read_symlink("/proc/self/exe", error);
    if (error) throw Error(fmt::format("cannot find this program itself: {}", error.message()));
    const auto partial = temporary_name(output);
    const ScratchFile scratch(output.empty() ? fs::path() : partial);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, output.empty() ? "/dev/null" : partial.c_str(),
                                     O_WRONLY | O_CREAT | O_TRUNC, 0666);
    std::vector<char*> argv = {const_cast<char*>(program.c_str())};
    for (const auto& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    pid_t child = 0;
    const int failed = posix_spawn(&child, program.c_str(), &actions, nullptr, argv.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    if (failed != 0) throw Error(fmt::format("cannot start {}: {}", program.string(), std::strerror(failed)));
    int status = 0;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR) throw Error(fmt::format("cannot wait for {}: {}", program.string(), std::strerror(errno)));
    const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 1;
    if (code == 0 && !output.empty()) fs::rename(partial, output);
    return code;
}

}  // namespace cerebellum::cli
