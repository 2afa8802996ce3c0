#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <vector>

namespace cerebellum {

/// An equivalent transformation of a model: channel j of some matrices' input is divided by 2^exponents[j] where it is
/// made, and their columns are multiplied by it. In exact arithmetic the model computes what it did before; what
/// quantization loses is another matter. Powers of two, so that floating-point numbers change their exponents only.
struct ChannelScaling {
    std::string producer;              ///< makes the channels: the elements of a vector, or the rows of a matrix
    std::vector<std::string> offsets;  ///< vectors that are added to the channels behind it
    std::vector<std::string> readers;  ///< all matrices that read the channels
    std::vector<std::int8_t> exponents;

    friend bool operator==(const ChannelScaling&, const ChannelScaling&) = default;
};

/// What transformations do to one tensor, as exponents by channel; empty: nothing.
struct TensorScaling {
    std::vector<std::int8_t> outputs;  ///< of the channels that it makes or is added to, which are divided
    std::vector<std::int8_t> inputs;   ///< of the columns, which are multiplied
};

nlohmann::json to_json(const ChannelScaling& scaling);
/// Throws nlohmann::json::exception where the value is none.
ChannelScaling channel_scaling_from_json(const nlohmann::json& value);

/// By tensor. Throws Error where two transformations scale the same side of one.
std::map<std::string, TensorScaling> scaling_by_tensor(std::span<const ChannelScaling> scalings);

}  // namespace cerebellum
