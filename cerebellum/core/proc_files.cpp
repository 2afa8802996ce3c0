#include "cerebellum/core/proc_files.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <sstream>
#include <system_error>

namespace cerebellum {

namespace fs = std::filesystem;

std::string proc_text(const fs::path& file) {
    std::ifstream stream(file, std::ios::binary);
    // Never by the buffer's own iterators: those throw where a read fails, a stream only remembers it.
    std::ostringstream text;
    text << stream.rdbuf();
    return std::move(text).str();
}

std::vector<std::string> proc_names(const fs::path& folder) {
    std::vector<std::string> names;
    std::error_code code;
    // No range: its ++ throws where the process has ended meanwhile.
    for (fs::directory_iterator entry(folder, code); !code && entry != fs::directory_iterator{}; entry.increment(code))
        names.push_back(entry->path().filename().string());
    return names;
}

std::vector<pid_t> all_processes() {
    std::vector<pid_t> processes;
    for (const auto& name : proc_names("/proc")) {
        pid_t process = 0;
        const auto* const end = name.data() + name.size();
        const auto [rest, error] = std::from_chars(name.data(), end, process);
        if (error == std::errc{} && rest == end) processes.push_back(process);
    }
    return processes;
}

std::uint64_t status_bytes(std::string_view status, std::string_view field) {
    const auto line = fmt::format("\n{}:", field);
    const auto at = status.find(line);
    if (at == std::string_view::npos) return 0;
    const auto begin = std::min(status.find_first_not_of(" \t", at + line.size()), status.size());
    std::uint64_t value = 0;
    std::from_chars(status.data() + begin, status.data() + status.size(), value);
    return value * 1024;
}

}  // namespace cerebellum
