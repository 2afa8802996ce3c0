#include "cerebellum/llama/runtime_memory.h"

#include <fmt/format.h>
#include <ggml-backend.h>
#include <llama.h>

#include <algorithm>
#include <memory>

#include "cerebellum/core/error.h"
#include "cerebellum/core/ggml_abort.h"
#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/gguf/model_check.h"
#include "cerebellum/llama/context.h"
#include "cerebellum/llama/log.h"
#include "cerebellum/llama/memory_breakdown.h"

namespace cerebellum {

namespace {

using ModelWithoutWeights = std::unique_ptr<llama_model, void (*)(llama_model*)>;

ModelWithoutWeights load_without_weights(const std::filesystem::path& file, int gpu_layers, const LogCapture& log) {
    llama_backend_init();
    check_model(GgufFile::open_header(file));
    auto params = llama_model_default_params();
    ggml_backend_dev_t no_devices[] = {nullptr};
    if (gpu_layers == 0) params.devices = no_devices;
    params.n_gpu_layers = gpu_layers;
    params.no_alloc = true;
    params.load_mode = LLAMA_LOAD_MODE_NONE;
    ModelWithoutWeights model(llama_model_load_from_file(file.c_str(), params), llama_model_free);
    if (!model)
        throw Error(fmt::format("cannot load {}: {}", file.string(), log.first_error("llama.cpp gave no reason")));
    return model;
}

std::string device_of(ggml_backend_buffer_type_t type) {
    auto* device = ggml_backend_buft_get_device(type);
    if (ggml_backend_buft_is_host(type) || device == nullptr) return "host";
    const auto kind = ggml_backend_dev_type(device);
    const bool of_processor = kind == GGML_BACKEND_DEVICE_TYPE_CPU || kind == GGML_BACKEND_DEVICE_TYPE_ACCEL;
    return of_processor ? "host" : ggml_backend_dev_name(device);
}

}  // namespace

std::vector<DeviceMemory> runtime_memory(const std::filesystem::path& file, const RuntimeShape& shape) {
    const LogCapture log;
    const AbortBlame blame(file.native());
    const auto model = load_without_weights(file, shape.gpu_layers, log);
    auto params = llama_context_default_params();
    params.n_ctx = static_cast<std::uint32_t>(shape.context);
    params.n_seq_max = static_cast<std::uint32_t>(shape.parallel);
    params.type_k = params.type_v = shape.cache_type;
    // As llama-server has it: one row of logits a slot, not one a token of a batch, which large vocabularies feel.
    params.swa_full = false;
    params.n_outputs_max = params.n_seq_max;
    params.n_outputs_max_per_seq = 1;
    const LlamaContext context(llama_init_from_model(model.get(), params));
    if (!context)
        throw Error(fmt::format("{} cannot be run with a context of {} tokens, {} slots and a cache of {}: {}",
                                file.string(), shape.context, shape.parallel, ggml_type_name(shape.cache_type),
                                log.last_error("llama.cpp gave no reason")));
    std::vector<DeviceMemory> result = {{"host"}};
    for (const auto& [type, bytes] : llama_get_memory_breakdown(context.get())) {
        const auto name = device_of(type);
        auto at = std::ranges::find(result, name, &DeviceMemory::device);
        if (at == result.end()) at = result.insert(result.end(), DeviceMemory{name});
        at->weights += bytes.model;
        at->cache += bytes.context;
        at->compute += bytes.compute;
    }
    std::erase_if(result, [](const DeviceMemory& memory) { return memory.device != "host" && memory.total() == 0; });
    return result;
}

int trained_context(const std::filesystem::path& file) {
    const LogCapture log;
    const AbortBlame blame(file.native());
    return llama_model_n_ctx_train(load_without_weights(file, 0, log).get());
}

std::uint64_t limited_bytes(const std::vector<DeviceMemory>& memory) {
    if (memory.size() == 1) return memory.front().total();
    std::uint64_t most = 0;
    for (const auto& device : memory)
        if (device.device != "host") most = std::max(most, device.total());
    return most;
}

int largest_context(const std::filesystem::path& file, RuntimeShape shape, std::uint64_t limit, int most) {
    const int step = 256 * shape.parallel;
    const auto fits = [&](int steps) {
        shape.context = steps * step;
        return limited_bytes(runtime_memory(file, shape)) <= limit;
    };
    int low = 0, high = std::max(1, most / step);
    while (low < high) {
        const int middle = low + (high - low + 1) / 2;
        if (fits(middle))
            low = middle;
        else
            high = middle - 1;
    }
    return low * step;
}

}  // namespace cerebellum
