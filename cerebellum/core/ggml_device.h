#pragma once

#include <ggml-backend.h>

#include <string>
#include <vector>

namespace cerebellum {

/// A ggml device by what ggml calls it ("CPU", "CUDA0"), or the first device of the ggml RPC server at "host:port".
/// Throws UsageError naming the devices there are, Error where no server answers.
ggml_backend_dev_t find_device(const std::string& name);

/// Names of the devices that models can run on, the CPU first.
std::vector<std::string> device_names();

}  // namespace cerebellum
