#pragma once

#include <string>

namespace cerebellum {

/// A seccomp filter in the kernel's form (an array of sock_filter), for programs that nobody has read: refuses the
/// system calls that reach memory which no limit counts (anonymous files, System V and shared anonymous memory, large
/// pipes, pinned pages), that make namespaces or mounts, that look into other processes, and that talk to parts of the
/// kernel no such program needs (keys, BPF, performance counters, io_uring, network sockets). Calls of another
/// instruction set end the program. Empty where this processor's calls are not known here.
std::string syscall_filter();

}  // namespace cerebellum
