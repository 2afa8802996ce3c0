#pragma once

#include <ggml.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace cerebellum {

/// How a model is going to be run.
struct ServingSetup {
    std::string device;                    // as ggml calls it ("CUDA0"); "CPU" for none
    int context = 4096;                    // tokens of all sequences together, as llama-server --ctx-size
    int parallel = 1;                      // sequences, as llama-server --parallel
    ggml_type cache_type = GGML_TYPE_F16;  // of keys and values
    /// Regular expressions of tensors that stay in host memory, as --override-tensor REGEX=CPU.
    std::vector<std::string> on_host = {};
};

/// Bytes that llama.cpp would allocate in one kind of memory.
struct MemoryUse {
    std::uint64_t model_bytes = 0;    // weights
    std::uint64_t context_bytes = 0;  // cache and recurrent states
    std::uint64_t compute_bytes = 0;  // buffers of the graphs
    std::uint64_t total() const { return model_bytes + context_bytes + compute_bytes; }
};

struct ServingMemory {
    MemoryUse device;  // of the setup's device; for "CPU" everything
    MemoryUse host;    // what stays in host memory beside it
};

/// What llama.cpp allocates to run a model with every layer on the device: its own account, from loading the model
/// without its weights and planning its graphs (as llama-cli --fit does). Only the file's header is read; the data
/// behind it may be a hole. Throws UsageError naming the devices there are where there is no such device, Error with
/// llama.cpp's reason where the model cannot be run so.
ServingMemory serving_memory(const std::filesystem::path& model, const ServingSetup& setup);

/// The first GPU that ggml knows of; "CPU" where there is none.
std::string default_serving_device();

}  // namespace cerebellum
