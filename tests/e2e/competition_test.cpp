// Which stock mixes are replayed to be compared with ours, on the embedded model, small.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "cerebellum/core/file.h"
#include "cerebellum/core/quant_type.h"
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

/// The size of Q2_K_S, which IQ2_M, a little smaller, is much better than.
constexpr auto budget = "2895040";

class Competition : public ::testing::Test {
  protected:
    static void SetUpTestSuite() {
        shared_ = new TemporaryFolder();
        write_file_atomically(*shared_ / "text.txt", testing::some_text());
        auto arguments = with_settings({"ablate", small_model().string(), "-q", "--json"}, *shared_ / "measured.db");
        const auto result = run_program(arguments, shared_->path(), std::chrono::minutes(8));
        ASSERT_EQ(result.code, 0) << result.errors;
    }
    static void TearDownTestSuite() {
        delete shared_;
        shared_ = nullptr;
    }
    static std::vector<std::string> with_settings(std::vector<std::string> arguments, const fs::path& journal) {
        arguments.insert(
            arguments.end(),
            {"--text", (*shared_ / "text.txt").string(), "--ctx", "32", "--tokens", "256", "--threads", "1", "--types",
             "iq2_xxs,iq2_xs,iq2_s,q2_K,iq3_s,q4_K,q5_K,q6_K", "--journal", journal.string()});
        return arguments;
    }

    fs::path path(const std::string& name) const { return work_ / name; }
    /// The measurements, and nothing that was made of them.
    fs::path copy_of_journal(const std::string& name) const {
        fs::copy_file(*shared_ / "measured.db", path(name));
        return path(name);
    }
    testing::ProgramResult run(const std::string& output, const fs::path& journal,
                               const std::vector<std::string>& more) const {
        auto arguments =
            with_settings({"quantize", small_model().string(), "--size", budget, "-o", path(output).string()}, journal);
        arguments.insert(arguments.end(), more.begin(), more.end());
        return run_program(arguments, work_.path(), std::chrono::minutes(8));
    }
    json quantize(const std::string& output, const fs::path& journal, std::vector<std::string> more = {}) const {
        more.emplace_back("--json");
        const auto result = run(output, journal, more);
        EXPECT_EQ(result.code, 0) << result.errors;
        return json::parse(result.output);
    }

    static TemporaryFolder* shared_;
    TemporaryFolder work_;
};

TemporaryFolder* Competition::shared_ = nullptr;

std::map<std::string, json> by_name(const json& results) {
    std::map<std::string, json> rows;
    for (const auto& row : results.at("files")) rows[row.at("name")] = row;
    return rows;
}

std::size_t count(const json& results, const char* how) {
    return static_cast<std::size_t>(
        std::ranges::count_if(results.at("files"), [&](const json& row) { return row.at("measured_by") == how; }));
}

double selection_kld(const json& row) {
    return row.at("selection_kld").at("mean");
}

/// Its time is shared by windows.
void expect_one_replay_of_both_texts(const Journal& journal) {
    const auto per_window = [](const MixMeasurement& mix) {
        return mix.wall_s / static_cast<double>(mix.counts.size());
    };
    std::size_t contenders = 0;
    for (const auto& mix : journal.mixes("test")) {
        const auto selection = journal.find_mix("selection", mix.types);
        ASSERT_TRUE(selection.has_value());
        EXPECT_NEAR(per_window(mix), per_window(*selection), 1e-9 * per_window(mix));
        ++contenders;
    }
    EXPECT_GE(contenders, 2U);
}

TEST_F(Competition, replays_fewer_mixes_than_all_and_delivers_the_same_file) {
    const auto journal = copy_of_journal("journal.db");
    const auto results = quantize("few.gguf", journal);
    const auto replayed = Journal::open_existing(journal).mixes("selection").size();
    expect_one_replay_of_both_texts(Journal::open_existing(journal));
    const auto all = quantize("all.gguf", journal, {"--compare", "all"});
    EXPECT_GT(Journal::open_existing(journal).mixes("selection").size(), replayed);
    EXPECT_TRUE(read_file(path("few.gguf")) == read_file(path("all.gguf")));
    EXPECT_EQ(results.at("choice").at("compare"), "auto");
    EXPECT_EQ(all.at("choice").at("compare"), "all");

    EXPECT_GE(count(results, "predicted"), 2U);
    EXPECT_EQ(count(all, "predicted"), 0U);
    const auto rows = by_name(all);
    const double delivered = selection_kld(rows.at(results.at("delivered")));
    ASSERT_EQ(results.at("files").size(), all.at("files").size());
    for (const auto& row : results.at("files")) {
        const auto& other = rows.at(row.at("name"));
        if (row.at("measured_by") != "predicted") {
            EXPECT_EQ(row.at("kld"), other.at("kld")) << row.at("name");
            continue;
        }
        EXPECT_TRUE(row.at("fits").get<bool>());
        EXPECT_GT(selection_kld(other), delivered) << row.at("name");
        EXPECT_EQ(row.at("kld"), row.at("predicted_kld"));
        for (const auto* key : {"perplexity", "delta_nll", "top1_agree", "tokens"})
            EXPECT_TRUE(row.at(key).is_null()) << key;
        if (!row.contains("predicted_at_least")) {
            EXPECT_LT(std::fabs(row.at("kld").at("mean").get<double>() - selection_kld(other)),
                      3.0 * row.at("kld").at("error").get<double>())
                << row.at("name");
        }
    }
    const auto by_likelihood = quantize("nll.gguf", journal, {"--objective", "nll"});
    EXPECT_EQ(count(by_likelihood, "predicted"), 0U) << "nothing calibrated is known of another objective";
    // In the table, and in what is made of the results.
    const auto printed = run("few.gguf", journal, {"--force", "--report", path("page.html").string()});
    EXPECT_EQ(printed.code, 0) << printed.errors;
    EXPECT_THAT(printed.output, HasSubstr("predicted\n"));
    EXPECT_THAT(printed.output, HasSubstr("'predicted': cannot be the best"));
    EXPECT_THAT(printed.errors, HasSubstr("stock mixes are not replayed"));
    const auto card =
        run_program({"card", path("few.gguf").string(), "--journal", journal.string(), "--force"}, work_.path());
    EXPECT_EQ(card.code, 0) << card.errors;
}

/// Every tensor's smallest type seems to do a thousandth of the damage that it does.
void spoil(const fs::path& path) {
    const auto identity = Journal::open_existing(path).identity();
    auto journal = Journal::open(path, identity);
    for (auto m : journal.measurements()) {
        if (m.type != "iq2_xxs") continue;
        for (auto* sums : {&m.kld, &m.local_energy})
            for (auto& value : *sums) value *= 1e-3;
        journal.record(m);
    }
}

TEST_F(Competition, is_never_worse_where_what_is_predicted_is_wrong) {
    const auto journal = copy_of_journal("spoilt.db");
    spoil(journal);
    const auto results = quantize("few.gguf", journal);
    const auto rows = by_name(results);
    // Our recipe, all in that type, is bad now, and not even the nearest stock mix is the best: a third one is.
    EXPECT_EQ(results.at("delivered"), "IQ2_M");
    EXPECT_LT(selection_kld(rows.at("IQ2_M")), selection_kld(rows.at("Q2_K_S")));
    EXPECT_LT(selection_kld(rows.at("IQ2_M")), selection_kld(rows.at("cerebellum")));
    EXPECT_GT(rows.at("IQ2_M").at("predicted_kld").at("mean").get<double>(), 3.0 * selection_kld(rows.at("cerebellum")))
        << "by its prediction alone it would have been left out";
    const auto all = quantize("all.gguf", journal, {"--compare", "all"});
    EXPECT_EQ(all.at("delivered"), results.at("delivered"));
    EXPECT_TRUE(read_file(path("few.gguf")) == read_file(path("all.gguf")));
}

TEST_F(Competition, a_bad_value_is_refused) {
    const auto result = run("x.gguf", path("none.db"), {"--compare", "some"});
    EXPECT_EQ(result.code, 2);
    EXPECT_THAT(result.errors, HasSubstr("--compare"));
    EXPECT_FALSE(fs::exists(path("x.gguf")));
}

}  // namespace
}  // namespace cerebellum
