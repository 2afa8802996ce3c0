#include "cerebellum/llama/memory.h"

#include <fmt/format.h>
#include <ggml-backend.h>
#include <llama.h>

#include <memory>

#include "cerebellum/core/error.h"
#include "cerebellum/core/ggml_abort.h"
#include "cerebellum/core/ggml_device.h"
#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/gguf/model_check.h"
#include "cerebellum/llama/context.h"
#include "cerebellum/llama/log.h"
#include "cerebellum/llama/memory_breakdown.h"

namespace cerebellum {

namespace {

constexpr const char* cpu_name = "CPU";

}  // namespace

std::string default_serving_device() {
    for (std::size_t i = 0; i < ggml_backend_dev_count(); ++i)
        if (auto* device = ggml_backend_dev_get(i); ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_GPU)
            return ggml_backend_dev_name(device);
    return cpu_name;
}

ServingMemory serving_memory(const std::filesystem::path& model, const ServingSetup& setup) {
    llama_backend_init();
    const bool on_cpu = setup.device.empty() || setup.device == cpu_name;
    ggml_backend_dev_t devices[] = {on_cpu ? nullptr : find_device(setup.device), nullptr};
    std::vector<llama_model_tensor_buft_override> overrides;
    for (const auto& pattern : setup.on_host) overrides.push_back({pattern.c_str(), ggml_backend_cpu_buffer_type()});
    overrides.push_back({nullptr, nullptr});

    auto model_params = llama_model_default_params();
    model_params.devices = devices;
    model_params.n_gpu_layers = on_cpu ? 0 : -1;
    model_params.split_mode = LLAMA_SPLIT_MODE_LAYER;
    model_params.tensor_buft_overrides = overrides.data();
    model_params.no_alloc = true;
    model_params.load_mode = LLAMA_LOAD_MODE_NONE;
    auto context_params = llama_context_default_params();
    context_params.n_ctx = static_cast<std::uint32_t>(setup.context);
    context_params.n_seq_max = static_cast<std::uint32_t>(setup.parallel);
    context_params.type_k = context_params.type_v = setup.cache_type;
    context_params.offload_kqv = context_params.op_offload = !on_cpu;

    check_model(GgufFile::open_header(model));
    const LogCapture log;
    const AbortBlame blame(model.native());
    const std::unique_ptr<llama_model, void (*)(llama_model*)> loaded(
        llama_model_load_from_file(model.c_str(), model_params), llama_model_free);
    if (!loaded)
        throw Error(fmt::format("cannot tell what memory {} takes: {}", model.string(),
                                log.first_error("llama.cpp gave no reason")));
    const LlamaContext context(llama_init_from_model(loaded.get(), context_params));
    if (!context)
        throw Error(fmt::format("{} cannot be run with a context of {} tokens, {} sequences and a cache of {}: {}",
                                model.string(), setup.context, setup.parallel, ggml_type_name(setup.cache_type),
                                log.last_error("llama.cpp gave no reason")));
    ServingMemory result;
    for (const auto& [type, bytes] : llama_get_memory_breakdown(context.get())) {
        // Pinned and repacked host memory have buffer types of their own.
        const bool of_device =
            on_cpu || (!ggml_backend_buft_is_host(type) && ggml_backend_buft_get_device(type) == devices[0]);
        auto& use = of_device ? result.device : result.host;
        use.model_bytes += bytes.model;
        use.context_bytes += bytes.context;
        use.compute_bytes += bytes.compute;
    }
    return result;
}

}  // namespace cerebellum
