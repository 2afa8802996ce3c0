// Error feedback from the measurement to the file, on the embedded model.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "cerebellum/build/recipe.h"
#include "cerebellum/core/file.h"
#include "cerebellum/gguf/gguf_file.h"
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

}  // namespace
}  // namespace cerebellum
