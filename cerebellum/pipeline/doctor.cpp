#include "cerebellum/pipeline/doctor.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <sstream>

#include "cerebellum/core/error.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/core/size.h"
#include "cerebellum/quantize/lane_quantizer.h"
#include "cerebellum/version.h"

namespace cerebellum {

namespace fs = std::filesystem;

namespace {

using Status = Finding::Status;

/// Below these, only small models can be worked with.
constexpr std::uint64_t little_memory = std::uint64_t{2} << 30;
constexpr std::uint64_t little_disk = std::uint64_t{1} << 30;
/// What is taken for cache, buffers and the rest of the system.
constexpr double share_for_weights = 0.85;

std::string find_program(const std::string& name) {
    const char* path = std::getenv("PATH");
    std::istringstream folders(path != nullptr ? path : "");
    for (std::string folder; std::getline(folders, folder, ':');) {
        const auto candidate = fs::path(folder) / name;
        std::error_code ignored;
        if (fs::is_regular_file(candidate, ignored) && access(candidate.c_str(), X_OK) == 0) return candidate.string();
    }
    return "";
}

Finding examine_memory(const Machine& machine) {
    Finding finding{Status::good, "memory", "", ""};
    finding.said =
        fmt::format("{} free of {}", format_bytes(machine.available_bytes), format_bytes(machine.memory_bytes));
    if (machine.limit_bytes > 0 && machine.limit_bytes < machine.memory_bytes)
        finding.said += fmt::format("; this process is limited to {}", format_bytes(machine.limit_bytes));
    if (machine.memory_bytes == 0) return {Status::note, "memory", "the system does not tell", ""};
    if (machine.usable_bytes() < little_memory) {
        finding.status = Status::warning;
        finding.mend =
            "end other programs, or give larger models a limit (--memory 1GiB): their weights are then streamed";
    }
    return finding;
}

Finding examine_load(const Machine& machine) {
    Finding finding{Status::good, "processor", "", ""};
    finding.said =
        fmt::format("{}, {} cores ({} threads), load {:.2f}", machine.processor.empty() ? "unknown" : machine.processor,
                    machine.physical_cores, machine.logical_cores, machine.load);
    if (machine.load > 0.75 * machine.logical_cores) {
        finding.status = Status::warning;
        finding.mend = "other programs are busy: ggml's idle threads spin, so fewer are faster then (--threads 1)";
    }
    return finding;
}

/// What the processor can do and ggml was not compiled for, as ggml calls it.
std::vector<std::string> unused_features(const Patient& patient) {
    struct Pair {
        const char* flag;
        const char* feature;
    };
    constexpr std::array<Pair, 6> known = {{{"avx", "AVX"},
                                            {"avx2", "AVX2"},
                                            {"fma", "FMA"},
                                            {"f16c", "F16C"},
                                            {"avx512f", "AVX512"},
                                            {"asimddp", "DOTPROD"}}};
    std::vector<std::string> unused;
    for (const auto& [flag, feature] : known)
        if (patient.machine.processor_flags.contains(flag) &&
            std::ranges::find(patient.cpu_features, feature) == patient.cpu_features.end())
            unused.emplace_back(feature);
    return unused;
}

Finding examine_build(const Patient& patient) {
    Finding finding{Status::good, "build", "", ""};
    finding.said =
        fmt::format("cerebellum {}, llama.cpp {}, processor code for {}", CEREBELLUM_VERSION, CEREBELLUM_LLAMA_VERSION,
                    patient.cpu_features.empty() ? "any" : fmt::format("{}", fmt::join(patient.cpu_features, " ")));
    if (const auto unused = unused_features(patient); !unused.empty()) {
        finding.status = Status::warning;
        finding.said += fmt::format("; this processor also has {}", fmt::join(unused, ", "));
        finding.mend = "build llama.cpp on this machine (make build): its code is then made for this processor";
    }
    return finding;
}

Finding examine_quantizing(const Patient& patient) {
    if (patient.slow_types.empty()) return {Status::good, "quantizing", "with SIMD lanes, bytes as ggml's", ""};
    return {Status::note, "quantizing",
            fmt::format("by ggml's own code, several times slower, for {}: SIMD lanes do not make the same bytes",
                        fmt::join(patient.slow_types, " ")),
            "this ggml was compiled with fused multiplications and additions; 'make build' makes one without"};
}

Finding examine_devices(const Patient& patient) {
    Finding finding{Status::good, "devices", "", ""};
    bool has_gpu = false;
    std::vector<std::string> names;
    for (const auto& device : patient.devices) {
        has_gpu |= device.kind == "GPU" || device.kind == "iGPU";
        names.push_back(device.kind == "CPU" || device.kind == "accelerator"
                            ? device.name
                            : fmt::format("{} ({}, {} free of {})", device.name, device.description,
                                          format_bytes(device.free_bytes), format_bytes(device.total_bytes)));
    }
    if (names.empty())
        return {Status::problem, "devices", "this build of ggml has no device, not even the processor",
                "install ggml's CPU backend, or build llama.cpp again (make build)"};
    finding.said = fmt::format("{}", fmt::join(names, ", "));
    if (!has_gpu && !patient.machine.graphics_hardware.empty()) {
        finding.status = Status::warning;
        finding.said += fmt::format("; there is a driver for {} hardware, which this build does not use",
                                    patient.machine.graphics_hardware);
        finding.mend = "build llama.cpp with its backend (scripts/gpu-build.sh), then use --device";
    }
    return finding;
}

Finding examine_disk(const char* what, const std::string& folder, std::uint64_t free_bytes) {
    Finding finding{Status::good, what, fmt::format("{}: {} free", folder, format_bytes(free_bytes)), ""};
    if (free_bytes == 0)
        return {Status::problem, what, fmt::format("{} cannot be written to, or is full", folder),
                std::string(what) == "scratch" ? "set TMPDIR to a folder that can, or use --scratch"
                                               : "go to a folder that can, or name outputs elsewhere"};
    if (free_bytes < little_disk) {
        finding.status = Status::warning;
        finding.mend = "make room: a built file, and for its verification two stock ones of its size, have to fit";
    }
    return finding;
}

}  // namespace

std::string_view status_name(Status status) {
    switch (status) {
        case Status::good:
            return "good";
        case Status::note:
            return "note";
        case Status::warning:
            return "warning";
        case Status::problem:
            return "problem";
    }
    return "";
}

Patient admit() {
    Patient patient;
    patient.machine = this_machine();
    patient.devices = device_facts();
    patient.cpu_features = cpu_features();
    for (const auto type : lane_types())
        if (!lane_quantizer().uses_lanes(type, true)) patient.slow_types.push_back(type_name(type));
    patient.programs = {{"llama-quantize", "building from a .tensor-types.txt without cerebellum", ""},
                        {"llama-server", "running models, 'eval chat' and 'eval serve'", ""},
                        {"bwrap", "'eval code', which runs programs in a sandbox", ""},
                        {"ollama", "running models with a Modelfile", ""}};
    for (auto& program : patient.programs) program.path = find_program(program.name);
    std::error_code ignored;
    patient.folder = fs::current_path(ignored).string();
    const char* chosen = std::getenv("TMPDIR");
    patient.scratch = chosen != nullptr ? chosen : fs::temp_directory_path(ignored).string();
    patient.folder_free = free_disk_bytes(patient.folder);
    patient.scratch_free = free_disk_bytes(patient.scratch);
    return patient;
}

std::vector<Finding> examine(const Patient& patient) {
    std::vector<Finding> findings = {examine_build(patient),
                                     examine_quantizing(patient),
                                     examine_load(patient.machine),
                                     examine_memory(patient.machine),
                                     examine_devices(patient),
                                     examine_disk("disk", patient.folder, patient.folder_free),
                                     examine_disk("scratch", patient.scratch, patient.scratch_free)};
    findings.push_back(
        {Status::good, "defaults", patient.defaults_file.empty() ? "no file of defaults" : patient.defaults_file, ""});
    for (const auto& program : patient.programs)
        findings.push_back(program.path.empty() ? Finding{Status::note, program.name, "not on the PATH",
                                                          "only needed for " + program.purpose}
                                                : Finding{Status::good, program.name, program.path, ""});
    return findings;
}

std::vector<Finding> examine_model(const Patient& patient, const GgufFile& model, std::uint64_t budget_bytes) {
    std::vector<Finding> findings;
    const auto size = model.file_size();
    if (std::ranges::any_of(model.tensors(), [](const auto& tensor) { return ggml_is_quantized(tensor.type); }))
        findings.push_back({Status::note, "model",
                            fmt::format("{} is quantized already", model.path().filename().string()),
                            "quantize from the F16 or BF16 file where there is one"});
    else
        findings.push_back({Status::good, "model",
                            fmt::format("{}: {}, {} weights, architecture {}", model.path().filename().string(),
                                        format_bytes(size), model.n_weights(), model.architecture()),
                            ""});
    const auto usable = patient.machine.usable_bytes();
    if (static_cast<double>(size) <= share_for_weights * static_cast<double>(usable))
        findings.push_back({Status::good, "measuring", "the model fits into memory", ""});
    else
        findings.push_back({Status::note, "measuring",
                            fmt::format("the model ({}) does not fit into memory ({} usable)", format_bytes(size),
                                        format_bytes(usable)),
                            fmt::format("stream its weights: --memory {:.0f}GiB, with a --text; or --reference q8_0",
                                        std::max(1.0, share_for_weights * static_cast<double>(usable) / (1 << 30)))});
    const auto budget = budget_bytes > 0 ? budget_bytes : size / 3;
    constexpr std::uint64_t files = 3;  // ours, and a stock mix on either side of it
    if (files * budget > patient.folder_free)
        findings.push_back(
            {Status::problem, "room for files",
             fmt::format("{} free in {}, but a file of {} and two stock ones to compare it with are built",
                         format_bytes(patient.folder_free), patient.folder, format_bytes(budget)),
             "make room, or name an output on another disk"});
    else
        findings.push_back(
            {Status::good, "room for files", fmt::format("enough for files of {}", format_bytes(budget)), ""});
    return findings;
}

std::vector<Capacity> capacities(const Patient& patient) {
    std::vector<Capacity> all;
    const auto add = [&](const std::string& where, std::uint64_t bytes) {
        const double weights_bytes = share_for_weights * static_cast<double>(bytes);
        constexpr double billion = 1e9, f16_bytes = 2.0, served_bytes = 4.5 / 8.0;
        all.push_back({where, bytes, weights_bytes / f16_bytes / billion, weights_bytes / served_bytes / billion});
    };
    add("memory", patient.machine.usable_bytes());
    for (const auto& device : patient.devices)
        if (device.kind == "GPU") add(device.name, device.free_bytes);
    return all;
}

nlohmann::json to_json(const Patient& patient) {
    const auto& machine = patient.machine;
    auto devices = nlohmann::json::array(), fits = nlohmann::json::array();
    for (const auto& device : patient.devices)
        devices.push_back({{"name", device.name},
                           {"description", device.description},
                           {"kind", device.kind},
                           {"free_bytes", device.free_bytes},
                           {"total_bytes", device.total_bytes}});
    for (const auto& capacity : capacities(patient))
        fits.push_back({{"where", capacity.where},
                        {"bytes", capacity.bytes},
                        {"measured_f16_billion_weights", capacity.measured_f16},
                        {"run_at_4_5_bpw_billion_weights", capacity.run_at_4_5_bpw}});
    return {{"cerebellum", CEREBELLUM_VERSION},
            {"llama.cpp", CEREBELLUM_LLAMA_VERSION},
            {"system", machine.system},
            {"processor", machine.processor},
            {"physical_cores", machine.physical_cores},
            {"logical_cores", machine.logical_cores},
            {"memory_bytes", machine.memory_bytes},
            {"available_bytes", machine.available_bytes},
            {"limit_bytes", machine.limit_bytes},
            {"cpu_features", patient.cpu_features},
            {"devices", devices},
            {"fits", fits}};
}

nlohmann::json hardware() {
    const auto machine = this_machine();
    auto devices = nlohmann::json::array();
    for (const auto& device : device_facts())
        devices.push_back({{"name", device.name},
                           {"description", device.description},
                           {"kind", device.kind},
                           {"total_bytes", device.total_bytes}});
    return {{"system", machine.system},
            {"processor", machine.processor},
            {"physical_cores", machine.physical_cores},
            {"memory_bytes", machine.memory_bytes},
            {"devices", devices}};
}

nlohmann::json to_json(const std::vector<Finding>& findings) {
    auto list = nlohmann::json::array();
    for (const auto& finding : findings)
        list.push_back({{"status", status_name(finding.status)},
                        {"what", finding.what},
                        {"said", finding.said},
                        {"mend", finding.mend}});
    return list;
}

}  // namespace cerebellum
