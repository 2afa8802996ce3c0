#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "cerebellum/cli/eval_commands.h"
#include "cerebellum/cli/options.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/core/size.h"
#include "cerebellum/pipeline/run_files.h"
#include "cerebellum/pipeline/serving_plan.h"

namespace cerebellum::cli {

namespace {

struct Values {
    std::string file, output, cache_type = "f16", device;
    int context = 0, parallel = 1;
    bool force = false, json = false;
};

/// A file as it lies from the folder of another, which may be reached through links.
std::string as_seen_from(const std::filesystem::path& file, const std::filesystem::path& other) {
    const auto folder_of = [](const std::filesystem::path& path) {
        return std::filesystem::weakly_canonical(std::filesystem::absolute(path).parent_path());
    };
    return (folder_of(file) / file.filename()).lexically_relative(folder_of(other)).generic_string();
}

int run(const Values& values) {
    OutputGuard guard(values.force);
    guard.writes("the Modelfile", values.output);
    guard_model(guard, "the model", values.file);
    const auto lock = guard.lock();
    const auto cache_type = parse_type(values.cache_type);
    if (!cache_type) throw UsageError(fmt::format("--kv {}: ggml has no such type", values.cache_type));
    const auto file = GgufFile::open(values.file);
    const auto plan = plan_serving(file, {values.context, values.parallel, *cache_type, values.device}, admit());
    auto parts = modelfile_parts(file, plan.choice().setup.context / plan.choice().setup.parallel);
    if (!values.output.empty()) parts.file = as_seen_from(values.file, values.output);
    const auto text = write_modelfile(parts);
    if (!values.output.empty()) write_file_atomically(values.output, text);
    if (values.json) {
        auto json = to_json(plan, parts);
        NoProgress quiet;
        json["sha256"] = describe_file(values.file, quiet)["sha256"];
        fmt::print("{}\n", json_to_text(json, 2));
        return 0;
    }
    if (values.output.empty()) fmt::print("{}", text);
    const auto& choice = plan.choice();
    fmt::print("{}# {}\n", values.output.empty() ? "\n" : "", plan.llama_server(values.file));
    fmt::print("# {} of memory on {}{}\n", format_bytes(choice.memory.device.total()), choice.setup.device,
               choice.fits ? "" : ", which is more than is free there");
    return 0;
}

}  // namespace

Command add_modelfile(CLI::App& app) {
    auto values = std::make_shared<Values>();
    auto* command =
        app.add_subcommand("modelfile", "How to run a file here: a Modelfile for Ollama, a llama-server command line");
    command->footer(
        "Examples:\n  cerebellum modelfile model-small.gguf -o Modelfile && ollama create small -f Modelfile\n"
        "  cerebellum modelfile model-small.gguf --ctx 16384 --kv q8_0 --parallel 4\n\n"
        "Template, stop texts and sampling parameters are the file's own. The template is written in Ollama's "
        "language\n"
        "by looking at what llama.cpp makes of marked messages; a remark says so where it does not come to the same "
        "text.\n"
        "A system message that the model's template adds by default is kept. Written to stdout, the Modelfile is one "
        "for "
        "the\nfolder of the file.\n"
        "Without --ctx the context is the largest, halved from what the model was trained for, that fits into what is\n"
        "free.");
    command->add_option("file", values->file, "The file to run")->required()->type_name("FILE.gguf");
    command->add_option("-o,--output", values->output, "Where the Modelfile goes (default: stdout)")->type_name("FILE");
    command->add_flag("--force", values->force, "Replace the output if it exists");
    command->add_option("--ctx", values->context, "Tokens of context, of all sequences together")
        ->check(CLI::PositiveNumber);
    command->add_option("--parallel", values->parallel, "Sequences at a time")
        ->check(CLI::Range(1, 256))
        ->capture_default_str();
    command->add_option("--kv", values->cache_type, "Type of the cache: f16, q8_0, q4_0")->capture_default_str();
    command
        ->add_option("--serve-on", values->device,
                     "Device that runs it: CPU, CUDA0 (default: the first GPU that it fits on)")
        ->type_name("NAME");
    command->add_flag("--json", values->json, "Print the result as JSON");
    return [values] { return run(*values); };
}

}  // namespace cerebellum::cli
