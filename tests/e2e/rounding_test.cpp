// Error feedback from the measurement to the file, on the embedded model.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "cerebellum/build/build_gguf.h"
#include "cerebellum/build/recipe.h"
#include "cerebellum/core/file.h"
#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/report/html_report.h"
#include "tests/e2e/program.h"

namespace cerebellum {
namespace {

using ::testing::HasSubstr;
using testing::run_program;
using testing::small_model;
using testing::TemporaryFolder;

class RoundingJob : public ::testing::Test {
  protected:
    RoundingJob() { write_file_atomically(work_ / "text.txt", testing::some_text()); }

    std::string path(const std::string& name) const { return (work_ / name).string(); }
    testing::ProgramResult run(const std::vector<std::string>& arguments) const {
        return run_program(arguments, work_.path(), std::chrono::minutes(8));
    }
    std::string succeed(const std::vector<std::string>& arguments) const {
        const auto result = run(arguments);
        EXPECT_EQ(result.code, 0) << arguments.front() << ": " << result.errors;
        return result.output;
    }
    nlohmann::json ablate(const std::string& rounding) const {
        return nlohmann::json::parse(succeed({"ablate",     small_model().string(),
                                              "--journal",  path("j.db"),
                                              "--types",    "q2_K,iq2_s,q4_0",
                                              "--tensors",  "blk.[01].*",
                                              "--rounding", rounding,
                                              "--text",     path("text.txt"),
                                              "--ctx",      "64",
                                              "--tokens",   "256",
                                              "--threads",  "1",
                                              "-q",         "--json"}));
    }

    TemporaryFolder work_;
};

TEST_F(RoundingJob, measures_both_roundings_and_builds_what_the_recipe_says_on_any_number_of_threads) {
    const auto plain = ablate("ggml");
    const auto both = ablate("auto");
    EXPECT_EQ(both.size(), plain.size() / 3 * 5);  // IQ2_S has no feedback
    double sum_plain = 0.0, sum_feedback = 0.0;
    for (const auto& row : both) {
        if (row.at("type") == "q2_K") sum_plain += row.at("kld").get<double>();
        if (row.at("type") == "q2_K+feedback") sum_feedback += row.at("kld").get<double>();
        EXPECT_NE(row.at("type"), "iq2_s+feedback");
    }
    EXPECT_LT(sum_feedback, sum_plain);

    succeed({"allocate", small_model().string(), "--journal", path("j.db"), "--size", "13MB", "-o", path("r.json")});
    const auto recipe = read_recipe(path("r.json"));
    EXPECT_TRUE(std::ranges::any_of(recipe.types,
                                    [](const auto& entry) { return entry.second.rounding == Rounding::feedback; }));
    const auto build = [&](const std::string& out, const std::string& threads) {
        return std::vector<std::string>{
            "build",     small_model().string(), "--recipe", path("r.json"), "--imatrix", path("r.imatrix.gguf"),
            "--moments", path("j.db.moments"),   "-o",       path(out),      "--threads", threads,
            "-q"};
    };
    succeed(build("one.gguf", "1"));
    succeed(build("three.gguf", "3"));
    EXPECT_EQ(read_file(path("one.gguf")), read_file(path("three.gguf")));

    // The page allocates from what 'allocate' does.
    const auto choices_of_page = [&](std::vector<std::string> more) {
        more.insert(more.begin(),
                    {"report", small_model().string(), "--journal", path("j.db"), "-o", path("page.html"), "--force"});
        succeed(more);
        const auto page = read_file(path("page.html"));
        const auto begin = page.find(R"("choices":")");
        return begin == std::string::npos ? "" : page.substr(begin, page.find('"', begin + 11) - begin + 1);
    };
    if (has_report_page()) {
        EXPECT_EQ(choices_of_page({}), R"("choices":"")");
        EXPECT_EQ(choices_of_page({"--rounding", "ggml", "--types", "q2_K"}),
                  R"("choices":"--rounding ggml --types q2_K")");
    }

    auto without = build("none.gguf", "1");
    without.erase(without.begin() + 6, without.begin() + 8);
    const auto refused = run(without);
    EXPECT_EQ(refused.code, 1);
    EXPECT_THAT(refused.errors, HasSubstr("--moments"));
    EXPECT_FALSE(std::filesystem::exists(path("none.gguf")));

    // The same bytes with ggml's rounding alone, from the same journal, do more damage.
    succeed({"allocate", small_model().string(), "--journal", path("j.db"), "--size", "13MB", "--rounding", "ggml",
             "-o", path("plain.json")});
    const auto of_ggml = read_recipe(path("plain.json"));
    for (const auto& [name, type] : of_ggml.types) EXPECT_EQ(type.rounding, Rounding::ggml) << name;
    EXPECT_LE(recipe.predicted_kld, of_ggml.predicted_kld);
}

TEST_F(RoundingJob, refuses_what_it_does_not_know_and_what_cannot_be_replayed) {
    const auto unknown = run({"ablate", small_model().string(), "--journal", path("k.db"), "--rounding", "up"});
    EXPECT_EQ(unknown.code, 2);
    EXPECT_THAT(unknown.errors, HasSubstr("ggml, feedback or auto"));
    const auto files =
        run({"ablate", small_model().string(), "--journal", path("k.db"), "--rounding", "feedback", "--no-replay",
             "--text", path("text.txt"), "--ctx", "64", "--tokens", "64", "--threads", "1", "-q"});
    EXPECT_EQ(files.code, 2);
    EXPECT_THAT(files.errors, HasSubstr("auto or ggml"));
}

/// The embedded model with factors put into its norms and taken out of the matrices behind them: it computes the same,
/// but its matrices have columns that are out of proportion, as those of large models do.
void write_model_with_outliers(const std::filesystem::path& path) {
    const auto source = GgufFile::open(small_model());
    Recipe recipe;
    recipe.source_fingerprint = source.fingerprint();
    for (int block = 0; source.find(fmt::format("blk.{}.ffn_norm.weight", block)) != nullptr; ++block) {
        ChannelScaling scaling{fmt::format("blk.{}.ffn_norm.weight", block), {}, {}, {}};
        for (const auto* reader : {"gate", "up"})
            scaling.readers.push_back(fmt::format("blk.{}.ffn_{}.weight", block, reader));
        const auto n_channels = source.find(scaling.producer)->row_length();
        for (std::int64_t i = 0; i < n_channels; ++i)
            scaling.exponents.push_back(static_cast<std::int8_t>(i % 7 == 0 ? 3 : 0));
        recipe.scaling.push_back(std::move(scaling));
    }
    NoProgress progress;
    build_gguf(source, recipe, nullptr, path, {}, progress);
}

TEST_F(RoundingJob, finds_scales_where_columns_are_out_of_proportion_and_builds_what_the_recipe_says) {
    write_model_with_outliers(path("model.gguf"));
    const auto quantize = [&](const std::string& out, const std::string& scaling) {
        return std::vector<std::string>{
            "quantize", path("model.gguf"), "--size",    "3.5bpw", "-o",        path(out),
            "--text",   path("text.txt"),   "--ctx",     "64",     "--tokens",  "256",
            "--types",  "q2_K,q4_0",        "--threads", "1",      "--journal", path("j.db"),
            "-q",       "--scaling",        scaling};
    };
    succeed(quantize("scaled.gguf", "auto"));
    const auto results = nlohmann::json::parse(read_file(path("scaled.results.json")));
    const auto& scaling = results.at("scaling");
    EXPECT_EQ(scaling.at("delivered"), true);
    EXPECT_GT(scaling.at("kld_gain").at("mean").get<double>(), 0.0);
    std::size_t scaled = 0;
    for (const auto& finding : scaling.at("findings")) {
        const auto producer = finding.at("producer").get<std::string>();
        if (producer.find("ffn_norm") == std::string::npos) continue;
        EXPECT_LT(finding.at("judged_ratio").get<double>(), 0.7) << producer;
        ++scaled;
    }
    EXPECT_EQ(scaled, read_recipe(path("scaled.recipe.json")).scaling.size());
    EXPECT_EQ(results.at("delivered"), "cerebellum");
    // The copy of the source is gone, its figures stay.
    for (const auto& entry : std::filesystem::directory_iterator(work_.path()))
        EXPECT_FALSE(entry.path().filename().string().starts_with("j.db.scaled") &&
                     entry.path().extension() == ".gguf");

    succeed({"build", path("model.gguf"), "--recipe", path("scaled.recipe.json"), "--imatrix",
             path("scaled.imatrix.gguf"), "-o", path("again.gguf"), "--threads", "2", "-q"});
    EXPECT_EQ(read_file(path("again.gguf")), read_file(path("scaled.gguf")));

    succeed(quantize("plain.gguf", "off"));
    const auto diff = run({"recipe", "diff", path("plain.recipe.json"), path("scaled.recipe.json")});
    EXPECT_EQ(diff.code, 1);
    EXPECT_THAT(diff.output, HasSubstr("scaled channels differ: 0 and"));
    EXPECT_EQ(run({"recipe", "diff", path("scaled.recipe.json"), path("scaled.recipe.json")}).code, 0);
}

TEST_F(RoundingJob, refuses_to_search_scales_where_that_means_nothing) {
    const auto refused = [&](const std::vector<std::string>& more) {
        std::vector<std::string> arguments = {"quantize",  small_model().string(),
                                              "-o",        path("o.gguf"),
                                              "--text",    path("text.txt"),
                                              "--ctx",     "64",
                                              "--tokens",  "256",
                                              "--scaling", "auto",
                                              "-q"};
        arguments.insert(arguments.end(), {"--journal", path(more.back() + ".db")});
        arguments.insert(arguments.end(), more.begin(), more.end());
        const auto result = run(arguments);
        EXPECT_EQ(result.code, 2) << result.errors;
        return result.errors;
    };
    EXPECT_THAT(refused({"--max-kld", "0.1"}), HasSubstr("with a size only"));
    EXPECT_THAT(refused({"--size", "4bpw", "--reference", "q8_0"}), HasSubstr("without --reference"));
    EXPECT_THAT(refused({"--size", "4bpw", "--no-replay"}), HasSubstr("replayed"));
}

}  // namespace
}  // namespace cerebellum
