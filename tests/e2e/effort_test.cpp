// How long it takes, before and after, and how much is measured: --dry-run, --quick, --thorough, the times of stages.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "cerebellum/journal/journal.h"
#include "tests/e2e/program.h"

namespace cerebellum {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using ::testing::Contains;
using ::testing::HasSubstr;
using testing::run_program;
using testing::small_model;
using testing::TemporaryFolder;

class Efforts : public ::testing::Test {
  protected:
    Efforts() { write_file_atomically(work_ / "text.txt", testing::some_text()); }

    std::vector<std::string> command(std::vector<std::string> arguments) const {
        arguments.insert(arguments.end(),
                         {"--text", (work_ / "text.txt").string(), "--ctx", "64", "--tokens", "128", "--threads", "1"});
        return arguments;
    }
    std::vector<std::string> quantize(const std::vector<std::string>& more) const {
        auto arguments = command({"quantize", small_model().string(), "--size", "3.6MB", "-o",
                                  (work_ / "out.gguf").string(), "--types", "q2_K,q4_K,q6_K"});
        arguments.insert(arguments.end(), more.begin(), more.end());
        return arguments;
    }
    json succeed(const std::vector<std::string>& arguments) const {
        const auto result = run_program(arguments, work_.path(), std::chrono::minutes(8));
        EXPECT_EQ(result.code, 0) << result.errors;
        return json::parse(result.output, nullptr, false);
    }
    std::vector<std::string> files() const {
        std::vector<std::string> names;
        for (const auto& entry : fs::directory_iterator(work_.path())) {
            const auto name = entry.path().filename().string();
            if (!name.starts_with("std")) names.push_back(name);  // what the programs printed
        }
        return names;
    }
    static json stage(const json& list, const std::string& name) {
        for (const auto& entry : list)
            if (entry["name"] == name) return entry;
        ADD_FAILURE() << "no stage " << name << " in " << list.dump(1);
        return {};
    }

    TemporaryFolder work_;
};

TEST_F(Efforts, a_dry_run_says_what_there_is_to_do_and_writes_nothing) {
    const auto plan = succeed(quantize({"--dry-run", "--json"}));
    EXPECT_EQ(files(), std::vector<std::string>{"text.txt"});
    const auto measuring = stage(plan["stages"], "measuring");
    EXPECT_EQ(measuring["fast_measurements"], 42 * 3);
    EXPECT_EQ(measuring["full_measurements"], 42 * 2 + 2 * 3);  // embedding and output have no block
    EXPECT_GT(measuring["seconds"].get<double>(), 0.0);
    EXPECT_GT(stage(plan["stages"], "importance matrix")["seconds"].get<double>(), 0.0);
    double sum = 0.0;
    for (const auto& entry : plan["stages"]) sum += entry["seconds"].get<double>();
    EXPECT_NEAR(plan["seconds"].get<double>(), sum, 1e-6);
    EXPECT_EQ(plan["output_bytes"], 3'600'000);
    EXPECT_GT(plan["memory_bytes"].get<double>(), 1e7);
}

TEST_F(Efforts, a_dry_run_of_publishing_knows_of_the_search) {
    const auto seconds = [&](const std::vector<std::string>& more) {
        auto arguments = command({"publish", small_model().string(), "--size", "3.6MB", "--folder",
                                  (work_ / "out").string(), "--types", "q4_K", "--rounds", "0", "--dry-run", "--json"});
        arguments.insert(arguments.end(), more.begin(), more.end());
        return stage(succeed(arguments)["stages"], "allocating")["seconds"].get<double>();
    };
    const double without = seconds({});
    EXPECT_GT(seconds({"--search", "10h"}), without + 35'000.0);
    EXPECT_FALSE(fs::exists(work_ / "out"));
}

TEST_F(Efforts, a_dry_run_takes_off_what_the_journal_holds_and_leaves_it_alone) {
    succeed(command({"ablate", small_model().string(), "--journal", (work_ / "j.db").string(), "--types", "q2_K",
                     "--tensors", "blk.0.*", "--json"}));
    const auto before = read_file(work_ / "j.db");
    const auto plan = succeed(command({"ablate", small_model().string(), "--journal", (work_ / "j.db").string(),
                                       "--types", "q2_K,q6_K", "--tensors", "blk.0.*", "--dry-run", "--json"}));
    EXPECT_EQ(read_file(work_ / "j.db"), before);
    const auto measuring = stage(plan["stages"], "measuring");
    EXPECT_EQ(measuring["fast_measurements"], 7);
    EXPECT_EQ(measuring["in_journal"], 7 + 7);
    EXPECT_EQ(stage(plan["stages"], "importance matrix")["seconds"], 0.0);
}

TEST_F(Efforts, a_quick_run_says_so_everywhere_has_the_times_of_its_stages_and_a_journal_of_its_own) {
    const auto result = succeed(quantize({"--quick", "--json"}));
    EXPECT_EQ(result["effort"], "quick");
    EXPECT_EQ(result["label"], "rough figures: made with --quick");
    EXPECT_EQ(json::parse(read_file(work_ / "out.results.json"))["effort"], "quick");
    EXPECT_EQ(json::parse(read_file(work_ / "out.recipe.json"))["provenance"]["effort"], "quick");
    EXPECT_THAT(files(), Contains("wikicode-6.8M-f16.quick.cerebellum.db"));
    const auto journal = work_ / "wikicode-6.8M-f16.quick.cerebellum.db";
    EXPECT_EQ(Journal::open_existing(journal).identity().fields.at("effort"), "quick");

    double sum = 0.0;
    for (const auto* name : {"load and check", "importance matrix", "measuring", "allocating", "competing", "building",
                             "verifying", "writing"}) {
        const auto entry = stage(result["stages"], name);
        EXPECT_GE(entry["wall_s"].get<double>(), 0.0) << name;
        sum += entry["wall_s"].get<double>();
    }
    EXPECT_GT(sum, 0.0);
    const auto measuring = stage(result["stages"], "measuring");
    EXPECT_GT(measuring["quantize_s"].get<double>(), 0.0);
    EXPECT_GT(measuring["device_busy_s"].get<double>(), 0.0);
    EXPECT_LE(measuring["quantize_s"].get<double>() + measuring["device_busy_s"].get<double>(),
              measuring["wall_s"].get<double>() + 0.1);
    EXPECT_EQ(measuring["measured_before_s"], 0.0);

    const auto mixed = run_program(quantize({"--journal", journal.string(), "--force"}), work_.path());
    EXPECT_EQ(mixed.code, 1);
    EXPECT_THAT(mixed.errors, HasSubstr("effort"));
}

TEST_F(Efforts, quick_and_thorough_exclude_each_other) {
    const auto result = run_program(quantize({"--quick", "--thorough"}), work_.path());
    EXPECT_EQ(result.code, 2);
    EXPECT_THAT(result.errors, HasSubstr("choose one"));
    EXPECT_EQ(files(), std::vector<std::string>{"text.txt"});
}

}  // namespace
}  // namespace cerebellum
