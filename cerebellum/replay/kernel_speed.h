#pragma once

#include <ggml.h>

#include <span>
#include <string>
#include <vector>

namespace cerebellum {

/// How long a device takes to multiply a matrix of a type with one vector, which is what writing a token consists of.
struct KernelSpeed {
    ggml_type type = GGML_TYPE_COUNT;
    bool supported = false;  // the device has such an operation at all (ggml_backend_dev_supports_op)
    double seconds = 0.0;    // for 4096 x 4096 weights, the best of several tries
};

/// Measures each type on a device, named as find_device takes it. Takes a second or two on a CPU.
std::vector<KernelSpeed> measure_kernels(const std::string& device, int threads, std::span<const ggml_type> types);

/// The types with fast kernels on the device: those that take at most a tenth longer than Q8_0, the plainest quantized
/// type. (Reading fewer bytes, the others should be faster; where unpacking costs more than it saves they are not.)
std::vector<ggml_type> fast_types(std::span<const KernelSpeed> speeds);

}  // namespace cerebellum
