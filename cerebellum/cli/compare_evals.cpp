#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "cerebellum/cli/commands.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/size.h"
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
    std::uint64_t bytes = 0;
    std::map<std::string, std::string> cells;
    std::map<std::string, nlohmann::json> values;
};

using Cards = std::map<std::string, Card>;

std::string file_name(const json& entry) {
    return fs::path(entry.value("file", "?")).filename().string();
}

void put(Card& card, const std::string& column, const std::string& cell, json value) {
    card.cells[column] = cell;
    card.values[column] = std::move(value);
}

Card& card_of(Cards& cards, const json& entry) {
    auto& card = cards[file_name(entry)];
    card.bytes = entry.value("bytes", card.bytes);
    return card;
}

std::string with_error(const json& value, int digits) {
    return fmt::format("{:.{}f} ± {:.{}f}", value["mean"].get<double>(), digits, value["error"].get<double>(), digits);
}

/// eval ppl, eval kld
void add_text(Cards& cards, const json& result) {
    const auto place =
        fmt::format(" ({}, {})", result["convention"] == "llama-perplexity" ? "llama-perplexity" : "all positions",
                    result["context"].get<int>());
    for (const auto& entry : result["files"]) {
        auto& card = card_of(cards, entry);
        if (entry.contains("kld")) {
            put(card, "PPL" + place, with_error(entry["perplexity"], 4), entry["perplexity"]);
            put(card, "KLD" + place, with_error(entry["kld"], 5), entry["kld"]);
        } else if (entry.contains("perplexity")) {
            const json value = {{"mean", entry["perplexity"]}, {"error", entry["perplexity_error"]}};
            put(card, "PPL" + place, with_error(value, 4), value);
        }
    }
}

/// eval speed
void add_speed(Cards& cards, const json& result) {
    for (const auto& entry : result["files"]) {
        auto& card = card_of(cards, entry);
        for (const auto& [key, name] :
             {std::pair{"prompt_per_second", "prompt t/s"}, {"generation_per_second", "generate t/s"}})
            if (entry.contains(key) && !entry[key]["figures"].empty())
                put(card, name,
                    fmt::format("{:.1f} ± {:.1f}", entry[key]["median"].get<double>(),
                                entry[key]["deviation"].get<double>()),
                    entry[key]);
    }
}

/// eval serve
void add_serving(Cards& cards, const json& result) {
    auto& card = card_of(cards, result);
    for (const auto& context : result["contexts"])
        if (context["worked"].get<bool>()) {
            const auto place =
                fmt::format(" ({} x {})", result["slots"].get<int>(), context["context_per_slot"].get<int>());
            put(card, "served t/s" + place, fmt::format("{:.1f}", context["tokens_per_second"].get<double>()),
                context["tokens_per_second"]);
            put(card, "memory" + place, format_bytes(context["peak_memory_bytes"].get<std::uint64_t>()),
                context["peak_memory_bytes"]);
        }
}

/// A summary of questions
void add_summary(Cards& cards, const json& summary) {
    auto& card = card_of(cards, summary["model"]);
    const auto metric = summary.value("metric", "acc");
    if (!summary["metrics"].contains(metric)) return;
    auto name = summary["benchmark"].get<std::string>();
    if (summary.value("mode", "") == "chat") name += " chat";
    if (const int shots = summary.value("shots", 0); shots > 0) name += fmt::format(" {}-shot", shots);
    if (const double temperature = summary.value("temperature", 0.0); temperature > 0.0)
        name += fmt::format(" at {:g}", temperature);
    const auto& score = summary["metrics"][metric];
    put(card, fmt::format("{} ({}, n={})", name, metric, score["questions"].get<int>()),
        fmt::format("{:.2f} [{:.2f}, {:.2f}]", 100.0 * score["score"].get<double>(),
                    100.0 * score["interval95"][0].get<double>(), 100.0 * score["interval95"][1].get<double>()),
        score);
}

void add_result(Cards& cards, const std::string& path) {
    const auto result = json::parse(read_file(path), nullptr, false);
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
    std::vector<std::pair<std::string, Card>> files(cards.begin(), cards.end());
    std::ranges::stable_sort(files, {}, [](const auto& file) { return file.second.bytes; });
    std::set<std::string> columns;
    for (const auto& [name, card] : files)
        for (const auto& [column, cell] : card.cells) columns.insert(column);
    if (values.json) {
        auto result = json::array();
        for (const auto& [name, card] : files)
            result.push_back({{"file", name}, {"bytes", card.bytes}, {"results", card.values}});
        fmt::print("{}\n", result.dump(2));
        return 0;
    }
    // A file a column, as a model card has it.
    std::vector<std::string> header = {""}, sizes = {"size"};
    for (const auto& [name, card] : files) {
        header.push_back(name);
        sizes.push_back(card.bytes > 0 ? format_bytes(card.bytes) : "");
    }
    std::vector<std::vector<std::string>> rows = {sizes};
    for (const auto& column : columns) {
        std::vector<std::string> row = {column};
        for (const auto& [name, card] : files) {
            const auto cell = card.cells.find(column);
            row.push_back(cell == card.cells.end() ? "" : cell->second);
        }
        rows.push_back(std::move(row));
    }
    fmt::print("{}", values.markdown ? markdown(header, rows) : format_table(header, rows));
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
        "memory. Results of the same file name belong together.");
    command->add_option("results", values->results, "Summaries, and --json outputs of eval ppl, kld, speed and serve")
        ->required()
        ->type_name("FILE.json");
    command->add_flag("--markdown", values->markdown, "Print a Markdown table");
    command->add_flag("--json", values->json, "Print the result as JSON");
    return [values] { return run_compare(*values); };
}

}  // namespace cerebellum::cli
