#include "cerebellum/evaluate/audit_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/evaluate/eval_summary.h"
#include "cerebellum/gguf/gguf_support_test.h"

namespace cerebellum {
namespace {

using nlohmann::json;
using testing::error_of;
using ::testing::HasSubstr;

json record(int id, bool right, const std::string& parsed = "A", const std::string& raw = "A") {
    return {{"id", std::to_string(id)}, {"prompt_sha256", "p" + std::to_string(id)}, {"raw", raw}, {"parsed", parsed},
            {"correct", right},         {"metrics", {{"acc", right ? 1.0 : 0.0}}}};
}

class AuditLogTest : public ::testing::Test {
  protected:
    std::filesystem::path path() const { return folder_ / "log.jsonl"; }
    testing::TemporaryFolder folder_;
    json header_ = {{"benchmark", "arc"}, {"questions", 3}};
};

TEST_F(AuditLogTest, goes_on_behind_the_last_whole_line) {
    {
        AuditLog log(path(), header_);
        log.append(record(1, true));
        log.append(record(2, false));
    }
    const auto whole = read_file(path());
    for (std::size_t cut = 1; cut < 60; cut += 7) {
        write_file_atomically(path(), whole.substr(0, whole.size() - cut));  // killed while writing the second record
        AuditLog log(path(), header_);
        EXPECT_TRUE(log.has("1"));
        EXPECT_FALSE(log.has("2"));
        log.append(record(2, false));
        EXPECT_EQ(read_file(path()), whole);
    }
    write_file_atomically(path(), whole.substr(0, 10));  // killed in the header
    AuditLog log(path(), header_);
    EXPECT_FALSE(log.has("1"));
}

TEST_F(AuditLogTest, refuses_another_run_s_answers) {
    { const AuditLog log(path(), header_); }
    auto other = header_;
    other["questions"] = 4;
    EXPECT_THAT(error_of([&] { const AuditLog log(path(), other); }), HasSubstr("questions is 3 and now it is 4"));
    write_file_atomically(path(), "some text\n");
    EXPECT_THAT(error_of([&] { const AuditLog log(path(), header_); }), HasSubstr("log.jsonl:1"));
    EXPECT_EQ(read_file(path()), "some text\n");
}

TEST_F(AuditLogTest, has_one_writer) {
    const AuditLog first(path(), header_);
    EXPECT_THAT(error_of([&] { const AuditLog second(path(), header_); }), HasSubstr("another run"));
}

TEST(EvalSummary, counts_what_is_missing_and_what_was_not_understood) {
    AuditFile log{{{"questions", 400}}, {}};
    for (int i = 0; i < 399; ++i) log.records.push_back(record(i, i % 2 == 0));
    EXPECT_THAT(error_of([&] { make_summary(log); }), HasSubstr("399 of 400"));
    log.records.push_back(record(399, true));
    const auto summary = make_summary(log);
    EXPECT_DOUBLE_EQ(summary["metrics"]["acc"]["score"], 201.0 / 400.0);
    log.records[0] = record(0, false, "", "I cannot say");
    log.records[1] = record(1, false, "", " \n");
    EXPECT_EQ(make_summary(log)["unparsed"], 1);
    EXPECT_EQ(make_summary(log)["empty"], 1);
    log.records[2] = record(2, false, "", "no idea");
    EXPECT_THAT(error_of([&] { make_summary(log); }), HasSubstr("3 of 400"));
}

TEST(EvalSummary, compares_question_by_question) {
    AuditFile first{{}, {}}, second{{}, {}};
    for (int i = 0; i < 10; ++i) {
        first.records.push_back(record(i, i < 8));
        second.records.push_back(record(i, i >= 6));
    }
    second.records.pop_back();
    const auto paired = compare_metrics(first, second).at("acc");
    EXPECT_EQ(paired.questions, 9);
    EXPECT_EQ(paired.only_first, 6);
    EXPECT_EQ(paired.only_second, 1);
    EXPECT_NEAR(paired.p, 2.0 * 8.0 / 128.0, 1e-12);
    second.records[3]["prompt_sha256"] = "another";
    EXPECT_THAT(error_of([&] { compare_metrics(first, second); }), HasSubstr("different words"));
}

TEST(Audit, finds_the_same_wrong_answer_again_and_again) {
    AuditFile log{{}, {}};
    for (int i = 0; i < 4; ++i) log.records.push_back(record(i, false, "B", "The answer is always B."));
    for (int i = 4; i < 6; ++i) log.records.push_back(record(i, false, "C", "The answer is C."));
    const auto findings = audit(log);
    ASSERT_EQ(findings.identical_wrong.size(), 1U);
    EXPECT_EQ(findings.identical_wrong.begin()->second.size(), 4U);
}

}  // namespace
}  // namespace cerebellum
