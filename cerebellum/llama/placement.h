#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <vector>

#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/llama/model.h"

namespace cerebellum {

/// Bytes that models may take on a place's devices, all of them together: what is free there, or `device_bytes` of each
/// where that is less. The largest number there is for the CPU, for devices that are not named, and where one does not
/// say what it has.
std::size_t device_capacity(const RunPlace& place);

/// Bytes that a context needs beside a model's weights, about: logits of so many rows twice, a cache of keys and values
/// in 16 bits, other temporaries.
std::size_t working_bytes(const GgufFile& model, int n_rows, int cache_tokens);

/// Files [first, last) that are run beside their source at the same time, with so many layers of each on the devices
/// (−1: all).
struct SideBySide {
    std::size_t first = 0;
    std::size_t last = 0;
    int gpu_layers = -1;
};

/// As many files beside the source as fit into `capacity`, `working` bytes going to each of them and to the source; by
/// itself where not even one does, with a part of the layers. Pure.
std::vector<SideBySide> plan_side_by_side(std::size_t source_bytes, std::span<const std::size_t> file_bytes,
                                          int n_layers, std::size_t working, std::size_t capacity);

/// The same for files and a place. All of them at once, with the layers that the place says, where it asks for a number
/// of layers itself. Throws Error where a file cannot be read.
std::vector<SideBySide> plan_side_by_side(const std::filesystem::path& source,
                                          std::span<const std::filesystem::path> files, std::size_t working,
                                          const RunPlace& place);

/// The place with no more layers on its devices than fit, where it asks for all.
RunPlace fitted(const RunPlace& place, const std::filesystem::path& model, std::size_t working);

}  // namespace cerebellum
