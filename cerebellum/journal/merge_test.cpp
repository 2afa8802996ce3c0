#include "cerebellum/journal/merge.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "cerebellum/core/error.h"
#include "cerebellum/gguf/gguf_support_test.h"
#include "cerebellum/journal/journal.h"

namespace cerebellum {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::TemporaryFolder;

std::string message_of(const std::function<void()>& action) {
    try {
        action();
    } catch (const Error& error) {
        return error.what();
    }
    return "no error";
}

Measurement sample(int number, std::size_t windows = 3) {
    Measurement m;
    m.tensor = fmt::format("blk.{}.ffn_down.weight", number);
    m.type = "q4_K";
    m.tier = Tier::full;
    for (std::size_t w = 0; w < windows; ++w) {
        m.counts.push_back(255.0);
        m.kld.push_back(0.1 * static_cast<double>(w) + number);
        m.delta_nll.push_back(-0.5);
        m.top1_agree.push_back(250.0);
    }
    m.wall_s = 0.25;
    return m;
}

MixMeasurement mix(ggml_type type) {
    MixMeasurement m;
    m.types["blk.0.ffn_down.weight"] = type;
    m.part = "selection";
    m.kind = "contender";
    m.counts = m.kld = m.nll = m.reference_nll = m.top1_agree = {1.0, 2.0};
    return m;
}

class MergeJournals : public ::testing::Test {
  protected:
    fs::path path(const std::string& name) const { return folder_ / name; }
    Journal open(const std::string& name) const { return Journal::open(path(name), identity_); }
    fs::path make(const std::string& name, const std::vector<Measurement>& rows) const {
        auto journal = open(name);
        journal.put_artifact("text", "the same words");
        for (const auto& row : rows) journal.record(row);
        return path(name);
    }
    std::vector<MergedJournal> merge(const std::vector<fs::path>& inputs) const {
        return merge_journals(path("out.db"), inputs);
    }
    std::vector<Measurement> merged() const { return Journal::open_existing(path("out.db")).measurements(); }

    TemporaryFolder folder_;
    JournalIdentity identity_{{{"model", "abc"}, {"context", "512"}}};
};

TEST_F(MergeJournals, has_what_all_of_them_have) {
    const auto a = make("a.db", {sample(1), sample(4)}), b = make("b.db", {sample(2)});
    {
        auto journal = open("b.db");
        journal.put_artifact("imatrix", "weights");
        journal.put_meta("null_floor_kld", "1e-9");
        journal.record(mix(GGML_TYPE_Q4_K));
        journal.record(mix(GGML_TYPE_Q2_K));
    }
    const auto reports = merge({a, b});
    ASSERT_EQ(reports.size(), 2U);
    EXPECT_EQ(reports[0].added, 2U);
    EXPECT_EQ(reports[1].added, 3U);
    EXPECT_EQ(merged(), (std::vector<Measurement>{sample(1), sample(2), sample(4)}));
    const auto out = Journal::open_existing(path("out.db"));
    EXPECT_EQ(out.identity(), identity_);
    EXPECT_EQ(out.get_artifact("text"), "the same words");
    EXPECT_EQ(out.get_artifact("imatrix"), "weights");
    EXPECT_EQ(out.get_meta("null_floor_kld"), "1e-9");
    EXPECT_EQ(out.mixes(), (std::vector<MixMeasurement>{mix(GGML_TYPE_Q4_K), mix(GGML_TYPE_Q2_K)}));
    EXPECT_EQ(out.artifact_names(), (std::vector<std::string>{"imatrix", "text"}));
}

TEST_F(MergeJournals, keeps_one_of_two_equal_rows_and_the_longer_of_two_that_agree) {
    auto slower = sample(1);
    slower.wall_s = 9.0;
    const auto a = make("a.db", {sample(1), sample(2, 2), sample(3, 3)});
    const auto b = make("b.db", {slower, sample(2, 4), sample(3, 1)});
    const auto reports = merge({a, b});
    EXPECT_EQ(reports[1].added, 0U);
    EXPECT_EQ(reports[1].extended, 1U);
    EXPECT_EQ(reports[1].duplicate, 2U);
    EXPECT_EQ(merged(), (std::vector<Measurement>{sample(1), sample(2, 4), sample(3, 3)}));
}

TEST_F(MergeJournals, adds_to_a_journal_that_is_there) {
    const auto a = make("a.db", {sample(1)}), b = make("b.db", {sample(2), sample(3, 5)});
    make("out.db", {sample(0), sample(3, 2)});
    merge({a});
    const auto reports = merge({b});
    EXPECT_EQ(reports[0].added, 1U);
    EXPECT_EQ(reports[0].extended, 1U);
    EXPECT_EQ(merged(), (std::vector<Measurement>{sample(0), sample(1), sample(2), sample(3, 5)}));
    EXPECT_THAT(message_of([&] { merge({a, path("out.db")}); }), HasSubstr("with itself"));
}

TEST_F(MergeJournals, a_row_that_differs_is_refused_by_name_and_nothing_is_merged) {
    auto other = sample(2, 4);
    other.kld[1] += 1e-12;
    const auto a = make("a.db", {sample(2)}), b = make("b.db", {sample(5), other});
    EXPECT_THAT(message_of([&] {
                    merge({a, b});
                }),
                AllOf(HasSubstr("a.db"), HasSubstr("b.db"), HasSubstr("blk.2.ffn_down.weight"), HasSubstr("q4_K"),
                      HasSubstr("full")));
    EXPECT_FALSE(fs::exists(path("out.db")));
    make("out.db", {sample(0)});
    EXPECT_NE(message_of([&] { merge({a, b}); }), "no error");
    EXPECT_EQ(merged(), std::vector<Measurement>{sample(0)});
    // What one of them lacks in a column is a difference too.
    other = sample(2);
    other.local_energy = other.local_counts = {1.0, 2.0, 3.0};
    const auto c = make("c.db", {other});
    EXPECT_THAT(message_of([&] { merge({a, c}); }), HasSubstr("blk.2.ffn_down.weight"));
}

TEST_F(MergeJournals, what_is_unusable_in_one_is_left_out_of_all) {
    make("a.db", {sample(1)});
    make("b.db", {sample(2)});
    const UnusableFigure figure = {sample(1).tensor, sample(1).type, Tier::full, "not a finite number"};
    open("b.db").record(figure);
    merge({path("a.db"), path("b.db")});
    const auto all = Journal::open_existing(path("out.db"));
    EXPECT_EQ(all.unusable(), std::vector{figure});
    EXPECT_EQ(all.measurements(), std::vector{sample(2)});
}

TEST_F(MergeJournals, a_mix_that_differs_is_refused) {
    make("a.db", {});
    make("b.db", {});
    auto other = mix(GGML_TYPE_Q4_K);
    open("a.db").record(other);
    other.nll[0] = 7.0;
    open("b.db").record(other);
    EXPECT_THAT(message_of([&] { merge({path("a.db"), path("b.db")}); }), HasSubstr("selection"));
}

TEST_F(MergeJournals, other_settings_are_refused_by_name) {
    const auto a = make("a.db", {sample(1)});
    identity_.fields["context"] = "256";
    const auto b = make("b.db", {sample(2)});
    EXPECT_THAT(message_of([&] {
                    merge({a, b});
                }),
                AllOf(HasSubstr("context"), HasSubstr("\"512\""), HasSubstr("\"256\""), HasSubstr("b.db")));
    identity_.fields.erase("context");
    EXPECT_THAT(message_of([&] { merge({a, make("c.db", {})}); }), HasSubstr("nothing"));
    EXPECT_FALSE(fs::exists(path("out.db")));
}

TEST_F(MergeJournals, another_text_is_refused) {
    const auto a = make("a.db", {sample(1)}), b = make("b.db", {sample(2)});
    open("b.db").put_artifact("text", "other words");
    EXPECT_THAT(message_of([&] { merge({a, b}); }), AllOf(HasSubstr("'text'"), HasSubstr("--prepare")));
}

TEST_F(MergeJournals, what_is_no_journal_is_refused) {
    const auto a = make("a.db", {sample(1)});
    EXPECT_THAT(message_of([&] { merge({a, path("nothing.db")}); }), HasSubstr("nothing.db"));
    EXPECT_FALSE(fs::exists(path("out.db")));
}

TEST_F(MergeJournals, a_journal_that_is_being_written_is_not_written_to) {
    const auto a = make("a.db", {sample(1)});
    const auto busy = open("out.db");
    EXPECT_NE(message_of([&] { merge({a}); }), "no error");
    EXPECT_TRUE(merged().empty());
}

TEST_F(MergeJournals, several_writes_are_all_there_or_none) {
    auto journal = open("j.db");
    EXPECT_THROW(journal.in_one_step([&] {
        journal.record(sample(1));
        journal.put_artifact("text", "words");
        throw Error("in the middle");
    }),
                 Error);
    EXPECT_TRUE(journal.measurements().empty());
    EXPECT_FALSE(journal.get_artifact("text"));
    journal.in_one_step([&] { journal.record(sample(2)); });
    EXPECT_EQ(journal.measurements(), std::vector<Measurement>{sample(2)});
}

}  // namespace
}  // namespace cerebellum
