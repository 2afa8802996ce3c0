#include "cerebellum/core/leftovers.h"

#include <signal.h>
#include <sys/wait.h>

#include <chrono>
#include <mutex>
#include <set>
#include <system_error>
#include <thread>
#include <utility>

namespace cerebellum {

namespace {

using namespace std::chrono_literals;

struct Registry {
    std::mutex mutex;
    std::set<std::filesystem::path> paths;
    std::set<pid_t> groups;
};

/// Never destroyed: the program may end while somebody still looks.
Registry& registry() {
    static auto* const one = new Registry;
    return *one;
}

/// Whether anybody of the group is left; zombies that only we can bury do not count.
bool lives(pid_t group) {
    while (::waitpid(-group, nullptr, WNOHANG) > 0) {
    }
    return ::kill(-group, 0) == 0;
}

}  // namespace

void remember_leftover(const std::filesystem::path& path) {
    if (path.empty()) return;
    auto& all = registry();
    const std::lock_guard lock(all.mutex);
    all.paths.insert(path);
}

void forget_leftover(const std::filesystem::path& path) {
    auto& all = registry();
    const std::lock_guard lock(all.mutex);
    all.paths.erase(path);
}

Leftover::Leftover(std::filesystem::path path) : path_(std::move(path)) {
    remember_leftover(path_);
}

Leftover::Leftover(pid_t process_group) : group_(process_group) {
    auto& all = registry();
    const std::lock_guard lock(all.mutex);
    all.groups.insert(group_);
}

Leftover::~Leftover() {
    if (group_ == 0) {
        forget_leftover(path_);
        return;
    }
    auto& all = registry();
    const std::lock_guard lock(all.mutex);
    all.groups.erase(group_);
}

void remove_leftovers() noexcept {
    auto& all = registry();
    const std::lock_guard lock(all.mutex);
    const auto deadline = std::chrono::steady_clock::now() + 250ms;
    for (const auto group : all.groups) {
        while (lives(group) && std::chrono::steady_clock::now() < deadline) std::this_thread::sleep_for(5ms);
        ::kill(-group, SIGKILL);
    }
    std::error_code ignored;
    for (const auto& path : all.paths) std::filesystem::remove_all(path, ignored);
}

}  // namespace cerebellum
