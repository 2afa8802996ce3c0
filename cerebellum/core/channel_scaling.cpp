#include "cerebellum/core/channel_scaling.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "cerebellum/core/error.h"

namespace cerebellum {

nlohmann::json to_json(const ChannelScaling& scaling) {
    return {{"producer", scaling.producer},
            {"offsets", scaling.offsets},
            {"readers", scaling.readers},
            {"exponents", scaling.exponents}};
}

ChannelScaling channel_scaling_from_json(const nlohmann::json& value) {
    ChannelScaling scaling;
    value.at("producer").get_to(scaling.producer);
    value.at("offsets").get_to(scaling.offsets);
    value.at("readers").get_to(scaling.readers);
    value.at("exponents").get_to(scaling.exponents);
    return scaling;
}

std::map<std::string, TensorScaling> scaling_by_tensor(std::span<const ChannelScaling> scalings) {
    std::map<std::string, TensorScaling> result;
    const auto put = [&](const std::string& name, std::vector<std::int8_t> TensorScaling::*side,
                         const ChannelScaling& scaling) {
        auto& exponents = result[name].*side;
        if (!exponents.empty()) throw Error(fmt::format("the channels of {} are scaled twice", name));
        exponents = scaling.exponents;
    };
    for (const auto& scaling : scalings) {
        put(scaling.producer, &TensorScaling::outputs, scaling);
        for (const auto& offset : scaling.offsets) put(offset, &TensorScaling::outputs, scaling);
        for (const auto& reader : scaling.readers) put(reader, &TensorScaling::inputs, scaling);
    }
    return result;
}

}  // namespace cerebellum
