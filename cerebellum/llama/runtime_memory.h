#pragma once

#include <ggml.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace cerebellum {

/// How a file is going to be run, in llama-server's terms.
struct RuntimeShape {
    int context = 4096;  // tokens of all slots together (--ctx-size)
    int parallel = 1;    // slots (--parallel)
    ggml_type cache_type = GGML_TYPE_F16;
    int gpu_layers = 0;  // −1: all
};

/// What is allocated on one device, in bytes.
struct DeviceMemory {
    std::string device;  // "host", or as ggml calls it
    std::uint64_t weights = 0;
    std::uint64_t cache = 0;    // and recurrent states
    std::uint64_t compute = 0;  // buffers of the graph
    std::uint64_t total() const { return weights + cache + compute; }
};

/// What llama.cpp would allocate: its own account of a model that is loaded without its weights. Host memory comes
/// first; devices that get nothing are left out. Throws Error with llama.cpp's reason where it cannot run the file so.
std::vector<DeviceMemory> runtime_memory(const std::filesystem::path& file, const RuntimeShape& shape);

/// The context the file was trained for, in tokens.
int trained_context(const std::filesystem::path& file);

/// Of the shape's memory, what a limit is about: the device with most of it, and host memory where there is no other.
std::uint64_t limited_bytes(const std::vector<DeviceMemory>& memory);

/// The largest context, in steps of 256 tokens and at most `most`, whose limited_bytes are at most `limit`; 0 where not
/// even the smallest fits.
int largest_context(const std::filesystem::path& file, RuntimeShape shape, std::uint64_t limit, int most);

}  // namespace cerebellum
