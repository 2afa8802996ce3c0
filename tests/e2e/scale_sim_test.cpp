// bench/scale_sim: what can be said of its answers without believing them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/e2e/program.h"

namespace cerebellum {
namespace {

namespace fs = std::filesystem;
using testing::ProgramResult;
using testing::TemporaryFolder;

ProgramResult run(std::vector<std::string> command) {
    const TemporaryFolder folder;
    return testing::Program(command, folder.path()).wait();
}

nlohmann::json simulate(const std::vector<std::string>& more) {
    std::vector<std::string> command = {CEREBELLUM_SCALE_SIM,
                                        "--gguf",
                                        CEREBELLUM_SOURCE_DIR "/models/wikicode-6.8M-f16.gguf",
                                        "--json",
                                        "--quantize-rate",
                                        "1e6",
                                        "--pass",
                                        "0.1",
                                        "--windows",
                                        "8",
                                        "--runs",
                                        "5"};
    command.insert(command.end(), more.begin(), more.end());
    const auto result = run(command);
    EXPECT_EQ(result.code, 0) << result.errors;
    return nlohmann::json::parse(result.output);
}

TEST(ScaleSim, one_rank_takes_as_long_as_the_work_and_more_never_less_than_their_share) {
    const auto one = simulate({"--ranks", "1", "--stragglers", "0", "--startup", "0"});
    const double work_s = one.at("work_s"), source_s = one.at("source_s");
    // Estimates are off by a tenth at most, and the source itself is replayed twice on top.
    EXPECT_NEAR(one.at("wall_s").get<double>(), work_s + 2.0 * source_s, 0.05 * work_s);
    const auto four = simulate({"--ranks", "4", "--stragglers", "0", "--startup", "0"});
    EXPECT_GT(four.at("wall_s").get<double>(), 0.95 * work_s / 4.0);
    EXPECT_GT(four.at("efficiency").get<double>(), 0.8);
}

TEST(ScaleSim, everything_that_is_not_measuring_counts_against_the_ranks) {
    const auto ideal = simulate({"--ranks", "4", "--stragglers", "0", "--startup", "0"});
    const auto late = simulate({"--ranks", "4", "--stragglers", "0", "--startup", "10"});
    EXPECT_NEAR(late.at("wall_s").get<double>(), ideal.at("wall_s").get<double>() + 10.0, 1.0);
    const auto slow = simulate({"--ranks", "4", "--stragglers", "0.5", "--straggler-pace", "0.5", "--startup", "0"});
    EXPECT_GT(slow.at("wall_s").get<double>(), ideal.at("wall_s").get<double>() * 1.25);
    // What has died with a rank is done by others.
    const auto dead = simulate({"--ranks", "4", "--stragglers", "0", "--startup", "0", "--failures", "1"});
    EXPECT_GT(dead.at("wall_s").get<double>(), ideal.at("wall_s").get<double>());
}

TEST(ScaleSim, the_27b_on_64_ranks_with_stragglers) {
    const fs::path names =
        fs::path(CEREBELLUM_SOURCE_DIR).parent_path() / "shared/data/sensitivity/thireus/Qwen3.5-27B/kld_results.csv";
    if (!fs::exists(names)) GTEST_SKIP() << "the list of tensors is not there: " << names;
    const auto result = run({"bash", CEREBELLUM_SOURCE_DIR "/bench/scale_27b.sh", names.string(), CEREBELLUM_SCALE_SIM,
                             "--startup", "0", "--at-least", "0.9"});
    EXPECT_EQ(result.code, 0) << result.output << result.errors;
}

}  // namespace
}  // namespace cerebellum
