#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cerebellum/core/ggml_device.h"
#include "cerebellum/core/machine.h"
#include "cerebellum/gguf/gguf_file.h"

namespace cerebellum {

/// Something that was looked at.
struct Finding {
    enum class Status { good, note, warning, problem };
    Status status = Status::good;
    std::string what;  // "memory"
    std::string said;  // what was found
    std::string mend;  // what to do; empty where nothing has to be done
};

/// "good", ...
std::string_view status_name(Finding::Status status);

/// A program that something optional needs.
struct OptionalProgram {
    std::string name;
    std::string purpose;
    std::string path;  // empty: not on the PATH
};

/// Everything that the examination looks at, so that it can be examined without the machine.
struct Patient {
    Machine machine;
    std::vector<DeviceFacts> devices;
    std::vector<std::string> cpu_features;  // that ggml was compiled for
    std::vector<std::string> slow_types;    // that ggml's own code has to quantize (LaneQuantizer)
    std::vector<OptionalProgram> programs;
    std::string folder, scratch;  // where output and temporary files go
    std::uint64_t folder_free = 0, scratch_free = 0;
    std::string defaults_file;  // that is in use; empty: none
};

/// What the machine says, now.
Patient admit();

std::vector<Finding> examine(const Patient& patient);

/// What can be done with a model on this machine. `budget_bytes`: size of the file to make; 0: a third of the source.
std::vector<Finding> examine_model(const Patient& patient, const GgufFile& model, std::uint64_t budget_bytes);

/// Weights, in thousands of millions, of the largest model that fits.
struct Capacity {
    std::string where;            // "memory", "CUDA0"
    std::uint64_t bytes = 0;      // free there
    double measured_f16 = 0.0;    // an F16 source that is held whole while it is measured
    double run_at_4_5_bpw = 0.0;  // a file of 4.5 bits per weight, with room for cache and buffers
};
std::vector<Capacity> capacities(const Patient& patient);

nlohmann::json to_json(const Patient& patient);
/// What does not change from one minute to the next, to be stored with figures that were measured here.
nlohmann::json hardware();
nlohmann::json to_json(const std::vector<Finding>& findings);

}  // namespace cerebellum
