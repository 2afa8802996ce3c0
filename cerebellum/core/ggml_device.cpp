#include "cerebellum/core/ggml_device.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <mutex>
#include <set>

#include "cerebellum/core/error.h"
#include "cerebellum/core/ggml_abort.h"
#include "cerebellum/core/rpc_probe.h"

namespace cerebellum {

namespace {

/// The first device of an RPC server.
ggml_backend_dev_t rpc_device(const std::string& endpoint) {
    auto* registry = ggml_backend_reg_by_name("RPC");
    if (registry == nullptr)
        throw UsageError(
            fmt::format("--device {}: this llama.cpp was built without RPC; build it with GGML_RPC=ON", endpoint));
    using AddServer = ggml_backend_reg_t (*)(const char*);
    const auto add_server =
        reinterpret_cast<AddServer>(ggml_backend_reg_get_proc_address(registry, "ggml_backend_rpc_add_server"));
    // Once: a server has ears for one client, and that is soon ggml.
    static std::mutex mutex;
    static std::set<std::string> heard;
    {
        const std::lock_guard lock(mutex);
        if (!heard.contains(endpoint)) probe_rpc_server(endpoint);
        heard.insert(endpoint);
    }
    note_device_use();
    auto* server = add_server != nullptr ? add_server(endpoint.c_str()) : nullptr;
    if (server == nullptr || ggml_backend_reg_dev_count(server) == 0)
        throw Error(fmt::format("no RPC server answers at {}; start 'ggml-rpc-server' there first", endpoint));
    return ggml_backend_reg_dev_get(server, 0);
}

}  // namespace

ggml_backend_dev_t find_device(const std::string& name) {
    if (name.find(':') != std::string::npos) return rpc_device(name);
    auto* device = ggml_backend_dev_by_name(name.c_str());
    if (device == nullptr || ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_ACCEL)
        throw UsageError(fmt::format("there is no device {}; there are {}, and RPC servers as host:port", name,
                                     fmt::join(device_names(), ", ")));
    if (ggml_backend_dev_type(device) != GGML_BACKEND_DEVICE_TYPE_CPU) note_device_use();
    return device;
}

std::vector<std::string> device_names() {
    std::vector<std::string> names;
    for (std::size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        auto* device = ggml_backend_dev_get(i);
        if (ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_ACCEL) continue;
        names.emplace_back(ggml_backend_dev_name(device));
    }
    std::stable_partition(names.begin(), names.end(), [](const auto& name) { return name == "CPU"; });
    return names;
}

std::vector<DeviceFacts> device_facts() {
    std::vector<DeviceFacts> all;
    for (std::size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        ggml_backend_dev_props properties = {};
        ggml_backend_dev_get_props(ggml_backend_dev_get(i), &properties);
        const auto kind = properties.type == GGML_BACKEND_DEVICE_TYPE_CPU    ? "CPU"
                          : properties.type == GGML_BACKEND_DEVICE_TYPE_GPU  ? "GPU"
                          : properties.type == GGML_BACKEND_DEVICE_TYPE_IGPU ? "iGPU"
                                                                             : "accelerator";
        all.push_back({properties.name, properties.description, kind, properties.memory_free, properties.memory_total});
    }
    return all;
}

std::vector<std::string> cpu_features() {
    std::vector<std::string> all;
    auto* registry = ggml_backend_reg_by_name("CPU");
    if (registry == nullptr) return all;
    const auto features = reinterpret_cast<ggml_backend_get_features_t>(
        ggml_backend_reg_get_proc_address(registry, "ggml_backend_get_features"));
    if (features == nullptr) return all;
    for (const auto* feature = features(registry); feature != nullptr && feature->name != nullptr; ++feature)
        if (feature->value != nullptr && std::string_view(feature->value) != "0") all.emplace_back(feature->name);
    return all;
}

}  // namespace cerebellum
