#pragma once

#include <cstddef>

namespace cerebellum {

/// Windows that a pair still has to be measured on, in a tier.
struct Extent {
    std::size_t begin = 0;
    std::size_t end = 0;
    bool empty() const { return begin >= end; }
    bool has(std::size_t window) const { return window >= begin && window < end; }
    std::size_t size() const { return empty() ? 0 : end - begin; }
};

}  // namespace cerebellum
