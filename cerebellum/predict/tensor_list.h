#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cerebellum/core/name_pattern.h"
#include "cerebellum/gguf/gguf_file.h"

namespace cerebellum {

/// The tensors of a model with their shapes and types, without their data (file_offset is 0).
struct TensorList {
    std::string origin;  ///< for messages
    std::vector<TensorInfo> tensors;
    const TensorInfo* find(std::string_view name) const;
};

TensorList tensor_list(const GgufFile& file);

/// Sets a tensor's shape from its row length, rows and so on; false, and the tensor as it was, where it is impossible:
/// no or too many dimensions, one below 1, or more weights than could be counted in bits.
bool set_shape(TensorInfo& tensor, std::span<const std::int64_t> shape);

/// Reads the maps that the GGUF-Tool-Suite publishes beside its per-tensor measurements, packed by gzip or not: one
/// tensor per line, FILE:SHA256:NAME:shape=(a, b):dtype=TYPE:elements=N:bytes=B, maybe with more fields. Several maps
/// are of the same model in several types; the list takes each tensor as the map of most bytes has it. Throws Error,
/// naming file and line, where a line is none, a tensor is there twice, counts and bytes do not follow from shape and
/// type, ggml has no such type, or two maps differ in a shape.
TensorList read_tensor_maps(std::span<const std::filesystem::path> paths);

/// Names of tensors without shapes: a list of NAME=TYPE lines as llama-quantize's --tensor-type-file reads it, whose
/// names are regular expressions.
class NameList {
  public:
    /// Throws Error naming file and line.
    static NameList read(const std::filesystem::path& path);
    bool contains(std::string_view name) const;
    const std::string& origin() const { return origin_; }

  private:
    std::string origin_;
    std::vector<std::string> names_;    // sorted
    std::vector<std::regex> patterns_;  // those that are more than a name
};

}  // namespace cerebellum
