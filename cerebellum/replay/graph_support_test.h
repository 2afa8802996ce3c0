#pragma once

// For tests only: graphs made by hand.

#include <ggml.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "cerebellum/llama/recorded_graph.h"

namespace cerebellum::testing {

inline RecordedTensor tensor(ggml_op op, std::vector<int> sources, int view_of = -1, std::int64_t length = 8) {
    RecordedTensor result;
    result.op = op;
    result.shape = {length, 1, 1, 1};
    result.strides = {4, static_cast<std::size_t>(4 * length), static_cast<std::size_t>(4 * length),
                      static_cast<std::size_t>(4 * length)};
    result.sources.fill(-1);
    std::copy(sources.begin(), sources.end(), result.sources.begin());
    result.view_of = view_of;
    return result;
}

inline RecordedTensor leaf(TensorKind kind, const std::string& name, std::int64_t length = 8) {
    auto result = tensor(GGML_OP_NONE, {}, -1, length);
    result.kind = kind;
    result.name = name;
    return result;
}

}  // namespace cerebellum::testing
