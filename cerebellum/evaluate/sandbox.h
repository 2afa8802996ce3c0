#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace cerebellum {

struct SandboxLimits {
    double wall_s = 15.0;
    int cpu_s = 10;                             // of each process
    std::uint64_t memory_bytes = 1ULL << 30;    // address space of each process, and memory of all with their files
    int processes = 32;                         // at a time
    std::uint64_t output_bytes = 1ULL << 20;    // on stdout and stderr together
    std::uint64_t scratch_bytes = 64ULL << 20;  // of its /tmp, and of each file
};

struct SandboxResult {
    enum class End { exited, signalled, out_of_time, out_of_memory, too_many_processes, too_much_output };
    End end = End::exited;
    int code = 0;        // exit code or signal
    std::string output;  // stdout and stderr as they came, at most output_bytes
};

/// "exit code 1", "killed: out of time", …
std::string describe(const SandboxResult& result);

/// Runs Python programs that nobody has read: by bubblewrap, in namespaces of their own (no network, no other processes
/// to see, no further namespaces), with a read-only system, an empty /tmp of their own, an empty environment, no
/// privileges, the system calls that syscall_filter leaves, on one processor, and limits. Where we are root they run as
/// nobody. When run() returns, every process of the program has ended. Callable from several threads.
class Sandbox {
  public:
    enum class Isolation {
        full,
        limits_only,  // without bubblewrap: limits and an empty environment, but files and network of this user
    };
    /// Throws Error where bubblewrap or Python is missing, or this system lets nobody make namespaces.
    Sandbox(Isolation isolation, SandboxLimits limits);

    /// Throws Interrupted where the user asks to stop meanwhile.
    SandboxResult run(const std::string& program) const;
    /// "bubblewrap" or "none".
    std::string description() const;

  private:
    Isolation isolation_;
    SandboxLimits limits_;
    std::filesystem::path python_, bwrap_;
    std::string filter_;
    bool nested_namespaces_ = false;  // this bubblewrap cannot switch them off
};

}  // namespace cerebellum
