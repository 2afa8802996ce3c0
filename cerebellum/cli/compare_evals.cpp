#include <fmt/format.h>

#include <algorithm>
#include <initializer_list>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <tuple>
#include <utility>

#include "cerebellum/cli/commands.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/core/size.h"
#include "cerebellum/core/visible_text.h"
#include "cerebellum/report/table.h"

namespace cerebellum::cli {

namespace fs = std::filesystem;

namespace {

using nlohmann::json;

struct Values {
    std::vector<std::string> results;
    bool json = false;
    bool markdown = false;
};

/// What is known about a file: by column, as text for people and as a value.
struct Card {
    std::string name;
    std::string sha256;  // empty where a result does not say
    std::uint64_t bytes = 0;
    std::map<std::string, std::string> cells;
    std::map<std::string, nlohmann::json> values;
};

/// Results side by side. Files are told apart by their SHA-256, so that two versions may have the same name.
class Cards {
  public:
    Card& of(const json& entry) {
        const auto name = fs::path(entry.value("file", "?")).filename().string();
        auto sha256 = entry.value("sha256", "");
        if (sha256 == "unknown") sha256.clear();  // behind a server
        auto& card = cards_[sha256.empty() ? name : sha256];
        if (card.name.empty()) card.name = name;
        card.sha256 = sha256;
        card.bytes = entry.value("bytes", card.bytes);
        return card;
    }
    /// Figures of one row must have been measured in the same way: throws Error where `conditions` are not those of the
    /// other files in the column.
    void put(Card& card, const std::string& column, const std::string& cell, json value, const json& conditions) {
        const auto [known, is_new] = conditions_.emplace(column, std::pair{card.name, conditions});
        const auto& [first, expected] = known->second;
        for (const auto& [key, now] : conditions.items())
            if (!is_new && expected.value(key, json()) != now)
                throw Error(fmt::format(
                    "{} and {} cannot be compared in {}: {} was {} for the first and {} for the second; "
                    "repeat one of the runs",
                    first, card.name, column, key, json_to_text(expected.value(key, json())), json_to_text(now)));
        card.cells[column] = cell;
        card.values[column] = std::move(value);
    }
    void note(const std::string& text) { notes_.push_back(text); }

    /// The smallest file first; the beginning of its SHA-256 behind a name that several have.
    std::vector<Card> by_size() const {
        std::map<std::string, int> of_name;
        for (const auto& [key, card] : cards_) ++of_name[card.name];
        std::vector<Card> result;
        for (const auto& [key, card] : cards_) {
            result.push_back(card);
            if (of_name[card.name] > 1 && !card.sha256.empty()) result.back().name += " " + card.sha256.substr(0, 8);
        }
        std::ranges::stable_sort(result, {}, [](const Card& card) { return std::pair(card.bytes, card.name); });
        return result;
    }
    const std::vector<std::string>& notes() const { return notes_; }

  private:
    std::map<std::string, Card> cards_;
    std::map<std::string, std::pair<std::string, json>> conditions_;
    std::vector<std::string> notes_;
};

/// Those of the result's fields that have to be the same for figures to be compared.
json picked(const json& result, std::initializer_list<const char*> keys) {
    auto conditions = json::object();
    for (const auto* key : keys)
        if (result.contains(key)) conditions[key] = result[key];
    return conditions;
}

std::string with_error(const json& value, int digits) {
    const double error = value["error"].is_number() ? value["error"].get<double>() : std::nan("");
    return cerebellum::with_error(fmt::format("{:.{}f}", value["mean"].get<double>(), digits), error,
                                  fmt::format("{{:.{}f}}", digits));
}

/// "wiki.test.raw", "a.txt and 2 more"
std::string text_name(const json& texts) {
    auto name = fs::path(texts.at(0).get<std::string>()).filename().string();
    return texts.size() == 1 ? name : fmt::format("{} and {} more", name, texts.size() - 1);
}

/// eval ppl, eval kld
void add_text(Cards& cards, const json& result) {
    const auto place = fmt::format(" ({}, {}, {})", text_name(result["text"]),
                                   result["convention"] == "llama-perplexity" ? "llama-perplexity" : "all positions",
                                   result["context"].get<int>());
    for (const auto& entry : result["files"]) {
        auto conditions = picked(result, {"text_sha256"});
        conditions["tokens"] = entry["tokens"];
        auto& card = cards.of(entry);
        if (!entry.contains("kld")) {
            const json value = {{"mean", entry["perplexity"]}, {"error", entry["perplexity_error"]}};
            cards.put(card, "PPL" + place, with_error(value, 4), value, conditions);
            continue;
        }
        cards.put(card, "PPL" + place, with_error(entry["perplexity"], 4), entry["perplexity"], conditions);
        conditions["source"] = result["source"].value("sha256", "");
        cards.put(card, "KLD" + place, with_error(entry["kld"], 5), entry["kld"], conditions);
    }
}

/// eval speed
void add_speed(Cards& cards, const json& result) {
    const auto conditions =
        picked(result, {"context", "parallel", "kv", "threads", "gpu_layers", "device", "repacked"});
    for (const auto& entry : result["files"]) {
        auto& card = cards.of(entry);
        for (const auto& [key, name, count] : {std::tuple{"prompt_per_second", "prompt", "prompt_tokens"},
                                               {"generation_per_second", "generate", "generated_tokens"}})
            if (entry.contains(key) && !entry[key]["figures"].empty())
                cards.put(card, fmt::format("{} {} t/s", name, result[count].get<int>()),
                          fmt::format("{:.1f} ± {:.1f}", entry[key]["median"].get<double>(),
                                      entry[key]["deviation"].get<double>()),
                          entry[key], conditions);
    }
}

/// eval serve
void add_serving(Cards& cards, const json& result) {
    const auto conditions = picked(result, {"kv", "prompt_words", "max_tokens", "threads"});
    auto& card = cards.of(result);
    for (const auto& context : result["contexts"])
        if (context["worked"].get<bool>()) {
            const auto place =
                fmt::format(" ({} x {})", result["slots"].get<int>(), context["context_per_slot"].get<int>());
            cards.put(card, "served t/s" + place, fmt::format("{:.1f}", context["tokens_per_second"].get<double>()),
                      context["tokens_per_second"], conditions);
            cards.put(card, "memory" + place, format_bytes(context["peak_memory_bytes"].get<std::uint64_t>()),
                      context["peak_memory_bytes"], conditions);
        }
}

/// A summary of questions
void add_summary(Cards& cards, const json& summary) {
    auto& card = cards.of(summary["model"]);
    const auto metric = summary.value("metric", "acc");
    if (!summary["metrics"].contains(metric)) return;
    auto name = summary["benchmark"].get<std::string>();
    if (summary.value("mode", "") == "chat") name += " chat";
    if (summary.value("thinking", false)) name += " thinking";
    if (const int shots = summary.value("shots", 0); shots > 0) name += fmt::format(" {}-shot", shots);
    if (const double temperature = summary.value("temperature", 0.0); temperature > 0.0)
        name += fmt::format(" at {:g}", temperature);
    const auto& score = summary["metrics"][metric];
    name = fmt::format("{} ({}, n={})", name, metric, score["questions"].get<int>());
    cards.put(card, name,
              fmt::format("{:.2f} [{:.2f}, {:.2f}]", 100.0 * score["score"].get<double>(),
                          100.0 * score["interval95"][0].get<double>(), 100.0 * score["interval95"][1].get<double>()),
              score,
              picked(summary, {"questions_sha256", "prompts_sha256", "selection", "max_tokens", "seed", "sandbox"}));
    for (const auto& entry : summary.value("rejudged", json::array()))
        cards.note(fmt::format("{}, {}: judged again on {} because {}: {:.2f} % before, {:.2f} % after", card.name,
                               name, entry["date"].get<std::string>().substr(0, 10), entry["reason"].get<std::string>(),
                               100.0 * entry["old_score"].get<double>(), 100.0 * entry["new_score"].get<double>()));
}

void add_result(Cards& cards, const std::string& path) {
    const auto result = try_parse_json(read_file(path)).value_or(json());
    const auto unknown = [&] {
        return Error(
            fmt::format("{} is no result of 'cerebellum eval' (a .summary.json, or the --json of ppl, kld, speed "
                        "or serve)",
                        path));
    };
    if (!result.is_object()) throw unknown();
    try {
        if (result.value("format", "") == "cerebellum-eval-summary")
            add_summary(cards, result);
        else if (result.contains("contexts"))
            add_serving(cards, result);
        else if (result.contains("prompt_tokens") && result.contains("files"))
            add_speed(cards, result);
        else if (result.contains("convention") && result.contains("files"))
            add_text(cards, result);
        else
            throw unknown();
    } catch (const json::exception&) {
        throw unknown();
    }
}

std::string markdown(const std::vector<std::string>& header, const std::vector<std::vector<std::string>>& rows) {
    std::string text = "|", line = "|";
    for (const auto& cell : header) {
        text += fmt::format(" {} |", cell);
        line += "---|";
    }
    text += "\n" + line + "\n";
    for (const auto& row : rows) {
        text += "|";
        for (const auto& cell : row) text += fmt::format(" {} |", cell);
        text += "\n";
    }
    return text;
}

int run_compare(const Values& values) {
    Cards cards;
    for (const auto& path : values.results) add_result(cards, path);
    const auto files = cards.by_size();
    if (values.json) {
        auto result = json::array();
        for (const auto& card : files)
            result.push_back(
                {{"file", card.name}, {"sha256", card.sha256}, {"bytes", card.bytes}, {"results", card.values}});
        fmt::print("{}\n", visible_lines(json_to_text(json{{"files", result}, {"notes", cards.notes()}}, 2)));
        return 0;
    }
    // A file a column, as a model card has it.
    std::set<std::string> rows_wanted;
    std::vector<std::string> header = {""}, sizes = {"size"};
    for (const auto& card : files) {
        header.push_back(card.name);
        sizes.push_back(card.bytes > 0 ? format_bytes(card.bytes) : "");
        for (const auto& [name, cell] : card.cells) rows_wanted.insert(name);
    }
    std::vector<std::vector<std::string>> rows = {sizes};
    for (const auto& name : rows_wanted) {
        std::vector<std::string> row = {name};
        for (const auto& card : files) {
            const auto cell = card.cells.find(name);
            row.push_back(cell == card.cells.end() ? "" : cell->second);
        }
        rows.push_back(std::move(row));
    }
    fmt::print("{}", values.markdown ? visible_lines(markdown(header, rows)) : format_table(header, rows));
    for (const auto& note : cards.notes()) fmt::print("\n{}\n", visible(note));
    return 0;
}

}  // namespace

Command add_compare_evals(CLI::App& app) {
    auto values = std::make_shared<Values>();
    auto* command = app.add_subcommand("compare-evals", "The tables of a model card, from stored evaluations");
    command->footer(
        "Example:\n  cerebellum eval kld f16.gguf ours.gguf Q4_K_M.gguf --wikitext2 --json > kld.json\n"
        "  cerebellum eval speed ours.gguf Q4_K_M.gguf --json > speed.json\n"
        "  cerebellum compare-evals kld.json speed.json cerebellum-eval/*.summary.json --markdown\n\n"
        "Files side by side, smallest first: size, perplexity, KLD, every benchmark with its 95 % interval, speed and\n"
        "memory. Files are told apart by their SHA-256. Figures that were not measured in the same way are refused, "
        "and\n"
        "scores that were judged again are listed with their old score and the reason.");
    command->add_option("results", values->results, "Summaries, and --json outputs of eval ppl, kld, speed and serve")
        ->required()
        ->type_name("FILE.json");
    command->add_flag("--markdown", values->markdown, "Print a Markdown table");
    command->add_flag("--json", values->json, "Print the result as JSON");
    return [values] { return run_compare(*values); };
}

}  // namespace cerebellum::cli
