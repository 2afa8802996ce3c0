#include "cerebellum/core/channel_scaling.h"

#include <fmt/format.h>

#include "cerebellum/core/error.h"

namespace cerebellum {

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
