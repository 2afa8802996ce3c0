#include "cerebellum/core/tensor_name.h"

#include <fnmatch.h>

#include <charconv>

namespace cerebellum {

namespace {

constexpr std::string_view block_prefix = "blk.";
constexpr std::string_view weight_suffix = ".weight";

struct Parts {
    std::optional<int> block;
    std::string_view rest;  // behind "blk.N."
};

Parts split(std::string_view tensor) {
    if (!tensor.starts_with(block_prefix)) return {std::nullopt, tensor};
    const char* first = tensor.data() + block_prefix.size();
    const char* last = tensor.data() + tensor.size();
    int block = 0;
    const auto [end, problem] = std::from_chars(first, last, block);
    if (problem != std::errc() || end == last || *end != '.') return {std::nullopt, tensor};
    return {block, {end + 1, last}};
}

std::string_view without_suffix(std::string_view name) {
    if (name.ends_with(weight_suffix)) name.remove_suffix(weight_suffix.size());
    return name;
}

}  // namespace

std::optional<int> block_of(std::string_view tensor) {
    return split(tensor).block;
}

std::string role_of(std::string_view tensor) {
    return std::string(without_suffix(split(tensor).rest));
}

bool matches_tensor(const std::string& glob, const std::string& tensor) {
    const auto is = [&](const std::string& name) { return fnmatch(glob.c_str(), name.c_str(), 0) == 0; };
    return is(tensor) || is(std::string(without_suffix(tensor))) || is(role_of(tensor));
}

}  // namespace cerebellum
