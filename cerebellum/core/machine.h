#pragma once

#include <cstdint>
#include <filesystem>
#include <set>
#include <string>

namespace cerebellum {

/// The machine that this process runs on. Figures that the system does not tell are 0, texts empty.
struct Machine {
    std::string system;     // "Linux 6.1.0 x86_64"
    std::string processor;  // "AMD EPYC 7B13"
    std::set<std::string> processor_flags;
    int physical_cores = 1;
    int logical_cores = 1;
    double load = 0.0;                  // runnable processes, mean over a minute
    std::uint64_t memory_bytes = 0;     // of the machine
    std::uint64_t available_bytes = 0;  // that can be used without swapping
    std::uint64_t limit_bytes = 0;      // of the control group that the process is in; 0: none
    std::string graphics_hardware;      // of which vendor there is a driver: "NVIDIA", "AMD"

    /// Memory that this process can use now.
    std::uint64_t usable_bytes() const;
};

/// `root` is where the system's files are looked up.
Machine this_machine(const std::filesystem::path& root = "/");

/// Bytes that may still be written into a folder; 0 where it cannot be written to.
std::uint64_t free_disk_bytes(const std::filesystem::path& folder);

}  // namespace cerebellum
