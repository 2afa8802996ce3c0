// A sweep in parts: shards on machines that know nothing of each other, and merging what they leave behind.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "cerebellum/journal/journal.h"
#include "tests/e2e/program.h"

namespace cerebellum {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::run_program;
using testing::small_model;
using testing::TemporaryFolder;

namespace fs = std::filesystem;

class Shards : public ::testing::Test {
  protected:
    Shards() { write_file_atomically(work_ / "text.txt", testing::some_text()); }

    std::string journal(const std::string& name) const { return (work_ / name).string(); }

    testing::ProgramResult ablate(const std::string& name, const std::vector<std::string>& more,
                                  const std::string& tokens = "128") const {
        std::vector<std::string> arguments = {"ablate",    small_model().string(),
                                              "--text",    (work_ / "text.txt").string(),
                                              "--tokens",  tokens,
                                              "--ctx",     "64",
                                              "--types",   "q2_K,q4_0",
                                              "--threads", "1",
                                              "--journal", journal(name),
                                              "--json"};
        arguments.insert(arguments.end(), more.begin(), more.end());
        return run_program(arguments, work_.path(), std::chrono::seconds(400));
    }
    testing::ProgramResult merge(const std::string& output, const std::vector<std::string>& inputs) const {
        std::vector<std::string> arguments = {"journal", "merge", "--json", journal(output)};
        for (const auto& input : inputs) arguments.push_back(journal(input));
        return run_program(arguments, work_.path());
    }
    std::string digest(const std::string& name) const {
        const auto shown = run_program({"journal", "show", "--json", journal(name)}, work_.path());
        EXPECT_EQ(shown.code, 0) << shown.errors;
        return nlohmann::json::parse(shown.output).at("sha256");
    }

    TemporaryFolder work_;
};

TEST_F(Shards, merged_are_the_journal_of_one_machine) {
    ASSERT_EQ(ablate("whole.db", {}).code, 0);
    const auto prepared = ablate("prepared.db", {"--prepare"});
    ASSERT_EQ(prepared.code, 0) << prepared.errors;
    EXPECT_GT(nlohmann::json::parse(prepared.output).at("parts"), 30);
    EXPECT_TRUE(Journal::open_existing(journal("prepared.db")).measurements().empty());
    std::vector<std::string> names;
    for (const auto* shard : {"1", "2", "3"}) {
        names.push_back(std::string("shard-") + shard + ".db");
        // One of them makes text and importance matrix by itself.
        if (names.size() != 2) fs::copy(journal("prepared.db"), journal(names.back()));
        const auto result = ablate(names.back(), {"--shard", std::string(shard) + "/3"});
        ASSERT_EQ(result.code, 0) << result.errors;
        EXPECT_FALSE(Journal::open_existing(journal(names.back())).measurements().empty());
    }
    const auto merged = merge("merged.db", names);
    ASSERT_EQ(merged.code, 0) << merged.errors;
    for (const auto& one : nlohmann::json::parse(merged.output).at("merged")) EXPECT_EQ(one.at("duplicate"), 0);
    EXPECT_EQ(digest("merged.db"), digest("whole.db"));
    EXPECT_NE(digest("merged.db"), digest("shard-1.db"));
    // It is a journal like any other: nothing is left to measure, and recipes come from it.
    const auto again = ablate("merged.db", {});
    EXPECT_THAT(again.errors, HasSubstr("0 fast and 0 full measurements"));
    EXPECT_EQ(run_program({"allocate", small_model().string(), "--size", "8bpw", "--journal", journal("merged.db"),
                           "-o", (work_ / "recipe.json").string()},
                          work_.path())
                  .code,
              0);
}

TEST_F(Shards, of_other_settings_are_not_merged) {
    ASSERT_EQ(ablate("a.db", {"--prepare"}).code, 0);
    ASSERT_EQ(ablate("b.db", {"--prepare"}, "192").code, 0);
    const auto result = merge("merged.db", {"a.db", "b.db"});
    EXPECT_EQ(result.code, 1);
    EXPECT_THAT(result.errors, AllOf(HasSubstr("tokens = \"192\""), HasSubstr("\"128\"")));
    EXPECT_FALSE(fs::exists(journal("merged.db")));
}

TEST_F(Shards, that_make_no_sense_are_refused) {
    for (const auto* shard : {"0/3", "4/3", "1", "a/b", "1/3x", "/", "-1/3"}) {
        const auto result = ablate("j.db", {"--shard", shard});
        EXPECT_EQ(result.code, 2) << shard;
        EXPECT_THAT(result.errors, HasSubstr("3/16")) << shard;
    }
    EXPECT_EQ(ablate("j.db", {"--shard", "1/2", "--sequential", "--size", "8bpw"}).code, 2);
    EXPECT_EQ(ablate("j.db", {"--shard", "1/2", "--crush", "q2_K"}).code, 2);
    EXPECT_FALSE(fs::exists(journal("j.db")));
}

}  // namespace
}  // namespace cerebellum
