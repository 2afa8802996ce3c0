#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "cerebellum/cli/commands.h"
#include "cerebellum/cli/options.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/core/size.h"
#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/llama/runtime_memory.h"
#include "cerebellum/report/table.h"

namespace cerebellum::cli {

namespace {

struct Values {
    std::string file;
    std::string contexts = "4k";
    std::string caches = "f16";
    std::string parallel = "1";
    std::string fit;
    int gpu_layers = 0;
    bool json = false;
};

/// "16k" is 16,384 tokens.
int parse_tokens(const std::string& text) {
    std::size_t used = 0;
    int tokens = 0;
    try {
        tokens = std::stoi(text, &used);
    } catch (const std::exception&) {
        used = 0;
    }
    const bool thousands = used + 1 == text.size() && (text.back() == 'k' || text.back() == 'K');
    if (used == 0 || tokens <= 0 || tokens > (1 << 26) || (used != text.size() && !thousands))
        throw UsageError(fmt::format("'{}' is no number of tokens; write it as 4096 or 16k", text));
    return thousands ? tokens * 1024 : tokens;
}

std::vector<int> parse_list(const std::string& list) {
    std::vector<int> numbers;
    for (const auto& item : CLI::detail::split(list, ',')) numbers.push_back(parse_tokens(item));
    return numbers;
}

std::vector<RuntimeShape> shapes_of(const Values& values) {
    std::vector<RuntimeShape> shapes;
    for (const auto& cache : CLI::detail::split(values.caches, ',')) {
        const auto type = parse_type(cache);
        if (!type)
            throw UsageError(
                fmt::format("--kv '{}' is no type; llama.cpp's caches are f16, q8_0, q4_0 and others", cache));
        for (const int slots : parse_list(values.parallel))
            for (const int context : parse_list(values.contexts))
                shapes.push_back({context, slots, *type, values.gpu_layers});
    }
    return shapes;
}

nlohmann::json shape_json(const RuntimeShape& shape, const std::string& fingerprint) {
    return {{"fingerprint", fingerprint},
            {"ctx", shape.context},
            {"parallel", shape.parallel},
            {"kv", type_name(shape.cache_type)},
            {"gpu_layers", shape.gpu_layers}};
}

int run_memory(const Values& values) {
    const auto fingerprint = GgufFile::open(values.file).fingerprint();  // its own words where the file is none
    auto json = nlohmann::json::array();
    std::vector<std::vector<std::string>> rows;
    const auto limit = parse_bytes("--fit", values.fit);
    for (auto shape : shapes_of(values)) {
        if (limit > 0) {
            shape.context = largest_context(values.file, shape, limit, trained_context(values.file) * shape.parallel);
            if (shape.context == 0) {
                rows.push_back(
                    {"none", std::to_string(shape.parallel), type_name(shape.cache_type), "", "", "", "", ""});
                json.push_back(shape_json(shape, fingerprint));
                continue;
            }
        }
        auto entry = shape_json(shape, fingerprint);
        for (const auto& memory : runtime_memory(values.file, shape)) {
            rows.push_back({std::to_string(shape.context), std::to_string(shape.parallel), type_name(shape.cache_type),
                            memory.device, format_bytes(memory.weights), format_bytes(memory.cache),
                            format_bytes(memory.compute), format_bytes(memory.total())});
            entry["devices"].push_back({{"device", memory.device},
                                        {"weights", memory.weights},
                                        {"cache", memory.cache},
                                        {"compute", memory.compute},
                                        {"total", memory.total()}});
        }
        json.push_back(std::move(entry));
    }
    if (values.json)
        fmt::print("{}\n", json_to_text(json, 2));
    else
        fmt::print("{}", format_table({"ctx", "slots", "kv", "device", "weights", "cache", "compute", "total"}, rows));
    return 0;
}

}  // namespace

Command add_memory(CLI::App& app) {
    auto values = std::make_shared<Values>();
    auto* command = app.add_subcommand("memory", "What a runtime will allocate for a file, without loading it");
    command->footer(
        "Examples:\n  cerebellum memory model.gguf --ctx 4k,16k,131072 --kv f16,q8_0 --parallel 1,4\n"
        "  cerebellum memory model.gguf --fit 12GiB --gpu-layers -1 --kv q8_0\n\n"
        "The figures are llama.cpp's own: it loads the model without its weights and plans its buffers. --ctx is\n"
        "llama-server's --ctx-size: the tokens of all slots together. --fit looks for the largest one instead, up to\n"
        "what the model was trained for; the limit is that of the GPU where layers run on one, else of host memory.\n"
        "What a backend needs for itself (a CUDA context, some 100 to 500 MB) comes on top.");
    command->add_option("file", values->file, "A GGUF file")->required()->type_name("FILE.gguf");
    command->add_option("--ctx", values->contexts, "Context sizes, comma-separated; 16k is 16384")
        ->type_name("INT,...")
        ->capture_default_str();
    command->add_option("--kv", values->caches, "Types of the cache, comma-separated")->capture_default_str();
    command->add_option("--parallel", values->parallel, "Numbers of slots, comma-separated")
        ->type_name("INT,...")
        ->capture_default_str();
    command->add_option("--fit", values->fit, "Find the largest context that fits into so much memory")
        ->type_name("SIZE")
        ->excludes("--ctx");
    command->add_option("--gpu-layers", values->gpu_layers, "Layers on this build's GPU (-1: all)")
        ->check(CLI::Range(-1, 100000))
        ->capture_default_str();
    command->add_flag("--json", values->json, "Print the result as JSON");
    return [values] { return run_memory(*values); };
}

}  // namespace cerebellum::cli
