#include <fmt/format.h>

#include "cerebellum/cli/eval_commands.h"
#include "cerebellum/cli/terminal.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/evaluate/speed.h"
#include "cerebellum/report/table.h"
#include "cerebellum/version.h"

namespace cerebellum::cli {

namespace {

struct Values {
    EvalRunOptions run;
    SpeedSettings speed;
    std::string cache = "f16";
    bool no_repack = false;
    std::vector<std::string> files;
};

nlohmann::json spread_json(const std::vector<double>& figures) {
    const auto spread = spread_of(figures);
    return {{"median", spread.median}, {"mean", spread.mean}, {"deviation", spread.deviation}, {"figures", figures}};
}

std::string cell(const std::vector<double>& figures) {
    if (figures.empty()) return "";
    const auto spread = spread_of(figures);
    return with_error(fmt::format("{:.2f}", spread.median), spread.deviation, "{:.2f}");
}

int run_speed(Values values) {
    TerminalProgress progress(values.run.quiet, values.run.verbose);
    const auto type = parse_type(values.cache);
    if (!type)
        throw UsageError(
            fmt::format("--kv '{}' is no type; llama.cpp's caches are f16, q8_0, q4_0 and others", values.cache));
    values.speed.cache_type = *type;
    values.speed.threads = values.run.n_threads();
    values.speed.place = values.run.place();
    values.speed.place.repack = !values.no_repack;
    auto described = describe_files(values.files, progress);
    for (std::size_t i = 0; i < described.size(); ++i) add_origin(described[i], values.files[i], progress);
    const std::vector<std::filesystem::path> files(values.files.begin(), values.files.end());
    const auto figures = measure_speed(files, values.speed, progress);
    std::vector<std::vector<std::string>> rows;
    for (std::size_t i = 0; i < files.size(); ++i) {
        described[i]["prompt_per_second"] = spread_json(figures[i].prompt);
        described[i]["generation_per_second"] = spread_json(figures[i].generation);
        auto row = file_cells(described[i]);
        row.push_back(cell(figures[i].prompt));
        row.push_back(cell(figures[i].generation));
        rows.push_back(std::move(row));
    }
    const auto& s = values.speed;
    if (values.run.json) {
        nlohmann::json json = {{"prompt_tokens", s.prompt_tokens},
                               {"generated_tokens", s.generated_tokens},
                               {"context", s.context},
                               {"parallel", s.parallel},
                               {"kv", type_name(s.cache_type)},
                               {"repetitions", s.repetitions},
                               {"threads", s.threads},
                               {"repacked", s.place.repack},
                               {"cerebellum", CEREBELLUM_VERSION},
                               {"llama_cpp", CEREBELLUM_LLAMA_VERSION},
                               {"files", described}};
        values.run.note_place(json);
        fmt::print("{}\n", json_to_text(json, 2));
    } else {
        fmt::print("{}", format_table({"file", "size", "bpw", fmt::format("prompt {} t/s", s.prompt_tokens),
                                       fmt::format("generate {} t/s", s.generated_tokens)},
                                      rows));
    }
    return 0;
}

}  // namespace

Command add_eval_speed(CLI::App& group) {
    auto values = std::make_shared<Values>();
    auto* command = group.add_subcommand("speed", "Tokens per second of files, measured in turn");
    command->footer(
        "Example:\n  cerebellum eval speed model-ours.gguf model-Q4_K_M.gguf --threads 8\n\n"
        "Median of the repetitions and their standard deviation, in the setting of llama-bench (pp512, tg128). Files "
        "are\n"
        "timed in turn, so that what else goes on in the machine meets all of them; a busy machine shows as a large\n"
        "deviation. With --parallel, generation is that of all sequences together.");
    command->add_option("files", values->files, "GGUF files")->required()->type_name("FILE.gguf");
    command->add_option("--prompt", values->speed.prompt_tokens, "Tokens of the prompt")
        ->check(CLI::Range(0, 1 << 20))
        ->capture_default_str();
    command->add_option("--generate", values->speed.generated_tokens, "Tokens to generate")
        ->check(CLI::Range(0, 1 << 20))
        ->capture_default_str();
    command->add_option("--ctx", values->speed.context, "Tokens that are in the context already")
        ->check(CLI::Range(0, 1 << 24))
        ->capture_default_str();
    command->add_option("--kv", values->cache, "Type of the cache")->capture_default_str();
    command->add_option("--parallel", values->speed.parallel, "Sequences that generate side by side")
        ->check(CLI::Range(1, 256))
        ->capture_default_str();
    command->add_option("--repetitions", values->speed.repetitions, "How often each file is timed")
        ->check(CLI::Range(1, 1000))
        ->capture_default_str();
    command->add_flag("--no-repack", values->no_repack,
                      "Leave weights as they are in the file (llama.cpp repacks them for the processor by default)");
    add_eval_run(*command, values->run);
    return [values] { return run_speed(*values); };
}

}  // namespace cerebellum::cli
