#include <fmt/format.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <functional>
#include <string_view>

#include "cerebellum/report/card.h"

// The fields are those of the model card specification in the documentation of the Hugging Face Hub (modelcard.md), the
// identifiers of licences those of its list (repositories-licenses.md).

namespace cerebellum {

namespace {

constexpr std::string_view licences =
    " apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m "
    "afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 "
    "cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 "
    "cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 "
    "cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl "
    "gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl mpl-2.0 odc-by odbl "
    "open-mdw openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license "
    "fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma grok2-community "
    "apple-ascl apple-amlr unknown other ";

std::string lower(std::string text) {
    std::ranges::transform(text, text.begin(), [](unsigned char c) { return std::tolower(c); });
    return text;
}

/// A string that every reader of YAML takes for that string. YAML 1.1, which Python and Ruby read, has words, dates and
/// numbers that 1.2 does not have; so only what begins with a letter, is no such word and has no character of the
/// syntax stands without quotes.
void put_text(YAML::Emitter& yaml, const std::string& text) {
    constexpr std::string_view words = " y n yes no on off true false null ";
    constexpr std::string_view harmless = "abcdefghijklmnopqrstuvwxyz0123456789 _-./+,()";
    const auto small = lower(text);
    const bool plain = !text.empty() && std::isalpha(static_cast<unsigned char>(small.front())) != 0 &&
                       small.back() != ' ' && small.find_first_not_of(harmless) == std::string::npos &&
                       words.find(" " + small + " ") == std::string_view::npos;
    if (!plain) yaml << YAML::DoubleQuoted;
    yaml << text;
}

void put_text(YAML::Emitter& yaml, const char* key, const std::string& text) {
    yaml << YAML::Key << key << YAML::Value;
    put_text(yaml, text);
}

/// YAML 1.1 has no numbers with an exponent and without a point.
std::string yaml_number(double value) {
    auto text = fmt::format("{:.12g}", value);
    if (const auto exponent = text.find('e'); exponent != std::string::npos && text.find('.') == std::string::npos)
        text.insert(exponent, ".0");
    return text;
}

/// Letters, digits and dashes, as identifiers have them.
std::string slug(const std::string& text) {
    std::string result;
    for (const char c : lower(text)) {
        if (std::isalnum(static_cast<unsigned char>(c)) != 0)
            result += c;
        else if (!result.empty() && result.back() != '-')
            result += '-';
    }
    while (result.ends_with('-')) result.pop_back();
    return result.empty() ? "text" : result;
}

struct Dataset {
    std::string type;  // identifier
    std::string name;  // for people
};

/// Datasets by the names of our benchmarks.
Dataset dataset_of(const std::string& benchmark) {
    struct Known {
        std::string_view ours, type, name;
    };
    constexpr std::array<Known, 7> all = {{{"hellaswag", "Rowan/hellaswag", "HellaSwag"},
                                           {"winogrande", "allenai/winogrande", "WinoGrande"},
                                           {"arc", "allenai/ai2_arc", "ARC-Challenge"},
                                           {"mmlu", "cais/mmlu", "MMLU"},
                                           {"mmlu-redux", "edinburgh-dawg/mmlu-redux", "MMLU-Redux"},
                                           {"truthfulqa", "truthfulqa/truthful_qa", "TruthfulQA"},
                                           {"humaneval", "openai/openai_humaneval", "HumanEval"}}};
    const auto found = std::ranges::find(all, benchmark, &Known::ours);
    if (found != all.end()) return {std::string(found->type), std::string(found->name)};
    return {slug(benchmark), benchmark};
}

/// One metric on one dataset, as model-index has it.
struct Metric {
    Dataset dataset;
    std::string type, name;
    Stored value;
};

std::string file_name(const StoredResult& result, const std::string& pointer) {
    const auto stored = result.find(pointer);
    if (!stored) return "";
    const auto path = stored->text();
    return path.substr(path.rfind('/') + 1);
}

void add_benchmark(std::vector<Metric>& metrics, const StoredResult& summary, const std::string& file) {
    if (file_name(summary, "/model/file") != file) return;
    auto dataset = dataset_of(summary.at("/benchmark").text());
    if (summary.is("/mode", "chat")) dataset.name += " (chat)";
    for (const auto& metric : summary.keys("/metrics"))
        metrics.push_back({dataset, metric, metric, summary.at("/metrics/" + pointer_part(metric) + "/score")});
}

void add_text(std::vector<Metric>& metrics, const StoredResult& result, const std::string& file) {
    const auto text = file_name(result, "/text/0");
    for (std::size_t i = 0; i < result.size("/files"); ++i) {
        const auto entry = fmt::format("/files/{}", i);
        if (file_name(result, entry + "/file") != file) continue;
        const Dataset dataset = {slug(text), text};
        if (result.has(entry + "/perplexity/mean"))
            metrics.push_back({dataset, "perplexity", "perplexity", result.at(entry + "/perplexity/mean")});
        else if (result.has(entry + "/perplexity"))
            metrics.push_back({dataset, "perplexity", "perplexity", result.at(entry + "/perplexity")});
        if (result.has(entry + "/kld/mean"))
            metrics.push_back({dataset, "kl_divergence", "KL divergence from the source, nats per token",
                               result.at(entry + "/kld/mean")});
        if (result.has(entry + "/same_top/mean"))
            metrics.push_back(
                {dataset, "same_top_token", "same likeliest token as the source", result.at(entry + "/same_top/mean")});
    }
}

void add_results(std::vector<Metric>& metrics, const StoredResult& results) {
    const auto delivered = results.at("/delivered").text(), text = results.at("/text").text();
    for (std::size_t i = 0; i < results.size("/files"); ++i) {
        const auto entry = fmt::format("/files/{}", i);
        if (!results.is(entry + "/name", delivered)) continue;
        const Dataset dataset = {slug(text), text};
        metrics.push_back({dataset, "kl_divergence", "KL divergence from the source, nats per token",
                           results.at(entry + "/kld/mean")});
        metrics.push_back({dataset, "perplexity", "perplexity", results.at(entry + "/perplexity/mean")});
        metrics.push_back(
            {dataset, "same_top_token", "same likeliest token as the source", results.at(entry + "/top1_agree/mean")});
    }
}

std::vector<Metric> all_metrics(const CardSources& sources) {
    std::vector<Metric> metrics;
    const auto file = sources.facts.at("/file/name").text();
    if (sources.results) add_results(metrics, *sources.results);
    for (const auto& evaluation : sources.evaluations) {
        if (kind_of(evaluation) == EvaluationKind::benchmark) add_benchmark(metrics, evaluation, file);
        if (kind_of(evaluation) == EvaluationKind::text) add_text(metrics, evaluation, file);
    }
    std::erase_if(metrics, [](const Metric& metric) { return !std::isfinite(metric.value.number()); });
    return metrics;
}

void add_strings(YAML::Emitter& yaml, const char* key, const StoredResult& facts, const std::string& pointer) {
    if (facts.size(pointer) == 0) return;
    yaml << YAML::Key << key << YAML::Value << YAML::BeginSeq;
    for (std::size_t i = 0; i < facts.size(pointer); ++i)
        put_text(yaml, facts.at(fmt::format("{}/{}", pointer, i)).text());
    yaml << YAML::EndSeq;
}

void add_licence(YAML::Emitter& yaml, const StoredResult& facts) {
    const auto stored = facts.find("/card/license");
    if (!stored) return;
    const auto licence = lower(stored->text());
    const bool known = licences.find(" " + licence + " ") != std::string_view::npos;
    put_text(yaml, "license", known ? licence : "other");
    if (!known) put_text(yaml, "license_name", slug(licence));
    if (const auto link = facts.find("/card/license_link"); link && !known)
        put_text(yaml, "license_link", link->text());
}

void add_metric(YAML::Emitter& yaml, const Metric& metric, const std::string& task) {
    yaml << YAML::BeginMap << YAML::Key << "task" << YAML::Value << YAML::BeginMap;
    put_text(yaml, "type", task);
    yaml << YAML::EndMap << YAML::Key << "dataset" << YAML::Value << YAML::BeginMap;
    put_text(yaml, "type", metric.dataset.type);
    put_text(yaml, "name", metric.dataset.name);
    yaml << YAML::EndMap << YAML::Key << "metrics" << YAML::Value << YAML::BeginSeq << YAML::BeginMap;
    put_text(yaml, "type", metric.type);
    yaml << YAML::Key << "value" << YAML::Value << yaml_number(metric.value.number());
    put_text(yaml, "name", metric.name);
    yaml << YAML::EndMap << YAML::EndSeq << YAML::Key << "source" << YAML::Value << YAML::BeginMap;
    put_text(yaml, "name", "stored result");
    put_text(yaml, "url", metric.value.url());
    yaml << YAML::EndMap << YAML::EndMap;
}

}  // namespace

std::string front_matter(const CardSources& sources) {
    const auto& facts = sources.facts;
    YAML::Emitter yaml;
    yaml << YAML::BeginMap;
    add_strings(yaml, "language", facts, "/card/language");
    add_licence(yaml, facts);
    put_text(yaml, "library_name", "gguf");
    put_text(yaml, "pipeline_tag", facts.at("/card/pipeline_tag").text());
    add_strings(yaml, "base_model", facts, "/card/base_model");
    if (const auto relation = facts.find("/card/base_model_relation"); relation && facts.size("/card/base_model") > 0)
        put_text(yaml, "base_model_relation", relation->text());
    if (const auto name = facts.find("/card/quantized_by")) put_text(yaml, "quantized_by", name->text());
    add_strings(yaml, "tags", facts, "/card/tags");
    const auto metrics = all_metrics(sources);
    if (!metrics.empty()) {
        yaml << YAML::Key << "model-index" << YAML::Value << YAML::BeginSeq << YAML::BeginMap;
        put_text(yaml, "name", facts.at("/name").text());
        yaml << YAML::Key << "results" << YAML::Value << YAML::BeginSeq;
        for (const auto& metric : metrics) add_metric(yaml, metric, facts.at("/card/pipeline_tag").text());
        yaml << YAML::EndSeq << YAML::EndMap << YAML::EndSeq;
    }
    yaml << YAML::EndMap;
    return std::string(yaml.c_str()) + "\n";
}

}  // namespace cerebellum
