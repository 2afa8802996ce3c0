#include "cerebellum/pipeline/run_files.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "cerebellum/gguf/split_name.h"
#include "cerebellum/pipeline/convert.h"

namespace cerebellum {

namespace fs = std::filesystem;

namespace {

/// What converting may read; GGUF files, journals and results in the same folder are nobody's input.
bool belongs_to_model(const fs::path& file) {
    constexpr std::array<std::string_view, 7> endings = {".safetensors", ".bin",   ".pt", ".pth",
                                                         ".model",       ".jinja", ".py"};
    const auto name = file.filename().string();
    if (std::ranges::find(endings, file.extension().string()) != endings.end()) return true;
    return name.ends_with("config.json") || name.ends_with(".index.json") || name.starts_with("tokenizer") ||
           name.starts_with("vocab") || name == "params.json" || name == "merges.txt" ||
           name.starts_with("special_tokens") || name.starts_with("added_tokens");
}

}  // namespace

std::vector<fs::path> files_of_model(const fs::path& model) {
    std::vector<fs::path> files;
    std::error_code code;
    if (is_hugging_face_folder(model)) {
        for (const auto& entry : fs::directory_iterator(model, code))
            if (belongs_to_model(entry.path())) files.push_back(entry.path());
    } else if (const auto split = parse_split_name(model)) {
        for (int i = 1; i <= split->count; ++i) files.push_back(split_path(split->prefix, i, split->count));
    } else {
        files.push_back(model);
    }
    return files;
}

void guard_model(OutputGuard& guard, const std::string& role, const fs::path& model) {
    if (model.empty()) return;
    for (const auto& file : files_of_model(model)) guard.reads(role, file);
}

void guard_journal(OutputGuard& guard, const fs::path& journal) {
    if (journal.empty()) return;
    guard.updates("the journal", journal);
    for (const auto* ending : {"-wal", "-shm", "-journal", ".lock", ".moments"}) {
        auto beside = journal;
        guard.updates("what belongs to the journal", beside += ending);
    }
}

void guard_run(OutputGuard& guard, const RunOptions& run) {
    guard_model(guard, "the model", run.model);
    for (const auto& text : run.texts) guard.reads("the text", text);
    if (run.imatrix) guard.reads("the importance matrix that is read", *run.imatrix);
    guard_journal(guard, run.journal);
}

OutputGuard files_of_job(const RunOptions& run, const QuantizeOptions& options) {
    OutputGuard guard(options.overwrite);
    guard.writes("the output", options.output)
        .writes("the recipe beside the output", recipe_path(options.output))
        .writes("the type file beside the output", type_file_path(options.output))
        .writes("the importance matrix that is written",
                options.imatrix_out.empty() ? imatrix_path(options.output) : options.imatrix_out)
        .writes("the results beside the output", results_path(options.output));
    guard_run(guard, run);
    return guard;
}

}  // namespace cerebellum
