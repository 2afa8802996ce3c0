#pragma once

#include <filesystem>
#include <optional>
#include <string>

namespace cerebellum {

/// The name of one file of a split model, "PREFIX-00002-of-00005.gguf", as llama.cpp has it (llama_split_path).
struct SplitName {
    std::filesystem::path prefix;  ///< with its folder
    int number = 0;                ///< from 1
    int count = 0;
};

/// Empty where the path is not named like that.
std::optional<SplitName> parse_split_name(const std::filesystem::path& path);

/// The path of file `number` (from 1) of `count`. A trailing ".gguf" of the prefix is dropped first.
std::filesystem::path split_path(const std::filesystem::path& prefix, int number, int count);

}  // namespace cerebellum
