// Measuring sequentially and explaining, with the real executable on the embedded model.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>

#include "cerebellum/journal/journal.h"
#include "tests/e2e/program.h"

namespace cerebellum {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;
using testing::run_program;
using testing::small_model;
using testing::TemporaryFolder;

namespace fs = std::filesystem;

class Statistics : public ::testing::Test {
  protected:
    Statistics() { write_file_atomically(text(), testing::some_text()); }

    fs::path text() const { return work_ / "text.txt"; }
    std::string journal(const std::string& name) const { return (work_ / name).string(); }

    testing::ProgramResult ablate(const std::string& name, std::vector<std::string> more) {
        std::vector<std::string> arguments = {"ablate",    small_model().string(),
                                              "--text",    text().string(),
                                              "--tokens",  "512",
                                              "--ctx",     "64",
                                              "--types",   "q2_K,q4_K,q6_K,q8_0",
                                              "--tensors", "blk.0.*",
                                              "--threads", "1",
                                              "--journal", journal(name),
                                              "--json"};
        arguments.insert(arguments.end(), more.begin(), more.end());
        return run_program(arguments, work_.path(), std::chrono::seconds(400));
    }

    /// Rows but for how long they took.
    static std::vector<Measurement> rows_of(const std::string& path) {
        auto rows = Journal::open_existing(path).measurements();
        for (auto& row : rows) row.wall_s = 0.0;
        return rows;
    }

    TemporaryFolder work_;
};

TEST_F(Statistics, sequential_measuring_gives_the_same_journal_every_time_and_fewer_tokens) {
    const std::vector<std::string> sequential = {"--sequential", "--size", "15.3bpw"};
    const auto first = ablate("first.db", sequential);
    ASSERT_EQ(first.code, 0) << first.errors;
    EXPECT_THAT(first.errors, HasSubstr("% of the"));
    ASSERT_EQ(ablate("second.db", sequential).code, 0);
    EXPECT_EQ(rows_of(journal("first.db")), rows_of(journal("second.db")));
    const auto rows = rows_of(journal("first.db"));
    ASSERT_EQ(ablate("second.db", sequential).code, 0);  // nothing is left to do
    EXPECT_EQ(rows_of(journal("second.db")), rows);

    // The fixed design extends the same journal to what it would have come to by itself.
    ASSERT_EQ(ablate("second.db", {}).code, 0);
    ASSERT_EQ(ablate("fixed.db", {}).code, 0);
    std::size_t some = 0, all = 0;
    for (const auto& row : rows) some += row.windows();
    for (const auto& row : rows_of(journal("fixed.db"))) all += row.windows();
    EXPECT_LT(some, all);
    // It may have replayed anchors on more windows than the fixed design asks for.
    for (const auto& row : rows_of(journal("fixed.db"))) {
        auto other = Journal::open_existing(journal("second.db")).find(row.tensor, row.type, row.tier);
        ASSERT_TRUE(other.has_value()) << row.tensor << " " << row.type;
        ASSERT_GE(other->windows(), row.windows()) << row.tensor << " " << row.type;
        other->wall_s = 0.0;
        for (auto* sums : {&other->counts, &other->kld, &other->delta_nll, &other->top1_agree})
            if (!sums->empty()) sums->resize(row.windows());
        for (auto* sums : {&other->local_energy, &other->local_counts})
            if (!sums->empty()) sums->resize(row.local_counts.size());
        EXPECT_TRUE(*other == row) << row.tensor << " " << row.type;
    }
}

TEST_F(Statistics, explain_tells_tier_error_and_class) {
    ASSERT_EQ(ablate("j.db", {}).code, 0);
    const auto result = run_program({"explain", "blk.0.ffn_*", "--journal", journal("j.db"), "--json"}, work_.path());
    ASSERT_EQ(result.code, 0) << result.errors;
    const auto tensors = nlohmann::json::parse(result.output);
    ASSERT_EQ(tensors.size(), 3U);
    for (const auto& tensor : tensors) {
        EXPECT_THAT(tensor.at("class").at("name"), AnyOf("sacred", "sensitive", "safe", "demotable"));
        EXPECT_EQ(tensor.at("class").at("type"), "q2_K");
        EXPECT_EQ(tensor.at("class").at("windows"), 4);  // anchors see half of the eight
        ASSERT_EQ(tensor.at("curve").size(), 4U);
        double before = 1e9;
        for (const auto& point : tensor.at("curve")) {
            EXPECT_THAT(point.at("tier"), AnyOf("fast", "full"));
            EXPECT_GT(point.at("kld_error").get<double>(), 0.0);
            EXPECT_LE(point.at("band_95").at(0).get<double>(), point.at("curve_kld").get<double>());
            EXPECT_GE(point.at("band_95").at(1).get<double>(), point.at("curve_kld").get<double>());
            if (point.at("on_curve").get<bool>()) {
                EXPECT_LE(point.at("curve_kld").get<double>(), before);
                before = point.at("curve_kld").get<double>();
            }
        }
    }
    const auto text = run_program({"explain", "blk.0.ffn_up.weight", "--journal", journal("j.db")}, work_.path());
    EXPECT_EQ(text.code, 0);
    for (const auto* word : {"blk.0.ffn_up.weight", "crushed to q2_K", "share", "fast", "full", "±"})
        EXPECT_THAT(text.output, HasSubstr(word));
}

TEST_F(Statistics, wrong_use_is_refused_in_one_line) {
    const auto refused = [&](std::vector<std::string> arguments, int code, const std::string& part) {
        const auto result = run_program(arguments, work_.path());
        EXPECT_EQ(result.code, code) << result.errors;
        EXPECT_THAT(result.errors, HasSubstr(part));
        EXPECT_EQ(std::ranges::count(result.errors, '\n'), 1) << result.errors;
        EXPECT_EQ(result.output, "");
    };
    refused({"explain", "*", "--journal", journal("none.db")}, 1, "no such file");
    refused({"explain", "*"}, 2, "--journal");
    refused({"ablate", small_model().string(), "--sequential"}, 2, "--size");
    refused({"ablate", small_model().string(), "--size", "3bpw"}, 2, "--sequential");
    EXPECT_FALSE(fs::exists("wikicode-6.8M-f16.cerebellum.db"));
    ASSERT_EQ(ablate("j.db", {}).code, 0);
    refused({"explain", "blk.99.*", "--journal", journal("j.db")}, 2, "blk.99.*");
    refused({"explain", "*", "--bits", "0", "--journal", journal("j.db")}, 2, "--bits");
}

}  // namespace
}  // namespace cerebellum
