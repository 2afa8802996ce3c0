// Searching around a recipe, and comparing with every uniform mix where no preset fits, on the embedded model, small.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "cerebellum/build/recipe.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/journal/journal.h"
#include "tests/e2e/program.h"

namespace cerebellum {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using ::testing::HasSubstr;
using testing::run_program;
using testing::small_model;
using testing::TemporaryFolder;

class Search : public ::testing::Test {
  protected:
    Search() { write_file_atomically(work_ / "text.txt", testing::some_text()); }

    std::string path(const std::string& name) const { return (work_ / name).string(); }

    std::vector<std::string> quantize(const std::string& output, const std::string& tokens,
                                      const std::vector<std::string>& more) const {
        std::vector<std::string> arguments = {"quantize",
                                              small_model().string(),
                                              "-o",
                                              path(output),
                                              "--force",
                                              "--text",
                                              path("text.txt"),
                                              "--ctx",
                                              "64",
                                              "--tokens",
                                              tokens,
                                              "--threads",
                                              "1",
                                              "--json"};
        arguments.insert(arguments.end(), more.begin(), more.end());
        return arguments;
    }
    json succeed(const std::vector<std::string>& arguments) const {
        const auto result = run_program(arguments, work_.path(), std::chrono::minutes(20));
        EXPECT_EQ(result.code, 0) << result.errors;
        return json::parse(result.output);
    }
    std::vector<MixMeasurement> mixes(std::string_view part) const {
        return Journal::open_existing(path("wikicode-6.8M-f16.cerebellum.db")).mixes(part);
    }

    TemporaryFolder work_;
};

TEST_F(Search, is_refused_where_it_makes_no_sense) {
    const auto refused = [&](const std::string& tokens, const std::vector<std::string>& more, const char* message) {
        auto arguments = quantize("x.gguf", tokens, more);
        arguments.insert(arguments.end(), {"--journal", path(tokens + ".db")});
        const auto result = run_program(arguments, work_.path());
        EXPECT_EQ(result.code, 2) << result.errors;
        EXPECT_THAT(result.errors, HasSubstr(message));
        EXPECT_FALSE(fs::exists(path("x.gguf")));
    };
    for (const auto* time : {"10", "m", "-5m", "0s", "10 minutes", "nanm"})
        refused("128", {"--size", "3MB", fmt::format("--search={}", time)}, "write it as 90s, 10m or 1h");
    refused("128", {"--size", "3MB", "--search", "1m", "--objective", "nll"}, "--objective kld only");
    refused("128", {"--max-kld", "0.1", "--search", "1m"}, "goes with a size");
    refused("64", {"--size", "3MB", "--search", "1m"}, "raise --tokens to at least 128");
}

class SearchSlow : public Search {};

TEST_F(SearchSlow, keeps_the_budget_and_goes_on_where_the_time_was_up) {
    constexpr std::uint64_t budget = 3'700'000;
    const std::vector<std::string> common = {"--size", std::to_string(budget), "--types", "q2_K,q3_K,q4_K,q6_K"};
    const auto with_search = [&](const char* time) {
        auto more = common;
        more.insert(more.end(), {"--search", time});
        return succeed(quantize("small.gguf", "256", more));
    };
    // The clock stops it before its first trial.
    const auto none = with_search("0.000001s");
    EXPECT_EQ(none.at("search").at("explored"), 0);
    EXPECT_FALSE(none.at("search").at("exhausted"));
    EXPECT_TRUE(mixes("search").empty());
    const auto searched = with_search("20s");
    const auto& search = searched.at("search");
    EXPECT_GE(search.at("explored"), 12);
    EXPECT_EQ(search.at("explore_windows"), 4);
    EXPECT_EQ(search.at("confirm_windows"), 8);
    const auto& steps = search.at("steps");
    const auto accepted = static_cast<std::size_t>(
        std::ranges::count_if(steps, [](const json& step) { return step.at("accepted").get<bool>(); }));
    const auto explored = search.at("explored").get<std::size_t>();
    EXPECT_GE(mixes("search").size(), explored + 1) << "and the recipe itself";
    EXPECT_LE(mixes("search").size(), explored + 1 + accepted) << "and those that it has become";
    for (const auto& mix : mixes("search")) EXPECT_EQ(mix.counts.size(), 4U);
    double tests_here = 0.0;
    for (const auto& step : steps) {
        ++tests_here;
        EXPECT_LE(step.at("file_bytes"), budget);
        EXPECT_DOUBLE_EQ(step.at("level").get<double>(), 0.05 / (tests_here * (tests_here + 1.0)));
        EXPECT_EQ(step.at("accepted").get<bool>(), step.at("p").get<double>() <= step.at("level").get<double>());
        if (step.at("accepted")) tests_here = 0.0;
    }
    EXPECT_LE(fs::file_size(path("small.gguf")), budget);
    EXPECT_EQ(fs::file_size(path("small.gguf")), searched.at("file_bytes"));
    const auto recipe = read_recipe(path("small.recipe.json"));
    const auto file = GgufFile::open(path("small.gguf"));
    for (const auto& [name, type] : recipe.types) EXPECT_EQ(file.find(name)->type, type) << name;
    EXPECT_EQ(recipe.provenance.contains("search"), accepted > 0 && searched.at("delivered") == "cerebellum");

    // Again: what was done is not done again, and a longer search begins with the same steps.
    const auto again = with_search("40s");
    ASSERT_GE(again.at("search").at("steps").size(), steps.size());
    for (std::size_t i = 0; i < steps.size(); ++i) EXPECT_EQ(again.at("search").at("steps")[i], steps[i]);
    EXPECT_GE(again.at("search").at("explored"), search.at("explored"));
}

TEST_F(SearchSlow, compares_with_the_best_of_all_uniform_mixes_where_no_preset_fits) {
    // The smallest preset has 2.18 MB.
    const std::vector<std::string> more = {"--size", "2.05MB", "--types", "iq2_xxs,q2_K,q3_K"};
    const auto results = succeed(quantize("tiny.gguf", "512", more));
    std::size_t uniform = 0;
    for (const auto& file : results.at("files")) {
        if (file.at("kind") == "preset") {
            EXPECT_FALSE(file.at("fits").get<bool>());
        }
        if (file.at("kind") != "pure") continue;
        ++uniform;
        EXPECT_LE(file.at("bytes"), 2'050'000);
    }
    EXPECT_GE(uniform, 3U);
    EXPECT_LE(fs::file_size(path("tiny.gguf")), 2'050'000U);

    // Many on one of the four windows, fewer on two, few on all; those of the table are the best on what they had.
    std::map<std::size_t, std::size_t> by_windows;
    std::map<std::size_t, double> best;
    for (const auto& mix : mixes("selection")) {
        if (mix.kind != "contender") continue;
        ++by_windows[mix.counts.size()];
        const double cost = mix.kld.front();
        const auto [entry, is_new] = best.emplace(mix.counts.size(), cost);
        if (!is_new) entry->second = std::min(entry->second, cost);
    }
    EXPECT_GE(by_windows.at(1), 10U);
    EXPECT_GT(by_windows.at(1), by_windows.at(2));
    EXPECT_GT(by_windows.at(2) + 5, by_windows.at(4));
    EXPECT_LE(best.at(4), best.at(1)) << "whoever stayed behind was worse";

    const auto again = succeed(quantize("tiny.gguf", "512", more));
    EXPECT_EQ(again.at("files"), results.at("files")) << "from the journal";
}

}  // namespace
}  // namespace cerebellum
