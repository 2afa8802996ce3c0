#include <fmt/format.h>

#include <algorithm>

#include <cstdlib>

#include "cerebellum/cli/eval_commands.h"
#include "cerebellum/cli/options.h"
#include "cerebellum/core/digest_memory.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/hash.h"
#include "cerebellum/core/parallel.h"
#include "cerebellum/core/size.h"
#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/version.h"

namespace cerebellum::cli {

namespace fs = std::filesystem;

namespace {

/// Of wiki.test.raw, the test split of WikiText-2 raw.
constexpr auto wikitext2_sha256 = "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08";
constexpr int wikitext2_context = 2048;
constexpr int default_context = 512;

fs::path wikitext2_file(const EvalTextOptions& options) {
    auto path = data_folder(options.data) / "wiki.test.raw";
    if (!fs::exists(path))
        throw Error(
            fmt::format("--wikitext2: there is no {}; 'scripts/fetch-data wikitext2' downloads it, and --data "
                        "names another folder",
                        path.string()));
    return path;
}

const char* usual_file(Benchmark benchmark) {
    switch (benchmark) {
        case Benchmark::hellaswag:
            return "hellaswag_val_full.txt";
        case Benchmark::winogrande:
            return "winogrande-val.jsonl";
        case Benchmark::arc:
            return "arc-challenge-test.jsonl";
        case Benchmark::mmlu:
            return "mmlu-test.jsonl";
        case Benchmark::mmlu_redux:
            return "mmlu-redux.jsonl";
        case Benchmark::truthfulqa:
            return "truthfulqa.jsonl";
        case Benchmark::choice:
            return nullptr;
    }
    return nullptr;
}

/// As given, else the one of scripts/fetch-data.
fs::path questions_file(Benchmark benchmark, const std::string& option, const std::string& data) {
    if (!option.empty()) return option;
    const char* name = usual_file(benchmark);
    if (name == nullptr) throw UsageError("give the --questions FILE of your own questions");
    auto path = data_folder(data) / name;
    if (!fs::exists(path))
        throw Error(
            fmt::format("there is no {}; 'scripts/fetch-data {}' downloads it, and --questions names another file",
                        path.string(), benchmark_name(benchmark)));
    return path;
}

}  // namespace

void add_eval_questions(CLI::App& command, EvalQuestionOptions& options) {
    command
        .add_option("--questions", options.questions, "File of the questions (default: the one of scripts/fetch-data)")
        ->type_name("FILE");
    auto* count =
        command.add_option("--count", options.count, "Only so many of them, by a fixed rule that is recorded");
    command.add_option("--first", options.first, "Only the first so many of the file")
        ->check(CLI::PositiveNumber)
        ->excludes(count->check(CLI::PositiveNumber));
    command.add_option("--data", options.data, "Folder of scripts/fetch-data")->type_name("FOLDER");
}

EvalQuestions load_eval_questions(Benchmark benchmark, const EvalQuestionOptions& options) {
    EvalQuestions result;
    result.file = questions_file(benchmark, options.questions, options.data);
    auto set = load_questions(benchmark, result.file);
    result.selection = options.first > 0 ? first_questions(std::move(set.questions), options.first)
                                         : select_questions(benchmark, std::move(set.questions), options.count);
    const auto asked = result.selection.questions.size();
    if (options.count > 0) result.name_suffix = fmt::format("-{}", asked);
    if (options.first > 0) result.name_suffix = fmt::format("-first{}", asked);
    result.header = {{"benchmark", benchmark_name(benchmark)},
                     {"questions", asked},
                     {"questions_sha256", sha256(read_file(result.file))},
                     {"selection", result.selection.rule},
                     {"excluded", set.excluded},
                     {"corrected", set.corrected}};
    return result;
}

fs::path code_tasks_file(const std::string& benchmark, const std::string& option, const std::string& data) {
    if (benchmark != "humaneval" && benchmark != "humaneval-plus")
        throw UsageError(
            fmt::format("there is no code benchmark '{}'; known are humaneval, humaneval-plus", benchmark));
    if (!option.empty()) return option;
    auto path = data_folder(data) / (benchmark == "humaneval" ? "HumanEval.jsonl" : "HumanEvalPlus.jsonl");
    if (!fs::exists(path))
        throw Error(fmt::format("there is no {}; 'scripts/fetch-data {}' downloads it, and --tasks names another file",
                                path.string(), benchmark));
    return path;
}

int EvalRunOptions::n_threads() const {
    return threads > 0 ? threads : physical_cores();
}

RunPlace EvalRunOptions::place() const {
    const std::string devices[] = {device};
    auto place = place_on(devices);
    if (gpu_layers && (!place.devices.empty() || device.empty()))
        place.gpu_layers = *gpu_layers;
    else if (gpu_layers.value_or(0) != 0)
        throw UsageError(
            fmt::format("--gpu-layers {} cannot be on --device {}; leave one of them out", *gpu_layers, device));
    place.device_bytes = parse_bytes("--device-memory", device_memory);
    check_place(place);
    return place;
}

void EvalRunOptions::note_place(nlohmann::json& result) const {
    const auto at = place();
    result["gpu_layers"] = at.gpu_layers;
    if (!at.devices.empty()) result["device"] = describe(at);
}

void add_eval_run(CLI::App& command, EvalRunOptions& options) {
    command.add_option("--threads", options.threads, "Threads (default: physical cores)")->check(CLI::PositiveNumber);
    add_device(command, options.device);
    command
        .add_option("--gpu-layers", options.gpu_layers,
                    "Layers to run on --device, or on all of this build's GPUs (-1: all; default: all on --device, "
                    "else none)")
        ->check(CLI::Range(-1, 100000));
    command.add_flag("--json", options.json, "Print the result as JSON");
    command.add_flag("-q,--quiet", options.quiet, "No progress on stderr");
    command.add_flag("-v,--verbose", options.verbose, "Say how the work is planned");
}

void add_eval_text(CLI::App& command, EvalTextOptions& options) {
    command.add_option("--text", options.texts, "Plain text to score; repeatable")->type_name("FILE");
    command
        .add_option("--ctx", options.context,
                    fmt::format("Tokens per window (default: {}, or what the model was trained for, if that is less)",
                                default_context))
        ->check(CLI::Range(8, 1 << 24));
    command.add_option("--windows", options.windows, "Only the first so many windows of the text")
        ->check(CLI::PositiveNumber);
    command.add_flag("--llama-perplexity", options.llama_perplexity,
                     "llama-perplexity's definition instead of ours: only the second half of each window is scored");
    command.add_flag("--wikitext2", options.wikitext2,
                     "The published convention: WikiText-2 raw test, 2,048 tokens per window, --llama-perplexity");
    command.add_option("--data", options.data, "Folder of scripts/fetch-data")->type_name("FOLDER");
}

EvalText load_eval_text(const EvalTextOptions& options, const EvalRunOptions& run, const fs::path& reference) {
    if (options.wikitext2 && (!options.texts.empty() || options.context > 0))
        throw UsageError("--wikitext2 fixes the text and --ctx 2048; leave out --text and --ctx");
    if (!options.wikitext2 && options.texts.empty()) throw UsageError("give a --text FILE, or --wikitext2");
    std::vector<fs::path> files(options.texts.begin(), options.texts.end());
    if (options.wikitext2) files = {wikitext2_file(options)};
    EvalText result;
    result.text = read_eval_text(files);
    if (options.wikitext2 && sha256(result.text + "\n") != wikitext2_sha256)
        throw Error(
            fmt::format("{} is not the test split of WikiText-2 raw that published figures are about (SHA-256 "
                        "{}); fetch it again, or use --text",
                        files.front().string(), wikitext2_sha256));
    result.scoring.convention =
        options.wikitext2 || options.llama_perplexity ? TextConvention::llama_perplexity : TextConvention::cerebellum;
    const auto model = GgufFile::open_header(reference);
    const auto trained = model.uint_value(model.architecture() + ".context_length").value_or(0);
    result.scoring.context = options.context;
    if (options.wikitext2) result.scoring.context = wikitext2_context;
    if (result.scoring.context <= 0)
        result.scoring.context =
            trained > 0 ? static_cast<int>(std::min<std::uint64_t>(default_context, trained)) : default_context;
    if (trained > 0 && static_cast<std::uint64_t>(result.scoring.context) > trained)
        throw UsageError(
            fmt::format("windows of {} tokens are more than the {} that {} was trained for; lower --ctx{}",
                        result.scoring.context, trained, reference.string(),
                        options.wikitext2 ? " and give the text with --text, as --wikitext2 fixes both" : ""));
    result.scoring.max_windows = options.windows;
    result.scoring.threads = run.n_threads();
    result.scoring.place = run.place();
    return result;
}

nlohmann::json describe(const EvalTextOptions& options, const EvalText& text, const EvalRunOptions& run) {
    const bool theirs = text.scoring.convention == TextConvention::llama_perplexity;
    nlohmann::json json = {{"convention", theirs ? "llama-perplexity" : "cerebellum"},
                           {"errors", theirs ? "by token" : "clustered by window"},
                           {"text", options.wikitext2 ? std::vector<std::string>{"wiki.test.raw"} : options.texts},
                           {"text_sha256", sha256(text.text)},
                           {"context", text.scoring.context},
                           {"cerebellum", CEREBELLUM_VERSION},
                           {"llama_cpp", CEREBELLUM_LLAMA_VERSION}};
    run.note_place(json);
    return json;
}

fs::path data_folder(const std::string& option) {
    if (!option.empty()) return option;
    if (const char* data = std::getenv("CEREBELLUM_DATA"); data != nullptr && *data != '\0') return data;
    if (const char* cache = std::getenv("XDG_CACHE_HOME"); cache != nullptr && *cache != '\0')
        return fs::path(cache) / "cerebellum" / "data";
    const char* home = std::getenv("HOME");
    return fs::path(home != nullptr ? home : ".") / ".cache" / "cerebellum" / "data";
}

nlohmann::json describe_file(const fs::path& path, Progress& progress) {
    const auto file = GgufFile::open(path);
    return {{"file", path.filename().string()},
            {"bytes", file.file_size()},
            {"bpw", 8.0 * static_cast<double>(file.file_size()) / static_cast<double>(file.n_weights())},
            {"sha256", content_sha256(file.paths(), progress)}};
}

void add_origin(nlohmann::json& described, const fs::path& path, Progress& progress) {
    const auto file = GgufFile::open(path);
    described["fingerprint"] = file.fingerprint(progress);
    if (const auto source = file.string_value("cerebellum.source_fingerprint"))
        described["source_fingerprint"] = *source;
}

std::vector<nlohmann::json> describe_files(const std::vector<std::string>& paths, Progress& progress) {
    std::vector<nlohmann::json> described;
    for (const auto& path : paths) described.push_back(describe_file(path, progress));
    return described;
}

std::vector<std::string> file_cells(const nlohmann::json& described) {
    return {described["file"].get<std::string>(), format_bytes(described["bytes"].get<std::uint64_t>()),
            fmt::format("{:.2f}", described["bpw"].get<double>())};
}

}  // namespace cerebellum::cli
