#include "cerebellum/report/card.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <yaml-cpp/yaml.h>

#include <cmath>
#include <filesystem>
#include <map>
#include <regex>
#include <sstream>

#include "cerebellum/gguf/gguf_support_test.h"
#include "cerebellum/report/card_text.h"

namespace cerebellum {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using ::testing::Not;

const char* const facts_json = R"({
  "name": "tiny-4.5bpw", "weights": 1000000, "bpw": 4.4987, "file": {"name": "tiny-4.5bpw.gguf", "bytes": 500000},
  "source": {"name": "tiny-f16.gguf", "fingerprint": "ab12"},
  "types": [{"type": "q4_K", "tensors": 12, "bytes": 400123, "roles": {"attn_q": 5, "ffn_down": 7}},
            {"type": "q8_0", "tensors": 1, "bytes": 99877, "roles": {"token_embd": 1}}],
  "card": {"license": "Apache-2.0", "base_model": ["org/tiny"], "base_model_relation": "quantized", "quantized_by": "me", "tags": ["gguf", "x:y"],
           "language": ["en"], "pipeline_tag": "text-generation"},
  "commands": ["cerebellum publish tiny-f16.gguf --size 4.5bpw -o out"],
  "files": [{"name": "tiny-4.5bpw.gguf", "bytes": 500000, "sha256": "00ff"}],
  "machine": {"processor": "Some CPU 9000", "physical_cores": 8, "memory_bytes": 32000000000,
              "devices": [{"kind": "CPU"}, {"kind": "GPU", "description": "Some GPU 5", "total_bytes": 12000000000}]}})";

const char* const results_json = R"({
  "delivered": "cerebellum", "delivered_kind": "ours", "text": "self-sampled, seed 1", "reference": "the source", "goal": "--size 4.5bpw",
  "file_bytes": 500000, "budget_bytes": 500100, "budget_used": 0.9998, "predicted_kld": 0.012345,
  "calibrated_kld": {"mean": 0.0131, "error": 0.0004}, "null_floor_kld": 1.5e-9, "remarks": ["3 tensors stay"],
  "cerebellum": "0.1.0", "llama.cpp": "0.5.0",
  "files": [
   {"name": "source", "bytes": 2000000, "bpw": 16.01, "measured_by": "libllama", "kld": {"mean": 0.0, "error": 0.0},
    "perplexity": {"mean": 20.5, "error": 1.5}, "top1_agree": {"mean": 1.0}},
   {"name": "Q4_K_M", "bytes": 510000, "bpw": 4.6, "measured_by": "replay", "kld": {"mean": 0.0207, "error": 0.0009},
    "perplexity": {"mean": 21.25, "error": 1.75}, "top1_agree": {"mean": 0.871}},
   {"name": "cerebellum", "bytes": 500000, "bpw": 4.4987, "measured_by": "libllama",
    "kld": {"mean": 0.01276, "error": 0.00061}, "perplexity": {"mean": 20.875, "error": 1.625},
    "top1_agree": {"mean": 0.9034}},
   {"name": "Q3_K_S", "bytes": 400000, "bpw": 3.6, "measured_by": "predicted", "kld": {"mean": 0.0711, "error": 0.0082},
    "perplexity": null, "top1_agree": null, "tokens": null},
   {"name": "Q2_K", "bytes": 300000, "bpw": 2.7, "measured_by": "predicted", "predicted_at_least": true,
    "kld": {"mean": 0.0533, "error": 0.0071}, "perplexity": null, "top1_agree": null, "tokens": null}]})";

const char* const findings_json = R"({
  "journal_sha256": "cd34", "measured": {"tensors": 13, "pairs": 130, "full": 26},
  "classes": {"sacred": 2, "safe": 4}, "interactions": {"whole recipes": {"count": 5, "least": 0.91, "median": 1.04, "most": 1.3}},
  "most_sensitive": [{"tensor": "blk.0.attn_v.weight", "type": "q2_K", "kld": 0.0345, "kld_error": 0.002, "class": "sacred"}],
  "least_sensitive": [{"tensor": "blk.3.attn_q.weight", "type": "q2_K", "kld": 0.000012, "kld_error": null, "class": "safe"}]})";

const char* const serving_json = R"({
  "template": "exact", "llama_server": "llama-server --model tiny-4.5bpw.gguf --ctx-size 4096",
  "ollama": ["ollama create tiny-4.5bpw -f Modelfile", "ollama run tiny-4.5bpw"],
  "memory": [{"ctx": 4096, "parallel": 1, "kv": "f16", "device": "CPU", "weights": 500000, "cache": 1000000,
              "compute": 250000, "total": 1750000}]})";

const char* const summary_json = R"({
  "format": "cerebellum-eval-summary", "benchmark": "arc", "mode": "probabilities", "shots": 5,
  "model": {"file": "tiny-4.5bpw.gguf"},
  "metrics": {"acc_norm": {"score": 0.4125, "interval95": [0.38, 0.45], "questions": 1172}},
  "rejudged": [{"date": "2026-01-02T03:04:05Z", "reason": "boxed answers", "old_score": 0.39, "new_score": 0.4125}]})";

const char* const text_json = R"({
  "convention": "llama-perplexity", "text": ["/data/wiki.test.raw"], "context": 2048,
  "files": [{"file": "dir/tiny-4.5bpw.gguf", "bytes": 500000, "perplexity": {"mean": 31.5, "error": 0.25},
             "kld": {"mean": 0.0151, "error": 0.0002}, "same_top": {"mean": 0.89, "error": 0.001}}]})";

const char* const speed_json = R"({
  "prompt_tokens": 512, "threads": 8, "gpu_layers": 0,
  "files": [{"file": "tiny-4.5bpw.gguf", "bytes": 500000, "prompt_per_second": {"median": 812.5, "deviation": 3.25},
             "generation_per_second": {"median": 95.75, "deviation": 0.5}}]})";

const char* const memory_json = R"([
  {"ctx": 8192, "parallel": 2, "kv": "q8_0",
   "devices": [{"device": "host", "weights": 500000, "cache": 2000000, "compute": 300000, "total": 2800000}]}])";

class Card : public ::testing::Test {
  protected:
    StoredResult result(const std::string& name, const std::string& content) const {
        write_file_atomically(folder_ / name, content);
        return StoredResult::read(folder_ / name, name);
    }
    CardSources everything() const {
        return {result("tiny.facts.json", facts_json),
                result("tiny.results.json", results_json),
                result("tiny.findings.json", findings_json),
                result("tiny.serving.json", serving_json),
                {result("arc.summary.json", summary_json), result("kld.json", text_json),
                 result("speed.json", speed_json), result("memory.json", memory_json)}};
    }

    testing::TemporaryFolder folder_;
};

struct Link {
    std::string text, file, pointer;
};

/// A number as the card writes it, and how far it may be from the stored one.
struct Written {
    double value = 0.0, unit = 1.0, step = 1.0;
};

Written read_figure(const std::string& text) {
    Written written;
    std::size_t end = 0;
    written.value = std::stod(text, &end);
    const auto rest = text.substr(end);
    static const std::map<std::string, double> units = {{"", 1.0},    {" %", 0.01}, {" B", 1.0},  {" kB", 1e3},
                                                        {" MB", 1e6}, {" GB", 1e9}, {" TB", 1e12}};
    EXPECT_TRUE(units.contains(rest)) << text;
    written.unit = units.contains(rest) ? units.at(rest) : 1.0;
    const auto digits = text.substr(0, std::min(end, text.find('e')));
    const auto point = digits.find('.');
    written.step = point == std::string::npos ? 1.0 : std::pow(10.0, -static_cast<double>(digits.size() - point - 1));
    if (const auto exponent = text.find('e'); exponent != std::string::npos)
        written.step *= std::pow(10.0, std::stod(text.substr(exponent + 1)));
    return written;
}

std::string body_of(const std::string& card) {
    const auto end = card.find("\n---\n", 4);
    return card.substr(end + 5);
}

/// Takes the links out of a card and returns what is left of it without code.
std::string without_links(std::string body, std::vector<Link>& links) {
    body = std::regex_replace(body, std::regex("```[\\s\\S]*?```"), "");
    const std::regex link(R"(\[([^\]]*)\]\(([^)#]*)#?([^)]*)\))");
    for (std::sregex_iterator i(body.begin(), body.end(), link), end; i != end; ++i)
        links.push_back({(*i)[1], (*i)[2], std::regex_replace((*i)[3].str(), std::regex("%20"), " ")});
    body = std::regex_replace(body, link, "");
    return std::regex_replace(body, std::regex("`[^`]*`"), "");
}

TEST_F(Card, every_number_is_a_link_to_the_stored_value) {
    std::vector<Link> links;
    const auto rest = without_links(body_of(write_card(everything())), links);
    EXPECT_EQ(rest.find_first_of("0123456789"), std::string::npos) << rest;
    EXPECT_GT(links.size(), 60U);
    std::size_t figures = 0;
    for (const auto& link : links) {
        if (link.pointer.empty()) {
            EXPECT_TRUE(std::filesystem::exists(folder_ / link.file)) << link.file;
            continue;
        }
        const auto whole = json::parse(read_file(folder_ / link.file));
        const json::json_pointer pointer(link.pointer);
        ASSERT_TRUE(whole.contains(pointer)) << link.file << link.pointer;
        const auto written = read_figure(link.text);
        EXPECT_NEAR(written.value * written.unit, whole.at(pointer).get<double>(), 0.51 * written.step * written.unit)
            << link.text << " is not " << link.file << link.pointer;
        ++figures;
    }
    EXPECT_GT(figures, 50U);
}

TEST_F(Card, says_everything_that_is_stored) {
    const auto card = write_card(everything());
    for (const auto* text : {"## Usage",
                             "llama-server --model tiny-4.5bpw.gguf",
                             "ollama create",
                             "## Against the stock presets",
                             "replayed |",
                             "predicted from its tensors |",
                             "predicted: at least so much |",
                             "## Benchmarks",
                             "`acc_norm`",
                             "## Score corrections",
                             "`boxed answers`",
                             "## Speed",
                             "## Memory by context",
                             "## How it was made",
                             "`attn_q` × [5]",
                             "## What was found",
                             "`blk.0.attn_v.weight`",
                             "`whole recipes`",
                             "## How to reproduce it",
                             "cerebellum publish tiny-f16.gguf",
                             "`00ff`",
                             "`cd34`",
                             "## Hardware",
                             "`Some GPU 5`",
                             "## Limitations"})
        EXPECT_THAT(card, HasSubstr(text));
}

TEST_F(Card, without_stored_results_there_is_no_section_and_no_number) {
    auto sources = everything();
    sources.results.reset();
    sources.findings.reset();
    sources.serving.reset();
    sources.evaluations.clear();
    const auto card = write_card(sources);
    for (const auto* text : {"KLD", "perplexity", "## Benchmarks", "## Speed", "## Memory", "## What was found",
                             "## Usage", "model-index"})
        EXPECT_THAT(card, Not(HasSubstr(text))) << text;
    EXPECT_THAT(card, HasSubstr("No benchmark was run"));
}

TEST_F(Card, changes_with_the_stored_result) {
    auto changed = std::string(results_json);
    changed.replace(changed.find("0.01276"), 7, "0.09876");
    auto sources = everything();
    sources.results = result("tiny.results.json", changed);
    const auto card = write_card(sources);
    EXPECT_THAT(card, HasSubstr("[0.09876](tiny.results.json#/files/2/kld/mean)"));
    EXPECT_THAT(card, Not(HasSubstr("0.01276")));
}

TEST_F(Card, front_matter_has_the_published_fields) {
    const auto yaml = YAML::Load(front_matter(everything()));
    EXPECT_EQ(yaml["license"].as<std::string>(), "apache-2.0");
    EXPECT_FALSE(yaml["license_name"].IsDefined());
    EXPECT_EQ(yaml["base_model"][0].as<std::string>(), "org/tiny");
    EXPECT_EQ(yaml["base_model_relation"].as<std::string>(), "quantized");
    EXPECT_EQ(yaml["quantized_by"].as<std::string>(), "me");
    EXPECT_EQ(yaml["language"][0].as<std::string>(), "en");
    EXPECT_EQ(yaml["tags"][1].as<std::string>(), "x:y");
    EXPECT_EQ(yaml["library_name"].as<std::string>(), "gguf");
    const auto index = yaml["model-index"][0];
    EXPECT_EQ(index["name"].as<std::string>(), "tiny-4.5bpw");
    std::map<std::string, double> metrics;
    for (const auto& result : index["results"]) {
        EXPECT_EQ(result["task"]["type"].as<std::string>(), "text-generation");
        EXPECT_TRUE(result["dataset"]["type"].IsScalar() && result["dataset"]["name"].IsScalar());
        EXPECT_TRUE(result["source"]["name"].IsScalar() && result["source"]["url"].IsScalar());
        ASSERT_EQ(result["metrics"].size(), 1U);
        metrics[result["dataset"]["type"].as<std::string>() + " " + result["metrics"][0]["type"].as<std::string>()] =
            result["metrics"][0]["value"].as<double>();
    }
    const std::map<std::string, double> expected = {{"self-sampled-seed-1 kl_divergence", 0.01276},
                                                    {"self-sampled-seed-1 perplexity", 20.875},
                                                    {"self-sampled-seed-1 same_top_token", 0.9034},
                                                    {"allenai/ai2_arc acc_norm", 0.4125},
                                                    {"wiki-test-raw perplexity", 31.5},
                                                    {"wiki-test-raw kl_divergence", 0.0151},
                                                    {"wiki-test-raw same_top_token", 0.89}};
    EXPECT_EQ(metrics, expected);
}

TEST_F(Card, licences_that_the_hub_does_not_list_get_a_name) {
    auto facts = json::parse(facts_json);
    facts["card"]["license"] = "My own: licence 1.0";
    facts["card"]["license_link"] = "LICENSE";
    auto sources = everything();
    sources.facts = result("tiny.facts.json", facts.dump());
    const auto yaml = YAML::Load(front_matter(sources));
    EXPECT_EQ(yaml["license"].as<std::string>(), "other");
    EXPECT_EQ(yaml["license_name"].as<std::string>(), "my-own-licence-1-0");
    EXPECT_EQ(yaml["license_link"].as<std::string>(), "LICENSE");
}

TEST_F(Card, text_from_files_cannot_break_out_of_its_place) {
    auto facts = json::parse(facts_json);
    facts["name"] = "a `b` | c\nd";
    facts["card"]["quantized_by"] = "me\n---\nlicense: none";
    auto sources = everything();
    sources.facts = result("tiny.facts.json", facts.dump());
    const auto card = write_card(sources);
    EXPECT_THAT(card, HasSubstr("# `` a `b` \\| c d ``\n"));
    const auto yaml = YAML::Load(front_matter(sources));
    EXPECT_EQ(yaml["license"].as<std::string>(), "apache-2.0");
    EXPECT_EQ(yaml["quantized_by"].as<std::string>(), "me\n---\nlicense: none");
}

TEST_F(Card, words_numbers_and_dates_of_older_yaml_stay_text) {
    auto facts = json::parse(facts_json);
    const std::vector<std::string> words = {
        "no",    "On", "NULL", "~",  "y",   "1e3", "0o14",  "0x1F", "012",  "1:30", "2020-01-02", ".inf",
        "1_000", "=",  "<<",   "-",  "",    " a",  "a ",    "a: b", "a #b", "{a}",  "&a",         "*a",
        "!a",    "|",  "%a",   "@a", "`a`", "'a'", "\"a\"", "a\tb", "[a]",  "true", "no way"};
    facts["card"]["tags"] = words;
    facts["card"]["language"] = {"no"};
    auto sources = everything();
    sources.facts = result("tiny.facts.json", facts.dump());
    const auto text = front_matter(sources);
    EXPECT_EQ(YAML::Load(text)["tags"].as<std::vector<std::string>>(), words);
    EXPECT_THAT(text, HasSubstr("  - \"no\"\n"));
    EXPECT_THAT(text, HasSubstr("  - no way\n"));
    for (std::size_t i = 0; i + 1 < words.size(); ++i) EXPECT_THAT(text, Not(HasSubstr("  - " + words[i] + "\n")));
}

TEST_F(Card, a_small_number_is_one_in_older_yaml_too) {
    auto results = json::parse(results_json);
    results["files"][2]["kld"]["mean"] = 1e-5;
    auto sources = everything();
    sources.results = result("tiny.results.json", results.dump());
    EXPECT_THAT(front_matter(sources), HasSubstr("value: 1.0e-05\n"));
}

TEST_F(Card, links_lead_to_files_of_any_name) {
    auto sources = everything();
    const std::string name = "50% of (it) #1.json";
    write_file_atomically(folder_ / name, results_json);
    sources.results = StoredResult::read(folder_ / name, name);
    const auto card = write_card(sources);
    EXPECT_THAT(card, HasSubstr("](50%25%20of%20%28it%29%20%231.json#/files/2/kld/mean)"));
    EXPECT_THAT(card, HasSubstr("url: \"50%25%20of%20%28it%29%20%231.json#/files/2/kld/mean\"\n"));
    EXPECT_THAT(card, Not(HasSubstr("](50% of")));
}

TEST_F(Card, claims_only_what_the_records_of_the_file_show) {
    auto sources = everything();
    const auto measured = HasSubstr("was measured inside the running model");
    EXPECT_THAT(write_card(sources), measured);
    auto results = json::parse(results_json);
    results["delivered"] = "Q4_K_M";
    results["delivered_kind"] = "preset";
    sources.results = result("tiny.results.json", results.dump());
    EXPECT_THAT(write_card(sources), ::testing::AllOf(Not(measured), HasSubstr("types of the stock mix `Q4_K_M`")));
    sources.results.reset();
    EXPECT_THAT(write_card(sources), ::testing::AllOf(Not(measured), Not(HasSubstr("made with Cerebellum"))));
    auto facts = json::parse(facts_json);
    facts["written_by"] = "0.1.0";
    sources.facts = result("tiny.facts.json", facts.dump());
    EXPECT_THAT(write_card(sources), ::testing::AllOf(Not(measured), HasSubstr("written by Cerebellum `0.1.0`")));
}

TEST_F(Card, what_is_no_stored_result_is_refused) {
    for (const auto* content : {"{}", "[]", "{\"files\": []}", "{\"format\": \"something\"}"})
        EXPECT_THROW(kind_of(result("x.json", content)), Error) << content;
    EXPECT_THROW(result("x.json", "no JSON"), Error);
    EXPECT_THROW(result("x.json", "7"), Error);
    EXPECT_THROW(StoredResult::read(folder_ / "nothing.json", "nothing.json"), Error);
}

TEST_F(Card, values_of_another_kind_are_errors_that_name_their_place) {
    auto sources = everything();
    auto results = json::parse(results_json);
    results["files"][2]["kld"]["mean"] = "much";
    sources.results = result("tiny.results.json", results.dump());
    try {
        write_card(sources);
        FAIL() << "accepted";
    } catch (const Error& error) {
        EXPECT_THAT(error.what(), HasSubstr("tiny.results.json#/files/2/kld/mean"));
    }
}

TEST(StoredResultTest, pointers_are_those_of_the_standard) {
    const testing::TemporaryFolder folder;
    write_file_atomically(folder / "a.json", R"({"a/b": {"m~n": [1, 2.5, null]}})");
    const auto result = StoredResult::read(folder / "a.json", "a.json");
    const auto pointer = "/" + pointer_part("a/b") + "/" + pointer_part("m~n");
    EXPECT_EQ(result.size(pointer), 3U);
    EXPECT_DOUBLE_EQ(result.at(pointer + "/1").number(), 2.5);
    EXPECT_EQ(result.at(pointer + "/1").link(), "a.json#/a~1b/m~0n/1");
    EXPECT_FALSE(result.has(pointer + "/2"));
    EXPECT_FALSE(result.has(pointer + "/3"));
    EXPECT_THROW(result.at("/nothing"), Error);
    EXPECT_THROW(result.at(pointer + "/0").text(), Error);
}

}  // namespace
}  // namespace cerebellum
