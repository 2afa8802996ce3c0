#include "cerebellum/core/machine.h"

#include <fmt/format.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <fstream>
#include <optional>
#include <sstream>
#include <thread>

#include "cerebellum/core/parallel.h"

namespace cerebellum {

namespace fs = std::filesystem;

namespace {

/// The value behind "key : value" or "key: value".
std::string value_of(const std::string& line) {
    const auto colon = line.find(':');
    if (colon == std::string::npos) return "";
    const auto begin = line.find_first_not_of(" \t", colon + 1);
    return begin == std::string::npos ? "" : line.substr(begin);
}

void read_processor(const fs::path& root, Machine& machine) {
    std::ifstream file(root / "proc/cpuinfo");
    for (std::string line; std::getline(file, line);) {
        if (machine.processor.empty() && line.starts_with("model name")) machine.processor = value_of(line);
        if (machine.processor_flags.empty() && (line.starts_with("flags") || line.starts_with("Features"))) {
            std::istringstream words(value_of(line));
            for (std::string word; words >> word;) machine.processor_flags.insert(word);
        }
    }
}

void read_memory(const fs::path& root, Machine& machine) {
    std::ifstream file(root / "proc/meminfo");
    constexpr std::uint64_t kib = 1024;
    for (std::string line; std::getline(file, line);) {
        const auto kilobytes = std::strtoull(value_of(line).c_str(), nullptr, 10);
        if (line.starts_with("MemTotal:")) machine.memory_bytes = kib * kilobytes;
        if (line.starts_with("MemAvailable:")) machine.available_bytes = kib * kilobytes;
    }
}

/// A number in a file of the control groups; empty where there is no file, or no limit in it.
std::optional<std::uint64_t> limit_in(const fs::path& path) {
    std::ifstream file(path);
    std::string text;
    if (!(file >> text) || text.empty() || std::isdigit(static_cast<unsigned char>(text[0])) == 0) return std::nullopt;
    const auto value = std::strtoull(text.c_str(), nullptr, 10);
    constexpr std::uint64_t none = std::uint64_t{1} << 60;  // version 1 writes a huge number where there is no limit
    return value < none ? std::optional<std::uint64_t>(value) : std::nullopt;
}

/// The least limit from the process' own group up to the root, in both versions of control groups.
std::uint64_t memory_limit(const fs::path& root) {
    std::uint64_t least = 0;
    const auto walk = [&](const fs::path& mount, fs::path group, const char* name) {
        for (group = group.relative_path();; group = group.parent_path()) {
            if (const auto limit = limit_in(mount / group / name))
                least = least == 0 ? *limit : std::min(least, *limit);
            if (group.empty()) return;
        }
    };
    std::ifstream file(root / "proc/self/cgroup");
    for (std::string line; std::getline(file, line);) {
        const auto first = line.find(':'), second = line.find(':', first + 1);
        if (first == std::string::npos || second == std::string::npos) continue;
        const auto controllers = line.substr(first + 1, second - first - 1), group = line.substr(second + 1);
        if (controllers.empty()) walk(root / "sys/fs/cgroup", group, "memory.max");
        if (controllers == "memory") walk(root / "sys/fs/cgroup/memory", group, "memory.limit_in_bytes");
    }
    return least;
}

std::string graphics_of(const fs::path& root) {
    std::error_code ignored;
    if (fs::exists(root / "proc/driver/nvidia/version", ignored) || fs::exists(root / "dev/nvidiactl", ignored))
        return "NVIDIA";
    return fs::exists(root / "dev/kfd", ignored) ? "AMD" : "";
}

}  // namespace

std::uint64_t Machine::usable_bytes() const {
    return limit_bytes > 0 ? std::min(limit_bytes, available_bytes) : available_bytes;
}

Machine this_machine(const fs::path& root) {
    Machine machine;
    utsname names = {};
    if (uname(&names) == 0)
        machine.system = fmt::format("{} {} {}", static_cast<const char*>(names.sysname),
                                     static_cast<const char*>(names.release), static_cast<const char*>(names.machine));
    machine.physical_cores = physical_cores();
    machine.logical_cores = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
    read_processor(root, machine);
    read_memory(root, machine);
    machine.limit_bytes = memory_limit(root);
    std::ifstream(root / "proc/loadavg") >> machine.load;
    machine.graphics_hardware = graphics_of(root);
    return machine;
}

std::uint64_t free_disk_bytes(const fs::path& folder) {
    std::error_code error;
    const auto space = fs::space(folder, error);
    if (error || access(folder.c_str(), W_OK) != 0) return 0;
    return space.available;
}

}  // namespace cerebellum
