#include "cerebellum/gguf/split_name.h"

#include <fmt/format.h>

#include <regex>

namespace cerebellum {

std::optional<SplitName> parse_split_name(const std::filesystem::path& path) {
    static const std::regex pattern(R"((.+)-(\d{5})-of-(\d{5})\.gguf)");
    const std::string name = path.filename().string();
    std::smatch match;
    if (!std::regex_match(name, match, pattern)) return std::nullopt;
    SplitName split{path.parent_path() / match[1].str(), std::stoi(match[2]), std::stoi(match[3])};
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
