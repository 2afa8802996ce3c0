#include "cerebellum/evaluate/sandbox.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <grp.h>
#include <poll.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <initializer_list>
#include <optional>
#include <span>
#include <sstream>
#include <string_view>
#include <utility>
#include <vector>

#include "cerebellum/core/child_process.h"
#include "cerebellum/core/descriptor.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/proc_files.h"
#include "cerebellum/core/progress.h"
#include "cerebellum/evaluate/syscall_filter.h"

namespace cerebellum {

namespace fs = std::filesystem;

namespace {

constexpr uid_t nobody = 65534;
constexpr auto program_in_sandbox = "/tmp/program.py";
constexpr int program_descriptor = 3;
constexpr int filter_descriptor = 4;
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

/// An anonymous file with this in it.
Descriptor memory_file(std::string_view content) {
    Descriptor file(memfd_create("program", MFD_CLOEXEC));
    if (file.number() < 0) throw Error(fmt::format("no memory file for a program to judge: {}", std::strerror(errno)));
    while (!content.empty()) {
        const auto written = write(file.number(), content.data(), content.size());
        if (written < 0) throw Error(fmt::format("no memory for a program to judge: {}", std::strerror(errno)));
        content.remove_prefix(static_cast<std::size_t>(written));
    }
    lseek(file.number(), 0, SEEK_SET);
    return file;
}

using Arguments = std::vector<std::string>;

void append(Arguments& command, std::initializer_list<std::string> more) {
    command.insert(command.end(), more);
}

/// /usr and what programs expect beside it. Not one place of it can be written to but /tmp, a file system of a fixed
/// size; /dev has no zero, which could be mapped as memory that nobody is charged for.
void append_files(Arguments& command, const SandboxLimits& limits) {
    append(command, {"--ro-bind", "/usr", "/usr"});
    for (const auto* folder : {"/bin", "/lib", "/lib64", "/lib32", "/sbin"}) {
        std::error_code error;
        if (const auto target = fs::read_symlink(folder, error); !error)
            append(command, {"--symlink", target.string(), folder});
        else if (fs::is_directory(folder, error))
            append(command, {"--ro-bind", folder, folder});
    }
    if (fs::exists("/etc/ld.so.cache")) append(command, {"--ro-bind", "/etc/ld.so.cache", "/etc/ld.so.cache"});
    append(command, {"--proc", "/proc", "--dir", "/dev"});
    for (const auto* device : {"/dev/null", "/dev/random", "/dev/urandom"})
        append(command, {"--dev-bind", device, device});
    append(command, {"--symlink", "/proc/self/fd", "/dev/fd", "--symlink", "/proc/self/fd/0", "/dev/stdin"});
    append(command, {"--symlink", "/proc/self/fd/1", "/dev/stdout", "--symlink", "/proc/self/fd/2", "/dev/stderr"});
    append(command, {"--symlink", "/tmp", "/dev/shm"});
    append(command, {"--size", std::to_string(limits.scratch_bytes), "--tmpfs", "/tmp"});
    append(command, {"--ro-bind-data", std::to_string(program_descriptor), program_in_sandbox, "--remount-ro", "/"});
}

Arguments sandbox_command(const fs::path& bwrap, const fs::path& python, const SandboxLimits& limits, bool has_filter,
                          bool nested_namespaces) {
    Arguments command = {bwrap.string(), "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"};
    append(command, {"--clearenv", "--setenv", "PATH", "/usr/bin:/bin", "--setenv", "HOME", "/tmp"});
    append(command, {"--setenv", "LANG", "C.UTF-8", "--hostname", "sandbox"});
    if (!nested_namespaces) append(command, {"--unshare-user", "--disable-userns"});
    if (has_filter) append(command, {"--seccomp", std::to_string(filter_descriptor)});
    append_files(command, limits);
    append(command, {"--chdir", "/tmp", python.string(), "-I", "-B", "-c"});
    command.push_back(fmt::format(starter, limits.processes, program_in_sandbox));
    return command;
}

void limit(int resource, rlim_t value) {
    const rlimit both{value, value};
    setrlimit(static_cast<__rlimit_resource>(resource), &both);
}

/// One of the processors that we may run on, another one each time. Processes that are together on one take memory no
/// faster than their watcher can count it.
cpu_set_t next_processor() {
    static std::atomic<unsigned> count{0};
    cpu_set_t ours, one;
    CPU_ZERO(&ours);
    CPU_ZERO(&one);
    if (sched_getaffinity(0, sizeof(ours), &ours) != 0 || CPU_COUNT(&ours) == 0) return ours;
    auto skip = count++ % static_cast<unsigned>(CPU_COUNT(&ours));
    for (int i = 0; i < CPU_SETSIZE; ++i)
        if (CPU_ISSET(i, &ours) && skip-- == 0) {
            CPU_SET(i, &one);
            break;
        }
    return one;
}

/// In the child, between fork and exec: only what is safe there.
void confine(const SandboxLimits& limits, const cpu_set_t& processor, bool in_sandbox) {
    limit(RLIMIT_CPU, static_cast<rlim_t>(limits.cpu_s));
    limit(RLIMIT_AS, limits.memory_bytes);
    limit(RLIMIT_FSIZE, limits.scratch_bytes);
    limit(RLIMIT_CORE, 0);
    limit(RLIMIT_NOFILE, 64);
    limit(RLIMIT_MEMLOCK, 1 << 16);
    limit(RLIMIT_SIGPENDING, 1024);
    prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);  // a touched byte is a page of 4 KiB, not of 2 MiB
    if (CPU_COUNT(&processor) == 1) sched_setaffinity(0, sizeof(processor), &processor);
    if (const int adjust = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC); adjust >= 0) {
        [[maybe_unused]] const auto written = write(adjust, "1000", 4);  // before anything else of this machine
        close(adjust);
    }
    if (geteuid() == 0) {  // root is exempt from the limit of processes, and should not run this anyway
        if (setgroups(0, nullptr) != 0 || setresgid(nobody, nobody, nobody) != 0 ||
            setresuid(nobody, nobody, nobody) != 0)
            _exit(126);
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);  // another user would lose it
    if (!in_sandbox) limit(RLIMIT_NPROC, static_cast<rlim_t>(limits.processes));
}

/// The children of this thread, whatever they were started by. Only what is safe between fork and exec.
void kill_children() {
    const int list = open("/proc/thread-self/children", O_RDONLY | O_CLOEXEC);
    if (list < 0) return;
    char text[4096];
    const auto size = read(list, text, sizeof(text));
    close(list);
    pid_t process = 0;
    for (ssize_t i = 0; i < size; ++i) {
        if (text[i] >= '0' && text[i] <= '9') {
            process = process * 10 + (text[i] - '0');
        } else if (process > 0) {
            kill(process, SIGKILL);
            process = 0;
        }
    }
}

/// Whoever loses its parent becomes this process' child, and ends with it: bubblewrap ends before the first process of
/// its namespace does, in whose end the kernel waits for all others there. Ends as the program did.
[[noreturn]] void supervise(pid_t program) {
    int status = 0;
    while (waitpid(program, &status, 0) != program && errno == EINTR) {
    }
    for (;;) {
        kill_children();
        if (waitpid(-1, nullptr, 0) < 0 && errno == ECHILD) break;
    }
    if (WIFSIGNALED(status)) {
        limit(RLIMIT_CORE, 0);
        raise(WTERMSIG(status));
    }
    _exit(WEXITSTATUS(status));
}

/// What the child does before it becomes the program. Everything that takes memory was done before the fork.
void enter(const Descriptor& program, const Descriptor& filter, const SandboxLimits& limits, const cpu_set_t& processor,
           bool in_sandbox) {
    // First out of the way of the numbers that they are to have.
    constexpr int above = 16;
    const int code = fcntl(program.number(), F_DUPFD, above);
    const int calls = fcntl(filter.number(), F_DUPFD, above);
    dup2(code, program_descriptor);
    dup2(calls, filter_descriptor);
    close_range(filter_descriptor + 1, ~0U, 0);
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    const pid_t child = _Fork();
    if (child < 0) _exit(126);
    if (child > 0) supervise(child);
    confine(limits, processor, in_sandbox);
}

// What it uses
// -----------------------------------------------------------------------------------------------------------

/// What supervises the process, the process and everything below it, by whichever thread it was started.
std::vector<pid_t> tree_of(pid_t root) {
    std::vector<pid_t> all = {root};
    for (std::size_t i = 0; i < all.size(); ++i) {
        const auto tasks = fmt::format("/proc/{}/task", all[i]);
        for (const auto& thread : proc_names(tasks)) {
            std::istringstream children(proc_text(fmt::format("{}/{}/children", tasks, thread)));
            for (pid_t child; children >> child;) all.push_back(child);
        }
    }
    return all;
}

/// Memory that belongs to the processes: their own and shared pages (those of several count for each), what was swapped
/// out, page tables; and, where there are many processes, as much as the sockets and pipes of each can hold.
std::uint64_t process_bytes(std::span<const pid_t> processes) {
    constexpr std::size_t few = 3, usual_descriptors = 8;
    constexpr std::uint64_t socket_bytes = 213'000;
    std::uint64_t total = 0;
    for (const pid_t process : processes) {
        const auto status = proc_text(fmt::format("/proc/{}/status", process));
        for (const auto* field : {"RssAnon", "RssShmem", "VmSwap", "VmPTE"}) total += status_bytes(status, field);
        if (processes.size() <= few) continue;
        const auto open = proc_names(fmt::format("/proc/{}/fd", process)).size();
        if (open > usual_descriptors) total += (open - usual_descriptors) * socket_bytes;
    }
    return total;
}

/// What lies in the sandbox's /tmp; files take memory even when they are empty.
std::uint64_t scratch_bytes(std::span<const pid_t> processes, const SandboxLimits& limits) {
    constexpr std::uint64_t inode_bytes = 2048;
    struct statvfs facts {};
    if (processes.empty() || statvfs(fmt::format("/proc/{}/root/tmp", processes[0]).c_str(), &facts) != 0) return 0;
    const auto size = static_cast<std::uint64_t>(facts.f_blocks) * facts.f_frsize;
    if (size < limits.scratch_bytes || size > limits.scratch_bytes + facts.f_frsize) return 0;  // not mounted yet
    return (facts.f_blocks - facts.f_bfree) * facts.f_frsize + (facts.f_files - facts.f_ffree) * inode_bytes;
}

/// All that is supervised: the supervisor ends behind them, and with `at_once` together with them.
void kill_all(pid_t process, bool at_once) {
    auto processes = tree_of(process);
    if (!at_once) processes.erase(processes.begin());
    for (const pid_t each : processes) kill(each, SIGKILL);
    if (at_once) kill(-process, SIGKILL);
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
    filter_ = syscall_filter();
    const auto works = [](const SandboxResult& trial) {
        return trial.end == SandboxResult::End::exited && trial.code == 0 && trial.output == "ready\n";
    };
    constexpr auto trial_program = "print('ready')";
    auto trial = run(trial_program);
    if (!works(trial)) {  // older versions of bubblewrap, and some containers: the filter refuses namespaces as well
        nested_namespaces_ = true;
        trial = run(trial_program);
    }
    if (!works(trial))
        throw Error(
            fmt::format("bubblewrap cannot make a sandbox here ({}: {}); allow user namespaces, or force it with "
                        "--no-sandbox in a machine that has nothing to lose",
                        describe(trial), trial.output.substr(0, trial.output.find('\n'))));
}

SandboxResult Sandbox::run(const std::string& program) const {
    using Clock = std::chrono::steady_clock;
    const bool in_sandbox = isolation_ == Isolation::full;
    const auto command =
        in_sandbox ? sandbox_command(bwrap_, python_, limits_, !filter_.empty(), nested_namespaces_)
                   : Arguments{python_.string(), "-I", "-B", fmt::format("/proc/self/fd/{}", program_descriptor)};
    const auto program_file = memory_file(program), filter_file = memory_file(filter_);
    const auto processor = in_sandbox ? next_processor() : cpu_set_t{};
    ChildCommand start;
    start.arguments = command;
    start.environment = {"PATH=/usr/bin:/bin", "HOME=/tmp", "LANG=C.UTF-8"};
    start.environment_is_all = true;
    start.before_exec = [&] { enter(program_file, filter_file, limits_, processor, in_sandbox); };
    ChildProcess child(start);
    fcntl(child.output(), F_SETFL, O_NONBLOCK);
    const auto deadline = Clock::now() + std::chrono::duration<double>(limits_.wall_s);
    SandboxResult result;
    std::optional<Clock::time_point> killed;
    // A program without a sandbox may have stopped its supervisor.
    const auto patience = in_sandbox ? std::chrono::milliseconds(5000) : std::chrono::milliseconds(300);
    const auto stop = [&](SandboxResult::End reason) {
        if (!killed) result.end = reason;
        if (!killed) killed = Clock::now();
        kill_all(child.process(), Clock::now() - *killed > patience);
    };
    const auto take_output = [&] {
        char piece[1 << 16];
        for (ssize_t size; !killed && (size = read(child.output(), piece, sizeof(piece))) > 0;) {
            const auto room = limits_.output_bytes - result.output.size();
            result.output.append(piece, std::min<std::size_t>(static_cast<std::size_t>(size), room));
            if (static_cast<std::size_t>(size) > room) stop(SandboxResult::End::too_much_output);
        }
    };
    for (bool ended = false; !ended;) {
        pollfd waiting{child.output(), POLLIN, 0};
        constexpr int pause_ms = 3;
        poll(&waiting, 1, pause_ms);
        if ((waiting.revents & POLLHUP) != 0 && (waiting.revents & POLLIN) == 0) usleep(1000);
        take_output();
        if (child.ended()) {
            ended = true;
        } else if (killed || Clock::now() > deadline || Progress::stop_requested) {
            stop(SandboxResult::End::out_of_time);
        } else {
            const auto tree = tree_of(child.process());
            // Not the supervisor, which shares our memory, nor bubblewrap in front of the namespace.
            const auto processes = std::span(tree).subspan(std::min<std::size_t>(tree.size(), in_sandbox ? 2 : 1));
            if (static_cast<int>(processes.size()) > limits_.processes + 1)
                stop(SandboxResult::End::too_many_processes);
            const auto bytes = process_bytes(processes) + (in_sandbox ? scratch_bytes(processes, limits_) : 0);
            if (bytes > limits_.memory_bytes) stop(SandboxResult::End::out_of_memory);
        }
    }
    take_output();
    NoProgress().check();  // what was cut short by the user is not judged
    if (killed) return result;
    const auto end = child.wait();
    result.end = end.signal != 0 ? SandboxResult::End::signalled : SandboxResult::End::exited;
    result.code = end.signal != 0 ? end.signal : end.code;
    return result;
}

std::string Sandbox::description() const {
    return isolation_ == Isolation::full ? "bubblewrap" : "none";
}

}  // namespace cerebellum
