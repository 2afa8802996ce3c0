#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "cerebellum/replay/slice.h"
#include "cerebellum/sweep/sweep_map.h"

namespace cerebellum {

/// Processes of one machine that sweep over one model on devices of one kind.
struct Neighbours {
    std::filesystem::path folder;  // where the file lies that they share; empty: the system's temporary folder
    std::string job;               // the same for all of them and for nobody else
    std::size_t index = 0;         // which of them this is
    std::size_t count = 1;
};

/// The source's live states, window by window, at the begins of all ranges and at the head (the "range" behind the last
/// one), in the memory of a file that neighbours share: each of them replays the source for some of the windows only.
/// The file has no name any more once all of them have opened it. Not thread-safe.
class SharedStates {
  public:
    /// Null where there is but one process, or where the file would take more than half of what the folder has free.
    static std::unique_ptr<SharedStates> open(const Neighbours& neighbours, const Topology& topology,
                                              const SweepMap& map, std::size_t windows);
    ~SharedStates();
    SharedStates(const SharedStates&) = delete;
    SharedStates& operator=(const SharedStates&) = delete;

    /// Whether this process is the one to make the states of a window.
    bool is_mine(std::size_t window) const { return window % count_ == index_; }
    /// Whether the states of a window are complete.
    bool is_ready(std::size_t window) const;
    /// States of a window may be made by several processes: they are the same.
    void put(std::size_t window, std::size_t range, const LiveState& state);
    void set_ready(std::size_t window);
    LiveState get(std::size_t window, std::size_t range, ValueStore& values) const;

  private:
    SharedStates(const Neighbours& neighbours, const Topology& topology, const SweepMap& map, std::size_t windows);
    std::size_t offset_of(std::size_t window, std::size_t range) const;

    const std::filesystem::path path_;
    const Topology* topology_;
    std::size_t index_, count_;
    std::vector<int> cuts_;             // by range
    std::vector<std::size_t> offsets_;  // of a range within a window's states
    std::size_t window_bytes_ = 0;
    std::size_t header_bytes_ = 0;
    std::size_t size_bytes_ = 0;
    std::byte* memory_ = nullptr;
};

}  // namespace cerebellum
