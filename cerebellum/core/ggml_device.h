#pragma once

#include <ggml-backend.h>

#include <cstdint>
#include <string>
#include <vector>

namespace cerebellum {

/// A ggml device by what ggml calls it ("CPU", "CUDA0"), or the first device of the ggml RPC server at "host:port".
/// Throws UsageError naming the devices there are, Error where no server answers within ten seconds.
ggml_backend_dev_t find_device(const std::string& name);

/// Names of the devices that models can run on, the CPU first.
std::vector<std::string> device_names();

/// What ggml says of a device.
struct DeviceFacts {
    std::string name;         // "CUDA0"
    std::string description;  // "NVIDIA GeForce RTX 4090"
    std::string kind;         // "CPU", "GPU", "iGPU" or "accelerator"
    std::uint64_t free_bytes = 0;
    std::uint64_t total_bytes = 0;
};

/// All devices that this build of ggml finds, accelerators that only help the CPU (BLAS, AMX) included.
std::vector<DeviceFacts> device_facts();

/// What ggml's code for the CPU was compiled for ("AVX2", "FMA", ...).
std::vector<std::string> cpu_features();

}  // namespace cerebellum
