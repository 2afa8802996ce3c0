#pragma once

#include <limits>
#include <list>
#include <memory>
#include <unordered_map>

#include "cerebellum/llama/recorded_graph.h"
#include "cerebellum/replay/device.h"

namespace cerebellum {

/// A weight of the source where the device can compute with it. It stays there for as long as this is held.
using PlacedWeight = std::shared_ptr<ggml_tensor>;

/// The source's weights, placed where slices need them. Up to the limit they stay where they are once they were placed;
/// above it, those not held are given up, the ones longest unused first. On the CPU the weights are the mapped file's
/// pages and to give them up means to drop the pages. Not thread-safe.
class WeightStore {
  public:
    explicit WeightStore(Device& device) : device_(&device) {}

    /// To be called before the first weight is placed.
    void set_limit(std::size_t limit_bytes) { limit_bytes_ = limit_bytes; }

    /// `on_host`: in host memory, for weights that are only looked up: row by row, which the CPU does as well.
    PlacedWeight place(const RecordedTensor& weight, bool on_host);

    std::size_t placed_bytes() const { return placed_bytes_; }
    /// Bytes that were brought to the device, or back into memory, in all.
    std::uint64_t loaded_bytes() const { return loaded_bytes_; }

  private:
    struct Entry;
    void make_room(std::size_t size_bytes);

    Device* device_;
    static constexpr std::size_t unlimited = std::numeric_limits<std::size_t>::max();
    std::size_t limit_bytes_ = unlimited;
    std::size_t placed_bytes_ = 0;
    std::uint64_t loaded_bytes_ = 0;
    std::list<std::shared_ptr<Entry>> used_;  // most recently used first
    std::unordered_map<const ggml_tensor*, std::list<std::shared_ptr<Entry>>::iterator> known_;
};

}  // namespace cerebellum
