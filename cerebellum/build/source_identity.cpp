#include "cerebellum/build/source_identity.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <string_view>

#include "cerebellum/core/hash.h"
#include "cerebellum/core/quant_type.h"

namespace cerebellum {

namespace {

std::string identity_of(const GgufFile& source, const TensorInfo& tensor) {
    constexpr std::size_t end_bytes = 4096;
    constexpr std::size_t digits = 16;
    const auto data = source.data(tensor);
    Sha256 hash;
    hash.update(data.first(std::min(end_bytes, data.size())));
    hash.update(data.last(std::min(end_bytes, data.size())));
    return fmt::format("{} {} {}", type_name(tensor.type),
                       fmt::join(tensor.shape.begin(), tensor.shape.begin() + tensor.n_dims, "x"),
                       hash.finish().substr(0, digits));
}

std::string_view without_hash(std::string_view identity) {
    return identity.substr(0, identity.rfind(' '));
}

}  // namespace

std::map<std::string, std::string> tensor_identities(const GgufFile& source) {
    std::map<std::string, std::string> identities;
    for (const auto& tensor : source.tensors()) identities.emplace(tensor.name, identity_of(source, tensor));
    return identities;
}

std::optional<std::string> first_difference(const GgufFile& source,
                                            const std::map<std::string, std::string>& expected) {
    for (const auto& tensor : source.tensors()) {
        const auto known = expected.find(tensor.name);
        if (known == expected.end()) return fmt::format("{} is not in it", tensor.name);
        const auto found = identity_of(source, tensor);
        if (found == known->second) continue;
        if (without_hash(found) == without_hash(known->second)) return fmt::format("{} has other weights", tensor.name);
        return fmt::format("{} is {} and not {}", tensor.name, without_hash(found), without_hash(known->second));
    }
    for (const auto& [name, identity] : expected)
        if (source.find(name) == nullptr) return fmt::format("{} is missing", name);
    return std::nullopt;
}

}  // namespace cerebellum
