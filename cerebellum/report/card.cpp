#include "cerebellum/report/card.h"

#include <fmt/format.h>

#include <algorithm>

#include "cerebellum/core/error.h"
#include "cerebellum/report/card_text.h"

namespace cerebellum {

namespace {

/// "/files/3/kld"
std::string entry(const char* list, std::size_t index, const std::string& rest = "") {
    return fmt::format("/{}/{}{}", list, index, rest);
}

CardText name_of(const StoredResult& result, const std::string& pointer) {
    CardText text;
    if (const auto stored = result.find(pointer)) text.name(*stored);
    return text;
}

CardText figure(const StoredResult& result, const std::string& pointer, Figure kind) {
    CardText text;
    if (const auto stored = result.find(pointer)) text.add(*stored, kind);
    return text;
}

CardText estimate(const StoredResult& result, const std::string& pointer, Figure kind) {
    return result.has(pointer + "/mean") ? with_error(result, pointer, kind) : CardText();
}

/// How the file came to its types, as far as its own records say.
CardText origin_of(const CardSources& sources) {
    if (sources.results && sources.results->is("/delivered_kind", "ours"))
        return CardText(
            ", made with Cerebellum: what tensors lose in quantization types was measured inside the running model, "
            "and the bytes were spent where the damage is largest.");
    if (sources.results)
        return CardText(", made with Cerebellum in the types of the stock mix ")
            .name(sources.results->at("/delivered"))
            .add(", which did the least damage of all that were compared.");
    if (const auto version = sources.facts.find("/written_by"))
        return CardText(", written by Cerebellum ").name(*version).add(".");
    return CardText(".");
}

void write_summary(CardDocument& card, const CardSources& sources) {
    const auto& facts = sources.facts;
    card.title(name_of(facts, "/name"));
    CardText text("A GGUF of ");
    text.add(facts.at("/file/bytes"), Figure::bytes).add(" (").add(facts.at("/bpw"), Figure::two_digits);
    text.add(" bits per weight) of ").name(facts.at("/source/name")).add(origin_of(sources));
    text.add(" It is a standard file for llama.cpp and everything that is built on it.");
    card.paragraph(text);
    if (const auto page = facts.find("/report"))
        card.paragraph(CardText("Everything that was measured, as a page that opens in a browser: ")
                           .file(*page)
                           .add(" (on the Hub, download it first)."));
    if (!sources.results) return;
    const auto& results = *sources.results;
    if (results.has("/label")) card.paragraph(CardText("Beware, ").name(results.at("/label")).add("."));
    for (std::size_t i = 0; i < results.size("/files"); ++i)
        if (results.is(entry("files", i, "/name"), results.at("/delivered").text()))
            card.paragraph(CardText("Its KL divergence from the source is ")
                               .add(with_error(results, entry("files", i, "/kld"), Figure::five_digits))
                               .add(" nats per token; its likeliest token is the source's at ")
                               .add(results.at(entry("files", i, "/top1_agree/mean")), Figure::percent)
                               .add(" of the positions. Every number here is a link to the stored result that it was "
                                    "taken from; the part behind the sign # is the place in it (a JSON pointer)."));
}

void write_usage(CardDocument& card, const CardSources& sources) {
    if (!sources.serving) return;
    const auto& serving = *sources.serving;
    card.heading("Usage");
    card.paragraph("With llama.cpp, on the machine that this was made on:");
    card.code({CardText().name(serving.at("/llama_server"))}, serving);
    if (!serving.is("/template", "none"))
        card.paragraph("The chat template is in the file.");
    else
        card.paragraph("The file has no chat template: it completes text.");
    card.paragraph("With Ollama, from this folder:");
    std::vector<CardText> lines;
    for (std::size_t i = 0; i < serving.size("/ollama"); ++i)
        lines.push_back(CardText().name(serving.at(entry("ollama", i))));
    card.code(lines, serving);
}

/// Of the entry at a pointer.
CardText how_measured(const StoredResult& results, const std::string& pointer) {
    if (results.is(pointer + "/measured_by", "libllama")) return CardText("file run by llama.cpp");
    if (!results.is(pointer + "/measured_by", "predicted")) return CardText("replayed");
    if (results.has(pointer + "/predicted_at_least")) return CardText("predicted: at least so much");
    return CardText("predicted from its tensors");
}

void write_presets(CardDocument& card, const StoredResult& results) {
    card.heading("Against the stock presets");
    std::vector<std::vector<CardText>> rows;
    for (std::size_t i = 0; i < results.size("/files"); ++i) {
        const auto at = [&](const char* rest) { return entry("files", i, rest); };
        const bool delivered = results.is(at("/name"), results.at("/delivered").text());
        auto name = name_of(results, at("/name"));
        if (delivered) name.add(" (this file)");
        rows.push_back({name, figure(results, at("/bytes"), Figure::bytes),
                        figure(results, at("/bpw"), Figure::two_digits),
                        estimate(results, at("/kld"), Figure::five_digits),
                        estimate(results, at("/perplexity"), Figure::three_digits),
                        figure(results, at("/top1_agree/mean"), Figure::percent), how_measured(results, at(""))});
    }
    card.table({"file", "size", "bits per weight", "KLD", "perplexity", "same likeliest token", "measured"}, rows);
    card.paragraph(CardText("KLD in nats per token from ")
                       .name(results.at("/reference"))
                       .add(", ± one standard error clustered by window, on text held out from every choice: ")
                       .name(results.at("/text"))
                       .add(". Presets are made with the same importance matrix."));
}

std::string shown_file(const StoredResult& result, const std::string& pointer) {
    return result.has(pointer + "/file") ? pointer + "/file" : pointer + "/name";
}

void write_benchmarks(CardDocument& card, const std::vector<StoredResult>& evaluations) {
    std::vector<std::vector<CardText>> rows;
    std::vector<CardText> corrections;
    for (const auto& summary : evaluations) {
        if (kind_of(summary) != EvaluationKind::benchmark) continue;
        for (const auto& metric : summary.keys("/metrics")) {
            const auto at = "/metrics/" + pointer_part(metric);
            auto setting = name_of(summary, "/mode");
            if (summary.has("/shots")) setting.add(", shots: ").add(summary.at("/shots"), Figure::whole);
            if (summary.has("/temperature"))
                setting.add(", temperature: ").add(summary.at("/temperature"), Figure::one_digit);
            CardText interval;
            if (summary.size(at + "/interval95") == 2)
                interval.add(summary.at(at + "/interval95/0"), Figure::percent)
                    .add(" to ")
                    .add(summary.at(at + "/interval95/1"), Figure::percent);
            rows.push_back({name_of(summary, "/benchmark"), setting, name_of(summary, "/model/file"),
                            CardText().key(summary.at(at)), figure(summary, at + "/score", Figure::percent), interval,
                            figure(summary, at + "/questions", Figure::whole)});
        }
        for (std::size_t i = 0; i < summary.size("/rejudged"); ++i)
            corrections.push_back(name_of(summary, "/benchmark")
                                      .add(", ")
                                      .add(name_of(summary, "/model/file"))
                                      .add(", ")
                                      .add(name_of(summary, entry("rejudged", i, "/date")))
                                      .add(": from ")
                                      .add(summary.at(entry("rejudged", i, "/old_score")), Figure::percent)
                                      .add(" to ")
                                      .add(summary.at(entry("rejudged", i, "/new_score")), Figure::percent)
                                      .add(", because ")
                                      .add(name_of(summary, entry("rejudged", i, "/reason"))));
    }
    if (rows.empty()) return;
    card.heading("Benchmarks");
    card.table({"benchmark", "how", "file", "metric", "score", "confidence interval", "questions"}, rows);
    card.heading("Score corrections");
    if (corrections.empty())
        card.paragraph("None: no stored answer was judged again.");
    else
        card.bullets(corrections);
}

void write_text(CardDocument& card, const std::vector<StoredResult>& evaluations) {
    std::vector<std::vector<CardText>> rows;
    for (const auto& result : evaluations) {
        if (kind_of(result) != EvaluationKind::text) continue;
        for (std::size_t i = 0; i < result.size("/files"); ++i) {
            const auto at = [&](const char* rest) { return entry("files", i, rest); };
            auto perplexity = estimate(result, at("/perplexity"), Figure::three_digits);
            if (perplexity.empty()) {
                perplexity = figure(result, at("/perplexity"), Figure::three_digits);
                if (result.has(at("/perplexity_error")))
                    perplexity.add(" ± ").add(result.at(at("/perplexity_error")), Figure::three_digits);
            }
            rows.push_back({name_of(result, shown_file(result, entry("files", i))),
                            figure(result, at("/bytes"), Figure::bytes), perplexity,
                            estimate(result, at("/kld"), Figure::five_digits), name_of(result, "/text/0"),
                            figure(result, "/context", Figure::whole), name_of(result, "/convention")});
        }
    }
    if (rows.empty()) return;
    card.heading("Perplexity and divergence over size");
    card.table({"file", "size", "perplexity", "KLD", "text", "context", "convention"}, rows);
}

void write_speed(CardDocument& card, const std::vector<StoredResult>& evaluations) {
    std::vector<std::vector<CardText>> rows, served;
    const auto spread = [](const StoredResult& result, const std::string& pointer) {
        auto text = figure(result, pointer + "/median", Figure::two_digits);
        if (result.has(pointer + "/deviation"))
            text.add(" ± ").add(result.at(pointer + "/deviation"), Figure::two_digits);
        return text;
    };
    for (const auto& result : evaluations) {
        if (kind_of(result) == EvaluationKind::speed)
            for (std::size_t i = 0; i < result.size("/files"); ++i)
                rows.push_back({name_of(result, entry("files", i, "/file")),
                                figure(result, entry("files", i, "/bytes"), Figure::bytes),
                                spread(result, entry("files", i, "/prompt_per_second")),
                                spread(result, entry("files", i, "/generation_per_second")),
                                figure(result, "/threads", Figure::whole),
                                figure(result, "/gpu_layers", Figure::whole)});
        if (kind_of(result) == EvaluationKind::serving)
            for (std::size_t i = 0; i < result.size("/contexts"); ++i)
                if (result.has(entry("contexts", i, "/tokens_per_second")))
                    served.push_back({name_of(result, "/file"), figure(result, "/slots", Figure::whole),
                                      figure(result, entry("contexts", i, "/context_per_slot"), Figure::whole),
                                      figure(result, entry("contexts", i, "/tokens_per_second"), Figure::two_digits),
                                      figure(result, entry("contexts", i, "/first_token_seconds"), Figure::two_digits),
                                      figure(result, entry("contexts", i, "/peak_memory_bytes"), Figure::bytes)});
    }
    if (rows.empty() && served.empty()) return;
    card.heading("Speed");
    if (!rows.empty())
        card.table({"file", "size", "prompt, tokens per second", "generation, tokens per second", "threads",
                    "layers on a GPU"},
                   rows);
    if (!served.empty())
        card.table({"file served", "slots", "context of a slot", "tokens per second in all", "first token, seconds",
                    "peak memory"},
                   served);
}

void write_memory(CardDocument& card, const CardSources& sources) {
    std::vector<std::vector<CardText>> rows;
    for (const auto& result : sources.evaluations) {
        if (kind_of(result) != EvaluationKind::memory) continue;
        for (std::size_t i = 0; i < result.size(""); ++i)
            for (std::size_t d = 0; d < result.size(fmt::format("/{}/devices", i)); ++d) {
                const auto row = fmt::format("/{}", i), device = fmt::format("/{}/devices/{}", i, d);
                rows.push_back({figure(result, row + "/ctx", Figure::whole),
                                figure(result, row + "/parallel", Figure::whole), name_of(result, row + "/kv"),
                                name_of(result, device + "/device"), figure(result, device + "/weights", Figure::bytes),
                                figure(result, device + "/cache", Figure::bytes),
                                figure(result, device + "/compute", Figure::bytes),
                                figure(result, device + "/total", Figure::bytes)});
            }
    }
    if (sources.serving)
        for (std::size_t i = 0; i < sources.serving->size("/memory"); ++i) {
            const auto at = [&](const char* rest) { return entry("memory", i, rest); };
            const auto& result = *sources.serving;
            rows.push_back({figure(result, at("/ctx"), Figure::whole), figure(result, at("/parallel"), Figure::whole),
                            name_of(result, at("/kv")), name_of(result, at("/device")),
                            figure(result, at("/weights"), Figure::bytes), figure(result, at("/cache"), Figure::bytes),
                            figure(result, at("/compute"), Figure::bytes),
                            figure(result, at("/total"), Figure::bytes)});
        }
    if (rows.empty()) return;
    card.heading("Memory by context");
    card.table({"context", "slots", "cache", "device", "weights", "cache and states", "buffers", "together"}, rows);
    card.paragraph("What llama.cpp says that it will allocate. A GPU's driver needs some for itself.");
}

void write_types(CardDocument& card, const StoredResult& facts) {
    card.heading("How it was made");
    std::vector<std::vector<CardText>> rows;
    for (std::size_t i = 0; i < facts.size("/types"); ++i) {
        CardText roles;
        for (const auto& role : facts.keys(entry("types", i, "/roles"))) {
            const auto count = facts.at(entry("types", i, "/roles/" + pointer_part(role)));
            if (!roles.empty()) roles.add(", ");
            roles.key(count).add(" × ").add(count, Figure::whole);
        }
        rows.push_back({name_of(facts, entry("types", i, "/type")),
                        figure(facts, entry("types", i, "/tensors"), Figure::whole),
                        figure(facts, entry("types", i, "/bytes"), Figure::bytes), roles});
    }
    card.table({"type", "tensors", "bytes", "used for"}, rows);
}

void write_making(CardDocument& card, const CardSources& sources) {
    write_types(card, sources.facts);
    if (!sources.results) return;
    const auto& results = *sources.results;
    std::vector<CardText> items;
    items.push_back(CardText("Goal: ")
                        .name(results.at("/goal"))
                        .add("; the file takes ")
                        .add(results.at("/file_bytes"), Figure::whole)
                        .add(" bytes of ")
                        .add(results.at("/budget_bytes"), Figure::whole)
                        .add(" (")
                        .add(results.at("/budget_used"), Figure::percent)
                        .add(")."));
    items.push_back(CardText("Text: ")
                        .name(results.at("/text"))
                        .add(", in three disjoint parts: for measuring, for "
                             "choosing, and for the figures in this card."));
    if (const auto sum = results.find("/predicted_kld")) {
        CardText text("Predicted KLD: ");
        text.add(*sum, Figure::five_digits).add(" as the sum of the tensors' damages");
        if (results.has("/calibrated_kld/mean"))
            text.add(", ")
                .add(with_error(results, "/calibrated_kld", Figure::five_digits))
                .add(
                    " after calibration by "
                    "whole recipes");
        items.push_back(text.add("."));
    }
    if (const auto floor = results.find("/null_floor_kld"))
        items.push_back(
            CardText("No change at all appears to cost ").add(*floor, Figure::scientific).add(" nats per token."));
    for (std::size_t i = 0; i < results.size("/remarks"); ++i)
        items.push_back(CardText().name(results.at(entry("remarks", i))));
    items.push_back(CardText("Cerebellum ")
                        .name(results.at("/cerebellum"))
                        .add(", llama.cpp ")
                        .name(results.at("/llama.cpp"))
                        .add("."));
    card.bullets(items);
}

void write_findings(CardDocument& card, const StoredResult& findings) {
    card.heading("What was found");
    std::vector<CardText> items;
    CardText text("Measured: ");
    text.add(findings.at("/measured/pairs"), Figure::whole).add(" pairs of tensor and type, of ");
    text.add(findings.at("/measured/tensors"), Figure::whole).add(" tensors; ");
    text.add(findings.at("/measured/full"), Figure::whole)
        .add(
            " of them by running the model to its end, the others by "
            "the damage in the tensor's own block.");
    items.push_back(text);
    for (const auto& name : findings.keys("/classes")) {
        const auto count = findings.at("/classes/" + pointer_part(name));
        items.push_back(CardText("Tensors called ").key(count).add(": ").add(count, Figure::whole).add("."));
    }
    for (const auto& kind : findings.keys("/interactions")) {
        const auto at = "/interactions/" + pointer_part(kind);
        items.push_back(CardText("Changes together against the sum of each alone, ")
                            .key(findings.at(at))
                            .add(": ratio ")
                            .add(findings.at(at + "/least"), Figure::two_digits)
                            .add(" to ")
                            .add(findings.at(at + "/most"), Figure::two_digits)
                            .add(", median ")
                            .add(findings.at(at + "/median"), Figure::two_digits)
                            .add(" (of ")
                            .add(findings.at(at + "/count"), Figure::whole)
                            .add(")."));
    }
    card.bullets(items);
    const auto list = [&](const char* name, Prose header) {
        std::vector<std::vector<CardText>> rows;
        for (std::size_t i = 0; i < findings.size(fmt::format("/{}", name)); ++i) {
            auto kld = figure(findings, entry(name, i, "/kld"), Figure::scientific);
            if (findings.has(entry(name, i, "/kld_error")))
                kld.add(" ± ").add(findings.at(entry(name, i, "/kld_error")), Figure::scientific);
            rows.push_back({name_of(findings, entry(name, i, "/tensor")), name_of(findings, entry(name, i, "/type")),
                            kld, name_of(findings, entry(name, i, "/class"))});
        }
        if (!rows.empty()) card.table({header, "crushed to", "KLD", "class"}, rows);
    };
    list("most_sensitive", "most sensitive");
    list("least_sensitive", "least sensitive");
    card.paragraph(
        "A class says what is shown against the share of the damage that a tensor's bytes would have if all "
        "cost the same: sacred is above it, demotable and safe are below, sensitive is not decided. The lists go by "
        "the "
        "damage itself, so that a large tensor may stand high in one and be called safe: it does much damage, and less "
        "than its bytes would make one expect.");
}

void write_reproduction(CardDocument& card, const CardSources& sources) {
    const auto& facts = sources.facts;
    card.heading("How to reproduce it");
    std::vector<CardText> lines;
    for (std::size_t i = 0; i < facts.size("/commands"); ++i)
        lines.push_back(CardText().name(facts.at(entry("commands", i))));
    card.code(lines, facts);
    std::vector<std::vector<CardText>> rows;
    for (std::size_t i = 0; i < facts.size("/files"); ++i)
        rows.push_back({name_of(facts, entry("files", i, "/name")),
                        figure(facts, entry("files", i, "/bytes"), Figure::whole),
                        name_of(facts, entry("files", i, "/sha256"))});
    card.table({"file", "bytes", "hash"}, rows);
    std::vector<CardText> items;
    items.push_back(CardText("Fingerprint of the source: ").name(facts.at("/source/fingerprint")));
    if (sources.findings)
        items.push_back(CardText("Digest of the measurements: ").name(sources.findings->at("/journal_sha256")));
    card.bullets(items);
}

void write_hardware(CardDocument& card, const StoredResult& facts) {
    if (!facts.has("/machine/processor")) return;
    card.heading("Hardware");
    CardText text;
    text.name(facts.at("/machine/processor")).add(", ").add(facts.at("/machine/physical_cores"), Figure::whole);
    text.add(" cores, ").add(facts.at("/machine/memory_bytes"), Figure::bytes).add(" of memory");
    for (std::size_t i = 0; i < facts.size("/machine/devices"); ++i)
        if (facts.is(entry("machine/devices", i, "/kind"), "GPU"))
            text.add(", ")
                .name(facts.at(entry("machine/devices", i, "/description")))
                .add(" with ")
                .add(facts.at(entry("machine/devices", i, "/total_bytes")), Figure::bytes);
    card.paragraph(text.add("."));
}

void write_limitations(CardDocument& card, const CardSources& sources) {
    card.heading("Limitations");
    std::vector<CardText> items = {
        CardText("All the limitations of the source model; quantization adds to them."),
        CardText(
            "The figures are of the text that is named with them. Other kinds of text (code, other languages, long "
            "contexts) may be damaged more, or less.")};
    if (sources.results)
        items.emplace_back().add(
            "Perplexity on a short text has a wide error; the differences in KLD, which are paired, are far clearer.");
    if (std::ranges::none_of(sources.evaluations,
                             [](const auto& evaluation) { return kind_of(evaluation) == EvaluationKind::benchmark; }))
        items.emplace_back().add("No benchmark was run on this file.");
    card.bullets(items);
}

}  // namespace

EvaluationKind kind_of(const StoredResult& evaluation) {
    if (evaluation.is("/format", "cerebellum-eval-summary")) return EvaluationKind::benchmark;
    if (evaluation.size("/contexts") > 0) return EvaluationKind::serving;
    if (evaluation.size("/files") > 0 && evaluation.has("/prompt_tokens")) return EvaluationKind::speed;
    if (evaluation.size("/files") > 0 && evaluation.has("/convention")) return EvaluationKind::text;
    if (evaluation.size("") > 0 && evaluation.size("/0/devices") > 0) return EvaluationKind::memory;
    throw Error(
        fmt::format("{} is no stored evaluation (a .summary.json, or what 'eval ppl', 'kld', 'speed', 'serve' and "
                    "'memory' print with --json)",
                    evaluation.link()));
}

std::string write_card(const CardSources& sources) {
    CardDocument card;
    write_summary(card, sources);
    write_usage(card, sources);
    if (sources.results) write_presets(card, *sources.results);
    write_text(card, sources.evaluations);
    write_benchmarks(card, sources.evaluations);
    write_speed(card, sources.evaluations);
    write_memory(card, sources);
    write_making(card, sources);
    if (sources.findings) write_findings(card, *sources.findings);
    write_reproduction(card, sources);
    write_hardware(card, sources.facts);
    write_limitations(card, sources);
    return "---\n" + front_matter(sources) + "---\n\n" + card.markdown();
}

}  // namespace cerebellum
