#include "cerebellum/gguf/split_name.h"

#include <fmt/format.h>

#include <cstddef>
#include <string>
#include <string_view>

namespace cerebellum {

std::optional<SplitName> parse_split_name(const std::filesystem::path& path) {
    // "-00002-of-00005.gguf", behind at least one other character.
    constexpr std::string_view pattern = "-#####-of-#####.gguf";
    const std::string name = path.filename().string();
    if (name.size() <= pattern.size()) return std::nullopt;
    const std::size_t begin = name.size() - pattern.size();
    const std::string_view ending = std::string_view(name).substr(begin);
    for (std::size_t i = 0; i < pattern.size(); ++i)
        if (pattern[i] == '#' ? ending[i] < '0' || ending[i] > '9' : ending[i] != pattern[i]) return std::nullopt;
    SplitName split{path.parent_path() / name.substr(0, begin), std::stoi(name.substr(begin + 1, 5)),
                    std::stoi(name.substr(begin + 10, 5))};
    if (split.number < 1 || split.number > split.count) return std::nullopt;
    return split;
}

std::filesystem::path split_path(const std::filesystem::path& prefix, int number, int count) {
    std::filesystem::path path = prefix;
    if (path.extension() == ".gguf") path.replace_extension();
    path += fmt::format("-{:05}-of-{:05}.gguf", number, count);
    return path;
}

}  // namespace cerebellum
