// Any bytes for the readers of everything else that comes from somewhere: the first byte says which. An Error is a good
// answer; anything else that ends the program is not, nor a text that is not what it was after it was read back. With
// libFuzzer (scripts/fuzz.sh) or with seeds and their mutations (replay_seeds.cpp, a test of every build).
#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

#include "cerebellum/build/recipe.h"
#include "cerebellum/calibrate/text.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/core/list_lines.h"
#include "cerebellum/core/progress.h"
#include "cerebellum/core/quoting.h"
#include "cerebellum/core/visible_text.h"
#include "cerebellum/evaluate/answer_parser.h"
#include "cerebellum/evaluate/code_tasks.h"
#include "cerebellum/evaluate/http_client.h"
#include "cerebellum/evaluate/questions.h"
#include "cerebellum/journal/journal.h"
#include "cerebellum/pipeline/derivation.h"
#include "cerebellum/pipeline/session.h"
#include "cerebellum/predict/import_ablation.h"
#include "cerebellum/predict/import_csv.h"
#include "cerebellum/predict/tensor_list.h"

namespace {

namespace fs = std::filesystem;
using namespace cerebellum;

/// A folder of this process, removed at its end, and in it a file that holds what is read.
class Scratch {
  public:
    Scratch() : folder_(fs::temp_directory_path() / ("cerebellum-fuzz-" + std::to_string(::getpid()))) {
        fs::create_directories(folder_);
    }
    ~Scratch() {
        std::error_code code;
        fs::remove_all(folder_, code);
    }
    fs::path write(std::string_view content, const char* name) const {
        for (const auto& entry : fs::directory_iterator(folder_)) fs::remove(entry);
        std::ofstream(folder_ / name, std::ios::binary) << content;
        return folder_ / name;
    }
    const fs::path& folder() const { return folder_; }

  private:
    fs::path folder_;
};

const Scratch& scratch() {
    static const Scratch one;
    return one;
}

void expect(bool holds) {
    if (!holds) std::abort();
}

void recipe(std::string_view text) {
    const auto read = recipe_from_json(text, "recipe.json");
    expect(recipe_from_json(recipe_to_json(read), "again").types == read.types);
}

void json(std::string_view text) {
    const auto value = parse_json(text, "text");
    expect(parse_json(value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace), "again").type() ==
           value.type());
}

void cbor(std::string_view bytes) {
    static_cast<void>(parse_cbor(bytes, "bytes").dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

void stored_text(std::string_view bytes) {
    const auto parts = deserialize_text_parts(bytes);
    check_windows(parts, 8, 32);
    expect(deserialize_text_parts(serialize(parts)).test == parts.test);
}

void journal(std::string_view bytes) {
    const auto opened = Journal::open_existing(scratch().write(bytes, "journal.db"));
    for (const auto& m : opened.measurements()) expect(m.kld.empty() || m.kld.size() == m.counts.size());
    for (const auto& mix : opened.mixes()) expect(mix.kld.size() == mix.counts.size());
    opened.unusable();
    opened.not_numbers();
    for (const auto& name : opened.artifact_names()) static_cast<void>(opened.get_artifact(name));
    for (const auto& [key, value] : opened.meta()) static_cast<void>(opened.get_meta(key));
    imatrix_from_journal(opened);
    tensors_from_journal(opened);
}

void table(std::string_view text) {
    static_cast<void>(read_damage_csv(scratch().write(text, "kld_results.csv"), Metric::kld, 10.0));
}

void ablation(std::string_view text) {
    const auto path = scratch().write(text, "ablation.json");
    try {
        static_cast<void>(read_ablation(path, "q2_K"));
    } catch (const Error&) {
    }
    static_cast<void>(read_ablation_plan(path));
}

void names(std::string_view text) {
    static_cast<void>(list_lines(text));
    static_cast<void>(NameList::read(scratch().write(text, "names.txt")).contains("blk.0.attn_q.weight"));
}

void questions(std::string_view text) {
    for (const char* ending : {".json", ".jsonl", ".csv", ".tsv", ".txt"})
        for (const auto benchmark : {Benchmark::hellaswag, Benchmark::winogrande, Benchmark::arc, Benchmark::mmlu,
                                     Benchmark::mmlu_redux, Benchmark::truthfulqa, Benchmark::choice})
            try {
                static_cast<void>(
                    load_questions(benchmark, scratch().write(text, ("questions" + std::string(ending)).c_str())));
            } catch (const Error&) {
            }
}

void reply(std::string_view text) {
    const std::vector<std::string> choices = {"Paris", "London", "the answer", "42"};
    if (const auto choice = parse_choice(without_reasoning(text), choices)) expect(*choice >= 0 && *choice < 4);
    CodeTask task;
    task.prompt = "def f(x):\n";
    task.entry_point = "f";
    static_cast<void>(extract_solution(text, task));
    static_cast<void>(parse_python_list(text));
    static_cast<void>(parse_correction(text, choices));
}

void words(std::string_view text) {
    const auto seen = visible(text);
    expect(visible(seen) == seen);
    expect(visible_lines(visible_lines(text)) == visible_lines(text));
    expect(cut_utf8(text, 5).size() <= 5);
    static_cast<void>(shell_word(text));
    static_cast<void>(percent_encoded(text));
    static_cast<void>(file_name_from(text));
    static_cast<void>(parse_url(text, "--server"));
}

void statement(std::string_view text) {
    NoProgress progress;
    static_cast<void>(
        describe(verify_derivation(scratch().write(text, "a.derivation.json"), {}, scratch().folder(), 1, progress)));
}

constexpr std::array readers = {recipe,   json,  cbor,      stored_text, journal, table,
                                ablation, names, questions, reply,       words,   statement};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    if (size == 0) return 0;
    const std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
    try {
        readers[data[0] % readers.size()](rest);
    } catch (const Error&) {
    }
    return 0;
}
