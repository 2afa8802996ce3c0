#include "cerebellum/gguf/mapped_files.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <string>

namespace cerebellum {

namespace {

/// What a signal handler can read: no locks, no memory that moves.
struct Mapping {
    std::atomic<std::uintptr_t> begin{0};  // 0: free
    std::atomic<std::uintptr_t> end{0};
    std::array<char, 512> path{};  // cut where it is longer
};

constexpr std::size_t most_mappings = 512;
std::array<Mapping, most_mappings> mappings;
std::mutex changing;
struct sigaction before;

void say(const char* text) {
    for (std::size_t left = std::strlen(text); left > 0;) {
        const auto written = ::write(STDERR_FILENO, text, left);
        if (written <= 0) return;
        text += written;
        left -= static_cast<std::size_t>(written);
    }
}

void on_lost_page(int, siginfo_t* info, void*) {
    const auto address = reinterpret_cast<std::uintptr_t>(info->si_addr);
    for (const auto& mapping : mappings) {
        if (mapping.begin == 0 || address < mapping.begin || address >= mapping.end) continue;
        say("\ncerebellum: ");
        say(mapping.path.data());
        say(" was cut short while it was read, or its disk fails; let nobody write to it and run the same command "
            "again\n");
        ::_exit(1);
    }
    // Not ours: the instruction is tried again, and the signal does what it did before.
    ::sigaction(SIGBUS, &before, nullptr);
}

}  // namespace

void remember_mapping(const void* address, std::size_t size_bytes, const std::filesystem::path& path) {
    const std::lock_guard lock(changing);
    for (auto& mapping : mappings) {
        if (mapping.begin != 0) continue;
        const auto name = path.string();
        const auto length = std::min(name.size(), mapping.path.size() - 1);
        std::memcpy(mapping.path.data(), name.data(), length);
        mapping.path[length] = '\0';
        mapping.end = reinterpret_cast<std::uintptr_t>(address) + size_bytes;
        mapping.begin = reinterpret_cast<std::uintptr_t>(address);
        return;
    }
}

void forget_mapping(const void* address) {
    const std::lock_guard lock(changing);
    for (auto& mapping : mappings)
        if (mapping.begin == reinterpret_cast<std::uintptr_t>(address)) mapping.begin = 0;
}

void explain_lost_pages() {
    struct sigaction action {};
    action.sa_sigaction = &on_lost_page;
    action.sa_flags = SA_SIGINFO;
    ::sigemptyset(&action.sa_mask);
    ::sigaction(SIGBUS, &action, &before);
}

}  // namespace cerebellum
