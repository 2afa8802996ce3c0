#include "cerebellum/sweep/shared_states.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cassert>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <system_error>

#include "cerebellum/core/error.h"

namespace cerebellum {

namespace {

// The file begins with the number of processes that have opened it and a flag per window. New files are all zeros.
static_assert(std::atomic_ref<std::uint32_t>::is_always_lock_free, "processes share these");
std::atomic_ref<std::uint32_t> number(std::byte* memory, std::size_t index) {
    return std::atomic_ref(reinterpret_cast<std::uint32_t*>(memory)[index]);
}

std::filesystem::path folder_of(const Neighbours& neighbours) {
    return neighbours.folder.empty() ? std::filesystem::temp_directory_path() : neighbours.folder;
}

/// Several machines of a job may see the same folder.
std::filesystem::path file_of(const Neighbours& neighbours) {
    char machine[256] = {};
    ::gethostname(machine, sizeof(machine) - 1);
    return folder_of(neighbours) / fmt::format("cerebellum-{}-{}.states", machine, neighbours.job);
}

/// Live sets are kept in the order of their tensors.
std::size_t bytes_at(const Topology& topology, int cut) {
    return cut == 0 ? 0 : topology.live_bytes(cut);
}

}  // namespace

std::unique_ptr<SharedStates> SharedStates::open(const Neighbours& neighbours, const Topology& topology,
                                                 const SweepMap& map, std::size_t windows) {
    if (neighbours.count < 2 || map.ranges().empty()) return nullptr;
    std::size_t size_bytes = 0;
    for (const auto& range : map.ranges()) size_bytes += bytes_at(topology, range.end) * windows;
    std::error_code failure;
    const auto space = std::filesystem::space(folder_of(neighbours), failure);
    if (failure || size_bytes > space.available / 2) return nullptr;
    return std::unique_ptr<SharedStates>(new SharedStates(neighbours, topology, map, windows));
}

SharedStates::SharedStates(const Neighbours& neighbours, const Topology& topology, const SweepMap& map,
                           std::size_t windows)
    : path_(file_of(neighbours)), topology_(&topology), index_(neighbours.index), count_(neighbours.count) {
    for (const auto& range : map.ranges()) cuts_.push_back(range.begin);
    cuts_.push_back(map.ranges().back().end);
    for (const int cut : cuts_) {
        offsets_.push_back(window_bytes_);
        window_bytes_ += bytes_at(topology, cut);
    }
    constexpr std::size_t page = 4096;
    header_bytes_ = ((windows + 1) * sizeof(std::uint32_t) + page - 1) / page * page;
    size_bytes_ = header_bytes_ + windows * window_bytes_;
    const auto fail = [&](std::string_view what, int reason) {
        throw Error(
            fmt::format("{} {}: {}; name another folder with --scratch", path_.string(), what, std::strerror(reason)));
    };
    const int descriptor = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (descriptor < 0) fail("cannot be made", errno);
    // A page that the disk has no room for would otherwise end the process when it is written.
    int reason = ::posix_fallocate(descriptor, 0, static_cast<off_t>(size_bytes_));
    void* memory = MAP_FAILED;
    if (reason == 0) {
        memory = ::mmap(nullptr, size_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
        reason = errno;
    }
    ::close(descriptor);
    if (memory == MAP_FAILED) {
        ::unlink(path_.c_str());
        fail("cannot be shared", reason);
    }
    memory_ = static_cast<std::byte*>(memory);
    if (number(memory_, 0).fetch_add(1) + 1 == count_) ::unlink(path_.c_str());
}

SharedStates::~SharedStates() {
    // Whoever opens it now would wait for states that do not come.
    if (number(memory_, 0).load() < count_) ::unlink(path_.c_str());
    ::munmap(memory_, size_bytes_);
}

std::size_t SharedStates::offset_of(std::size_t window, std::size_t range) const {
    return header_bytes_ + window * window_bytes_ + offsets_.at(range);
}

bool SharedStates::is_ready(std::size_t window) const {
    return number(memory_, 1 + window).load(std::memory_order_acquire) != 0;
}

void SharedStates::set_ready(std::size_t window) {
    number(memory_, 1 + window).store(1, std::memory_order_release);
}

void SharedStates::put(std::size_t window, std::size_t range, const LiveState& state) {
    auto* at = memory_ + offset_of(window, range);
    for (const auto& [root, value] : state.values) {
        const auto bytes = read(*value);
        std::ranges::copy(bytes, at);
        at += bytes.size();
    }
    assert(at == memory_ + offset_of(window, range) + bytes_at(*topology_, cuts_[range]));
}

LiveState SharedStates::get(std::size_t window, std::size_t range, ValueStore& values) const {
    LiveState state;
    const auto* at = memory_ + offset_of(window, range);
    const auto& graph = topology_->graph();
    if (cuts_[range] == 0) return state;
    for (const int root : topology_->live_set(cuts_[range])) {
        const auto size = graph.tensors[static_cast<std::size_t>(root)].size_bytes();
        state.values[root] = values.keep(std::span(at, size));
        at += size;
    }
    return state;
}

}  // namespace cerebellum
