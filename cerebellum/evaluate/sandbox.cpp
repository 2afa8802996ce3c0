#include "cerebellum/evaluate/sandbox.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <grp.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <fstream>
#include <vector>

#include "cerebellum/core/error.h"

namespace cerebellum {

namespace fs = std::filesystem;

namespace {

constexpr uid_t nobody = 65534;
constexpr auto program_in_sandbox = "/tmp/program.py";
constexpr int program_descriptor = 3;
/// Python that runs the program: the limit of processes is only set in here, where it counts those of the sandbox. In
/// front of bubblewrap it would count all that this user runs.
constexpr auto starter =
    "import resource\n"
    "resource.setrlimit(resource.RLIMIT_NPROC, ({0}, {0}))\n"
    "with open('{1}') as file: program = compile(file.read(), '{1}', 'exec')\n"
    "exec(program, {{'__name__': '__main__', '__builtins__': __builtins__}})\n";

fs::path on_path(const char* name) {
    // The system's own first: what is in a user's folders is not visible in the sandbox.
    for (const auto* folder : {"/usr/bin", "/usr/local/bin", "/bin"})
        if (auto path = fs::path(folder) / name; access(path.c_str(), X_OK) == 0) return path;
    return {};
}

/// An anonymous file with the program in it.
int memory_file(const std::string& content) {
    const int descriptor = memfd_create("program", MFD_CLOEXEC);
    if (descriptor < 0) throw Error(fmt::format("no memory file for a program to judge: {}", std::strerror(errno)));
    for (std::size_t done = 0; done < content.size();) {
        const auto written = write(descriptor, content.data() + done, content.size() - done);
        if (written < 0) {
            close(descriptor);
            throw Error(fmt::format("no memory for a program to judge: {}", std::strerror(errno)));
        }
        done += static_cast<std::size_t>(written);
    }
    lseek(descriptor, 0, SEEK_SET);
    return descriptor;
}

std::vector<std::string> sandbox_command(const fs::path& bwrap, const fs::path& python, const SandboxLimits& limits) {
    std::vector<std::string> command = {
        bwrap.string(), "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL",  "--clearenv",
        "--setenv",     "PATH",          "/usr/bin:/bin",     "--setenv",      "HOME",       "/tmp", "--setenv",
        "LANG",         "C.UTF-8",       "--ro-bind",         "/usr",          "/usr"};
    for (const auto* folder : {"/bin", "/lib", "/lib64", "/lib32", "/sbin"}) {
        std::error_code error;
        if (const auto target = fs::read_symlink(folder, error); !error)
            command.insert(command.end(), {"--symlink", target.string(), folder});
        else if (fs::is_directory(folder, error))
            command.insert(command.end(), {"--ro-bind", folder, folder});
    }
    if (fs::exists("/etc/ld.so.cache"))
        command.insert(command.end(), {"--ro-bind", "/etc/ld.so.cache", "/etc/ld.so.cache"});
    command.insert(command.end(), {"--proc",
                                   "/proc",
                                   "--dev",
                                   "/dev",
                                   "--size",
                                   std::to_string(limits.scratch_bytes),
                                   "--tmpfs",
                                   "/tmp",
                                   "--ro-bind-data",
                                   std::to_string(program_descriptor),
                                   program_in_sandbox,
                                   "--chdir",
                                   "/tmp",
                                   "--hostname",
                                   "sandbox",
                                   python.string(),
                                   "-I",
                                   "-B",
                                   "-c",
                                   fmt::format(starter, limits.processes, program_in_sandbox)});
    return command;
}

void limit(int resource, rlim_t value) {
    const rlimit both{value, value};
    setrlimit(static_cast<__rlimit_resource>(resource), &both);
}

/// In the child, between fork and exec: only what is safe there.
void confine(const SandboxLimits& limits, bool in_sandbox) {
    setpgid(0, 0);
    limit(RLIMIT_CPU, static_cast<rlim_t>(limits.cpu_s));
    limit(RLIMIT_AS, limits.memory_bytes);
    limit(RLIMIT_FSIZE, limits.scratch_bytes);
    limit(RLIMIT_CORE, 0);
    limit(RLIMIT_NOFILE, 256);
    if (geteuid() == 0) {  // root is exempt from the limit of processes, and should not run this anyway
        if (setgroups(0, nullptr) != 0 || setresgid(nobody, nobody, nobody) != 0 ||
            setresuid(nobody, nobody, nobody) != 0)
            _exit(126);
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);  // another user would lose it
    if (!in_sandbox) limit(RLIMIT_NPROC, static_cast<rlim_t>(limits.processes));
}

struct Child {
    pid_t process = -1;
    int output = -1;
};

Child start(const std::vector<std::string>& command, const std::string& program, const SandboxLimits& limits,
            bool in_sandbox) {
    std::vector<char*> argv;
    for (const auto& argument : command) argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    std::array<std::string, 3> variables = {"PATH=/usr/bin:/bin", "HOME=/tmp", "LANG=C.UTF-8"};
    std::array<char*, 4> environment = {variables[0].data(), variables[1].data(), variables[2].data(), nullptr};
    const int file = memory_file(program);
    int pipe_ends[2];
    if (pipe2(pipe_ends, O_CLOEXEC) != 0) {
        close(file);
        throw Error(fmt::format("cannot start a program to judge: {}", std::strerror(errno)));
    }
    const pid_t process = fork();
    if (process == 0) {
        const int null = open("/dev/null", O_RDONLY);
        dup2(null, STDIN_FILENO);
        dup2(pipe_ends[1], STDOUT_FILENO);
        dup2(pipe_ends[1], STDERR_FILENO);
        if (file == program_descriptor)
            fcntl(file, F_SETFD, 0);
        else
            dup2(file, program_descriptor);
        close_range(program_descriptor + 1, ~0U, 0);
        confine(limits, in_sandbox);
        execve(argv[0], argv.data(), environment.data());
        _exit(127);
    }
    const int problem = errno;
    close(file);
    close(pipe_ends[1]);
    if (process < 0) {
        close(pipe_ends[0]);
        throw Error(fmt::format("cannot start a program to judge: {}", std::strerror(problem)));
    }
    fcntl(pipe_ends[0], F_SETFL, O_NONBLOCK);
    return {process, pipe_ends[0]};
}

/// The process and everything below it.
std::vector<pid_t> tree_of(pid_t root) {
    std::vector<pid_t> all = {root};
    for (std::size_t i = 0; i < all.size(); ++i) {
        std::ifstream children(fmt::format("/proc/{0}/task/{0}/children", all[i]));
        for (pid_t child; children >> child;) all.push_back(child);
    }
    return all;
}

std::uint64_t resident_bytes(const std::vector<pid_t>& processes) {
    const auto page = static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
    std::uint64_t total = 0;
    for (const pid_t process : processes) {
        std::ifstream statm(fmt::format("/proc/{}/statm", process));
        std::uint64_t size = 0, resident = 0, shared = 0;
        if (statm >> size >> resident >> shared) total += (resident - std::min(resident, shared)) * page;
    }
    return total;
}

/// Bubblewrap's first process in the new namespace ends with its parent, and everything in it with that.
void kill_all(pid_t process) {
    for (const pid_t each : tree_of(process)) kill(each, SIGKILL);
    kill(-process, SIGKILL);
}

}  // namespace

std::string describe(const SandboxResult& result) {
    using End = SandboxResult::End;
    switch (result.end) {
        case End::exited:
            return fmt::format("exit code {}", result.code);
        case End::signalled:
            return fmt::format("signal {}", result.code);
        case End::out_of_time:
            return "killed: out of time";
        case End::out_of_memory:
            return "killed: too much memory";
        case End::too_many_processes:
            return "killed: too many processes";
        case End::too_much_output:
            return "killed: too much output";
    }
    return "";
}

Sandbox::Sandbox(Isolation isolation, SandboxLimits limits)
    : isolation_(isolation), limits_(limits), python_(on_path("python3")), bwrap_(on_path("bwrap")) {
    if (python_.empty()) throw Error("there is no python3 in /usr/bin to run generated programs with; install python3");
    if (isolation == Isolation::limits_only) return;
    if (bwrap_.empty())
        throw Error(
            "generated programs are only run in a sandbox: install bubblewrap, or force it with --no-sandbox in a "
            "machine that has nothing to lose");
    const auto trial = run("print('ready')");
    if (trial.end != SandboxResult::End::exited || trial.code != 0 || trial.output != "ready\n")
        throw Error(
            fmt::format("bubblewrap cannot make a sandbox here ({}: {}); allow user namespaces, or force it with "
                        "--no-sandbox in a machine that has nothing to lose",
                        describe(trial), trial.output.substr(0, trial.output.find('\n'))));
}

SandboxResult Sandbox::run(const std::string& program) const {
    using Clock = std::chrono::steady_clock;
    const auto command = isolation_ == Isolation::full
                             ? sandbox_command(bwrap_, python_, limits_)
                             : std::vector<std::string>{python_.string(), "-I", "-B",
                                                        fmt::format("/proc/self/fd/{}", program_descriptor)};
    const auto child = start(command, program, limits_, isolation_ == Isolation::full);
    const auto deadline = Clock::now() + std::chrono::duration<double>(limits_.wall_s);
    SandboxResult result;
    bool killed = false;
    const auto stop = [&](SandboxResult::End reason) {
        if (!killed) result.end = reason;
        killed = true;
        kill_all(child.process);
    };
    int status = 0;
    for (bool ended = false; !ended;) {
        pollfd waiting{child.output, POLLIN, 0};
        constexpr int pause_ms = 10;
        poll(&waiting, 1, pause_ms);
        if ((waiting.revents & POLLHUP) != 0 && (waiting.revents & POLLIN) == 0) usleep(1000);
        char piece[1 << 16];
        for (ssize_t size; (size = read(child.output, piece, sizeof(piece))) > 0;) {
            const auto room = limits_.output_bytes - result.output.size();
            result.output.append(piece, std::min<std::size_t>(static_cast<std::size_t>(size), room));
            if (static_cast<std::size_t>(size) > room) stop(SandboxResult::End::too_much_output);
            if (killed) break;
        }
        if (waitpid(child.process, &status, WNOHANG) == child.process) {
            ended = true;
        } else if (Clock::now() > deadline) {
            stop(SandboxResult::End::out_of_time);
        } else {
            const auto processes = tree_of(child.process);
            if (static_cast<int>(processes.size()) > limits_.processes + 2)
                stop(SandboxResult::End::too_many_processes);
            if (resident_bytes(processes) > limits_.memory_bytes) stop(SandboxResult::End::out_of_memory);
        }
    }
    kill(-child.process, SIGKILL);
    close(child.output);
    if (killed) return result;
    result.end = WIFSIGNALED(status) ? SandboxResult::End::signalled : SandboxResult::End::exited;
    result.code = WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status);
    return result;
}

std::string Sandbox::description() const {
    return isolation_ == Isolation::full ? "bubblewrap" : "none";
}

}  // namespace cerebellum
