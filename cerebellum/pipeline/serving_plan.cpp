#include "cerebellum/pipeline/serving_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "cerebellum/core/error.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/core/quoting.h"

namespace cerebellum {

namespace {

constexpr int least_context = 512;
constexpr double share_of_memory = 0.9;
constexpr const char* cpu = "CPU";

int trained_context(const GgufFile& file) {
    const auto stored = file.uint_value(file.architecture() + ".context_length");
    constexpr std::uint64_t unknown = 4096, most = 1 << 24;
    return static_cast<int>(std::min(stored.value_or(unknown), most));
}

/// Tries one device; the last of `tried` fits, or nothing does.
std::vector<ServingPlan::Tried> try_device(const GgufFile& file, const ServingWishes& wishes, const std::string& device,
                                           std::uint64_t free_bytes, std::uint64_t host_bytes) {
    std::vector<ServingPlan::Tried> tried;
    const int least = std::max(1, wishes.parallel) * least_context;
    for (int context = wishes.context > 0 ? wishes.context : trained_context(file);; context /= 2) {
        context = std::max(context, wishes.context > 0 ? 1 : std::min(least, trained_context(file)));
        ServingPlan::Tried attempt;
        attempt.setup = {device, context, wishes.parallel, wishes.cache_type, {}};
        attempt.memory = serving_memory(file.path(), attempt.setup);
        const auto fits = [](std::uint64_t bytes, std::uint64_t room) {
            return static_cast<double>(bytes) <= share_of_memory * static_cast<double>(room);
        };
        attempt.fits = fits(attempt.memory.device.total(), free_bytes) &&
                       (device == cpu || fits(attempt.memory.host.total(), host_bytes));
        tried.push_back(attempt);
        if (attempt.fits || wishes.context > 0 || context <= least) return tried;
    }
}

std::vector<std::string> stops_of(const GgufFile& file) {
    const auto tokens = file.string_array("tokenizer.ggml.tokens");
    std::vector<std::string> stops;
    for (const auto* key :
         {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"})
        if (const auto id = file.uint_value(key); id && *id < tokens.size())
            if (const auto& text = tokens[static_cast<std::size_t>(*id)];
                !text.empty() && std::ranges::find(stops, text) == stops.end())
                stops.push_back(text);
    return stops;
}

}  // namespace

std::string ServingPlan::llama_server(const std::string& file) const {
    const auto& setup = choice().setup;
    auto text = fmt::format("llama-server --model {} --ctx-size {} --parallel {}", shell_path(file), setup.context,
                            setup.parallel);
    if (setup.cache_type != GGML_TYPE_F16)
        text += fmt::format(" --cache-type-k {0} --cache-type-v {0}", type_name(setup.cache_type));
    return text + fmt::format(" --n-gpu-layers {} --threads {}", setup.device == cpu ? "0" : "all", threads);
}

ServingPlan plan_serving(const GgufFile& file, const ServingWishes& wishes, const Patient& patient) {
    ServingPlan plan;
    plan.threads = patient.machine.physical_cores;
    const auto host = patient.machine.usable_bytes();
    std::vector<std::pair<std::string, std::uint64_t>> places;
    for (const auto& device : patient.devices)
        if (device.kind == "GPU" && (wishes.device.empty() || wishes.device == device.name))
            places.emplace_back(device.name, device.free_bytes);
    if (wishes.device.empty() || wishes.device == cpu) places.emplace_back(cpu, host);
    if (places.empty())
        throw UsageError(
            fmt::format("there is no GPU called {}; 'cerebellum doctor' lists the devices", wishes.device));
    for (const auto& [device, free_bytes] : places) {
        plan.tried = try_device(file, wishes, device, free_bytes, host);
        if (plan.tried.back().fits) break;
    }
    plan.chosen = plan.tried.size() - 1;
    return plan;
}

ModelfileParts modelfile_parts(const GgufFile& file, int context) {
    ModelfileParts parts;
    parts.file = file.path().filename().string();
    if (const auto chat_template = file.string_value("tokenizer.chat_template")) {
        parts.has_chat_template = true;
        parts.chat = ollama_template([&](std::span<const ChatMessage> chat, bool reply) {
            return apply_chat_template(*chat_template, chat, reply);
        });
        if (parts.chat) parts.prose = prose_of(*chat_template, *parts.chat);
    }
    parts.stops = stops_of(file);
    parts.parameters.emplace_back("num_ctx", std::to_string(context));
    struct Known {
        const char* key;
        const char* parameter;
    };
    constexpr std::array<Known, 5> known = {{{"general.sampling.temp", "temperature"},
                                             {"general.sampling.top_k", "top_k"},
                                             {"general.sampling.top_p", "top_p"},
                                             {"general.sampling.min_p", "min_p"},
                                             {"general.sampling.penalty_repeat", "repeat_penalty"}}};
    const auto metadata = file.metadata_json();
    for (const auto& [key, parameter] : known)
        if (metadata.contains(key) && metadata[key].is_number())
            parts.parameters.emplace_back(parameter, metadata[key].is_number_float()
                                                         ? fmt::format("{:g}", metadata[key].get<double>())
                                                         : json_to_text(metadata[key]));
    parts.license = file.string_value("general.license").value_or("");
    return parts;
}

nlohmann::json to_json(const ServingPlan& plan, const ModelfileParts& parts) {
    auto memory = nlohmann::json::array();
    for (const auto& tried : plan.tried) {
        const auto add = [&](const std::string& device, const MemoryUse& use) {
            memory.push_back({{"ctx", tried.setup.context},
                              {"parallel", tried.setup.parallel},
                              {"kv", type_name(tried.setup.cache_type)},
                              {"device", device},
                              {"weights", use.model_bytes},
                              {"cache", use.context_bytes},
                              {"compute", use.compute_bytes},
                              {"total", use.total()},
                              {"fits", tried.fits}});
        };
        add(tried.setup.device, tried.memory.device);
        if (tried.setup.device != cpu) add("host", tried.memory.host);
    }
    const auto name = ollama_name(parts.file);
    return {{"format", "cerebellum-serving"},
            {"version", 1},
            {"template", !parts.has_chat_template ? "none"
                         : !parts.chat            ? "unknown"
                         : parts.chat->exact      ? "exact"
                                                  : "approximate"},
            {"modelfile", write_modelfile(parts)},
            {"llama_server", plan.llama_server(parts.file)},
            {"ollama", {fmt::format("ollama create {} -f Modelfile", name), fmt::format("ollama run {}", name)}},
            {"fits", plan.choice().fits},
            {"memory", memory}};
}

}  // namespace cerebellum
