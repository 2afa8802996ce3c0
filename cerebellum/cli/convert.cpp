#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "cerebellum/cli/commands.h"
#include "cerebellum/cli/options.h"
#include "cerebellum/cli/terminal.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/core/size.h"
#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/pipeline/convert.h"
#include "cerebellum/pipeline/run_files.h"

namespace cerebellum::cli {

Command add_convert(CLI::App& app) {
    struct Values {
        CommonOptions common;
        std::string output, type = "auto", python;
    };
    auto values = std::make_shared<Values>();
    auto* command = app.add_subcommand("convert", "Turn the folder of a Hugging Face model into a GGUF file");
    command->footer(
        "Example:\n  cerebellum convert Qwen3-8B/ -o qwen3-8b-bf16.gguf\n\n"
        "llama.cpp's own converter does the work, in a Python environment of its own that is installed with pip the "
        "first\n"
        "time (several GB, PyTorch is part of it). Some models bring Python code of their own, which it runs: convert "
        "only\n"
        "models that you trust.");
    command->add_option("folder", values->common.model, "The model: config.json, tokenizer and weights")
        ->required()
        ->type_name("FOLDER");
    add_output(*command, values->common, values->output, "The GGUF file to write");
    command->add_option("--type", values->type, "Of the weights; auto: the 16-bit type that keeps most of them")
        ->type_name("TYPE")
        ->check(CLI::IsMember({"auto", "bf16", "f16", "f32"}))
        ->capture_default_str();
    command
        ->add_option("--python", values->python,
                     "An interpreter that has the converter's packages, instead of an environment of our own")
        ->type_name("FILE");
    command->add_flag("-q,--quiet", values->common.quiet, "No progress on stderr");
    command->add_flag("-v,--verbose", values->common.verbose, "Show all that the converter says");
    add_json(*command, values->common);
    return [values] {
        TerminalProgress progress(values->common.quiet, values->common.verbose);
        OutputGuard guard(values->common.force);
        guard.writes("the output", values->output);
        guard_model(guard, "a file of the model", values->common.model);
        const auto lock = guard.lock();
        const auto bytes = convert_model({.folder = values->common.model,
                                          .output = values->output,
                                          .type = values->type,
                                          .overwrite = values->common.force,
                                          .python = values->python},
                                         progress);
        const auto file = GgufFile::open(values->output);
        if (values->common.json) {
            fmt::print("{}\n", json_to_text(nlohmann::json{{"output", values->output},
                                                           {"bytes", bytes},
                                                           {"weights", file.n_weights()},
                                                           {"tensors", file.tensors().size()},
                                                           {"architecture", file.architecture()}},
                                            2));
            return 0;
        }
        fmt::print("{}: {} ({} bytes), {} tensors, architecture {}\n", values->output, format_bytes(bytes), bytes,
                   file.tensors().size(), file.architecture());
        return 0;
    };
}

}  // namespace cerebellum::cli
