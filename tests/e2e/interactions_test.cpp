// What changes do together, predictions that are calibrated by it, domains and rounds, on the embedded model, small.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "cerebellum/build/recipe.h"
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

class Interactions : public ::testing::Test {
  protected:
    Interactions() {
        write_file_atomically(work_ / "text.txt", testing::some_text());
        std::string code;
        for (const auto* name : {"cerebellum/sweep/runner.cpp", "cerebellum/journal/journal.cpp"})
            code += read_file(fs::path(CEREBELLUM_SOURCE_DIR) / name);
        write_file_atomically(work_ / "code.txt", code);
    }

    std::string path(const std::string& name) const { return (work_ / name).string(); }

    std::vector<std::string> command(std::vector<std::string> arguments, const std::string& journal,
                                     const std::string& tokens = "128") const {
        arguments.insert(arguments.begin() + 1, small_model().string());
        arguments.insert(arguments.end(),
                         {"--journal", path(journal), "--ctx", "64", "--tokens", tokens, "--threads", "1"});
        return arguments;
    }
    std::vector<std::string> plain(std::vector<std::string> arguments, const std::string& journal,
                                   const std::string& tokens = "128") const {
        arguments.insert(arguments.end(), {"--text", path("text.txt")});
        return command(std::move(arguments), journal, tokens);
    }
    std::string succeed(const std::vector<std::string>& arguments) const {
        const auto result = run_program(arguments, work_.path(), std::chrono::minutes(8));
        EXPECT_EQ(result.code, 0) << arguments.front() << ": " << result.errors;
        return result.output;
    }
    json allocate(const std::string& journal, std::vector<std::string> more = {}) const {
        std::vector<std::string> arguments = {
            "allocate",  small_model().string(), "--size", "3.7MB", "-o", path("r.json"), "--force",
            "--journal", path(journal),          "--json"};
        arguments.insert(arguments.end(), more.begin(), more.end());
        return json::parse(succeed(arguments));
    }

    TemporaryFolder work_;
};

TEST_F(Interactions, are_those_of_whole_files_and_of_their_parts) {
    const auto run = [&](const std::string& journal, const std::string& how) {
        return json::parse(
            succeed(plain({"interactions", "--measure", "pairs,layers,ladders", "--bits", "2.6", "--tensors",
                           "blk.[23].ffn_*", "--types", "q2_K", "--pair-layers", "1", "--json", how},
                          journal)));
    };
    const auto replayed = run("replayed.db", "--full");
    const auto rows = replayed.at("interactions");
    std::map<std::string, int> kinds;
    for (const auto& row : rows) ++kinds[row.at("kind")];
    EXPECT_EQ(kinds["pair"], 3);    // of three tensors
    EXPECT_EQ(kinds["layer"], 2);   // two blocks
    EXPECT_EQ(kinds["ladder"], 3);  // 2, 4, 6
    for (const auto& row : rows) {
        const double whole = row.at("kld").at("mean"), parts = row.at("sum_of_parts_kld");
        EXPECT_GT(whole, 0.0);
        EXPECT_NEAR(row.at("ratio").at("mean").get<double>(), whole / parts, 1e-9);
        EXPECT_GT(row.at("ratio").at("error").get<double>(), 0.0);
    }
    // The parts are what a sweep in full says of them.
    std::map<std::string, double> alone;
    for (const auto& row : json::parse(succeed(
             plain({"ablate", "--tensors", "blk.[23].ffn_*", "--types", "q2_K", "--full", "--json"}, "replayed.db"))))
        alone[row.at("tensor")] = row.at("kld");
    for (const auto& row : rows) {
        double sum = 0.0;
        for (const auto& [tensor, type] : row.at("types").items()) sum += alone.at(tensor);
        EXPECT_NEAR(row.at("sum_of_parts_kld").get<double>(), sum, 1e-9 * sum);
    }
    EXPECT_EQ(run("replayed.db", "--full"), replayed) << "from the journal";

    const auto through_files = run("files.db", "--no-replay").at("interactions");
    ASSERT_EQ(through_files.size(), rows.size());
    for (std::size_t i = 0; i < rows.size(); ++i) {
        EXPECT_EQ(rows[i].at("types"), through_files[i].at("types"));
        const double kld = through_files[i].at("kld").at("mean");
        EXPECT_NEAR(rows[i].at("kld").at("mean").get<double>(), kld, 1e-9 * kld) << rows[i].at("name");
    }
}

TEST_F(Interactions, of_whole_recipes_calibrate_predictions) {
    const std::vector<std::string> types = {"--types", "q2_K,q4_K,q6_K"};
    auto ablate = plain({"ablate"}, "j.db");
    ablate.insert(ablate.end(), types.begin(), types.end());
    succeed(ablate);
    EXPECT_FALSE(allocate("j.db").at("provenance").contains("calibrated_kld"));
    auto measure = plain({"interactions", "--measure", "recipes", "--sizes", "3.3MB,4.4MB,1kB", "--json"}, "j.db");
    measure.insert(measure.end(), types.begin(), types.end());
    const auto recipes = json::parse(succeed(measure)).at("recipes");
    ASSERT_EQ(recipes.size(), 2U) << "a recipe of 1 kB is impossible";
    const auto recipe = allocate("j.db");
    const double sum = recipe.at("predicted_kld"),
                 calibrated = std::stod(recipe.at("provenance").at("calibrated_kld").get<std::string>());
    EXPECT_GT(std::stod(recipe.at("provenance").at("calibrated_kld_error").get<std::string>()), 0.0);
    // Between two points the ratio lies between theirs.
    const double low = std::min(recipes[0].at("ratio").get<double>(), recipes[1].at("ratio").get<double>());
    const double high = std::max(recipes[0].at("ratio").get<double>(), recipes[1].at("ratio").get<double>());
    EXPECT_GE(calibrated / sum, 0.9999 * low);
    EXPECT_LE(calibrated / sum, 1.0001 * high);
    // At a calibrating recipe itself the prediction is what was measured.
    succeed(
        {"allocate", small_model().string(), "--size", "3.3MB", "-o", path("same.json"), "--journal", path("j.db")});
    const auto same = read_recipe(path("same.json"));
    EXPECT_NEAR(std::stod(same.provenance.at("calibrated_kld")), recipes[0].at("kld").at("mean").get<double>(),
                1e-4 * same.predicted_kld);
}

TEST_F(Interactions, domains_count_as_the_profile_has_it_without_measuring_again) {
    const std::vector<std::string> labelled = {"--text", "prose=" + path("text.txt"), "--text",
                                               "code=" + path("code.txt")};
    auto ablate = command({"ablate", "--types", "q2_K,q4_K", "--json"}, "d.db", "256");
    ablate.insert(ablate.end(), labelled.begin(), labelled.end());
    succeed(ablate);
    const auto prose = allocate("d.db", {"--profile", "prose=1"}), code = allocate("d.db", {"--profile", "code=1"}),
               half = allocate("d.db", {"--profile", "balanced"}), as_measured = allocate("d.db");
    EXPECT_NE(prose.at("predicted_kld"), code.at("predicted_kld"));
    EXPECT_EQ(prose.at("provenance").at("profile"), "prose=1");
    // Both domains have the same number of windows.
    EXPECT_NEAR(half.at("predicted_kld").get<double>(), as_measured.at("predicted_kld").get<double>(), 1e-9);
    const auto refused = [&](const std::vector<std::string>& arguments, const std::string& message) {
        const auto result = run_program(arguments, work_.path());
        EXPECT_EQ(result.code, 2) << result.errors;
        EXPECT_THAT(result.errors, HasSubstr(message));
    };
    refused({"allocate", small_model().string(), "--size", "3.7MB", "-o", path("x.json"), "--journal", path("d.db"),
             "--profile", "poetry"},
            "code, prose");
    EXPECT_FALSE(fs::exists(path("x.json")));
    refused(command({"ablate", "--text", "prose=" + path("text.txt"), "--text", path("code.txt")}, "x.db"),
            "all texts or none");
    refused(command({"ablate", "--text", "a=" + path("text.txt"), "--text", "b=" + path("code.txt")}, "x.db", "128"),
            "raise --tokens");
    for (const auto* objective : {"nll", "top1"}) {
        const auto recipe = allocate("d.db", {"--objective", objective});
        EXPECT_EQ(recipe.at("provenance").at("objective"), objective);
        EXPECT_LE(recipe.at("file_bytes"), 3'700'000);
        EXPECT_GE(recipe.at("predicted_kld").get<double>(), as_measured.at("predicted_kld").get<double>() - 1e-12)
            << "a recipe for another objective cannot have less KLD than the one for it";
    }
}

class InteractionsSlow : public Interactions {};

TEST_F(InteractionsSlow, rounds_measure_around_the_recipe) {
    const auto results = json::parse(succeed(plain({"quantize", "--size", "3.7MB", "-o", path("small.gguf"), "--types",
                                                    "q2_K,q4_K,q6_K", "--rounds", "1", "--json"},
                                                   "r.db")));
    ASSERT_EQ(results.at("rounds").size(), 1U);
    const auto& round = results.at("rounds")[0];
    EXPECT_GE(round.at("tried").get<int>(), 40);
    if (round.at("taken")) {
        EXPECT_GT(round.at("kld_gain").at("mean").get<double>(), 0.0);
    }
    EXPECT_LE(fs::file_size(path("small.gguf")), 3'700'000U);
    EXPECT_EQ(fs::file_size(path("small.gguf")), results.at("file_bytes"));
    const auto& calibrated = results.at("calibrated_kld");
    EXPECT_GT(calibrated.at("mean").get<double>(), 0.0);
    // Trials are whole mixes, measured on the text of the single damages.
    std::size_t trials = 0;
    for (const auto& mix : Journal::open_existing(path("r.db")).mixes("measured"))
        trials += mix.kind == "trial" ? 1 : 0;
    EXPECT_GE(trials, round.at("tried").get<std::size_t>());
}

}  // namespace
}  // namespace cerebellum
