#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cerebellum/core/progress.h"
#include "cerebellum/gguf/gguf_file.h"

namespace cerebellum {

/// A key of the metadata; what is missing in one file is empty there.
struct KeyDifference {
    std::string key;
    std::optional<std::string> first, second;  ///< as value_line() writes them
};

/// A tensor that is in at least one of two files.
struct TensorComparison {
    std::string name;
    std::optional<TensorInfo> first, second;
    bool same_bytes = false;  ///< type, shape and data
    /// ‖second − first‖ / ‖first‖ over the weights as numbers, and the largest difference of one weight. Empty where
    /// the shapes differ or ggml cannot read one of the types as numbers. Infinite where `first` is all zeros.
    std::optional<double> relative_error;
    std::optional<double> largest_difference;
};

struct Comparison {
    std::vector<KeyDifference> keys;        ///< differing ones, sorted
    std::vector<TensorComparison> tensors;  ///< all, sorted by name
    bool same_order = true;                 ///< of the tensors that both have
    bool identical() const;                 ///< same keys, same tensors; their order may differ
};

/// Reads every tensor of both files once. Memory: a few megabytes per thread. Throws Error where reading fails.
Comparison compare_gguf(const GgufFile& first, const GgufFile& second, int threads, Progress& progress);

/// A key's type and value in one line that is the same for the same value: long arrays and strings as a digest.
std::string value_line(const gguf_context* context, std::int64_t id);

/// The whole file as lines, sorted, for diff(1): a line for every key, and one for every tensor with its type, shape
/// and the SHA-256 of its data.
std::vector<std::string> diffable_listing(const GgufFile& file, Progress& progress);

}  // namespace cerebellum
