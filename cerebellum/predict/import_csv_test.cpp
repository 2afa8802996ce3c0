#include "cerebellum/predict/import_csv.h"

#include <cmath>

#include "cerebellum/predict/import_support_test.h"

namespace cerebellum {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using testing::error_of;
using ::testing::HasSubstr;

class DamageCsv : public testing::ImportTest {
  protected:
    DamageTable read(const std::string& content, Metric metric = Metric::kld,
                     std::optional<double> baseline = std::nullopt) const {
        return read_damage_csv(write("r.csv", content), metric, baseline);
    }
    std::string refused(const std::string& content, Metric metric = Metric::kld) const {
        return error_of([&] { read(content, metric); });
    }
};

TEST_F(DamageCsv, has_a_figure_for_every_type_and_tensor) {
    const auto table = read("QTYPE,a.weight,b.weight\r\niq1_kt,0.5,0.25\r\nq2_K,0.125,1e-3");
    ASSERT_EQ(table.rows.size(), 4U);
    EXPECT_EQ(table.rows[1].tensor, "b.weight");
    EXPECT_EQ(table.rows[1].type, "iq1_kt");
    EXPECT_EQ(table.rows[1].kld, 0.25);
    EXPECT_EQ(table.rows[3].kld, 1e-3);
    EXPECT_FALSE(table.is_crush_sweep);
}

TEST_F(DamageCsv, may_begin_with_a_byte_order_mark_and_hold_remarks) {
    const auto table = read("\xEF\xBB\xBF# measured in May\nQTYPE,a.weight\n\n # again\nq2_K,0.5 # once\n");
    ASSERT_EQ(table.rows.size(), 1U);
    EXPECT_EQ(table.rows[0].kld, 0.5);
}

TEST_F(DamageCsv, marks_failed_and_unread_ones) {
    const auto table = read("QTYPE,a,b,c,d,e\niq2_xxs,404,,404%,0.000000,0.1\n");
    EXPECT_THAT(table.missing, ElementsAre(HasSubstr("a in"), HasSubstr("b in"), HasSubstr("c in")));
    EXPECT_THAT(table.unread, ElementsAre("d"));
    ASSERT_EQ(table.rows.size(), 1U);
    EXPECT_EQ(table.rows.front().tensor, "e");
    // With many bits nothing lost is no wonder.
    EXPECT_EQ(read("QTYPE,a\nq8_0,0\n").rows.size(), 1U);
}

TEST_F(DamageCsv, of_perplexities_counts_from_the_baseline_or_the_least) {
    const std::string content = "QTYPE,a,b,c\niq1_m,8,10,404\n";
    const auto from_least = read(content, Metric::nll);
    EXPECT_EQ(from_least.rows[0].delta_nll, 0.0);
    EXPECT_NEAR(from_least.rows[1].delta_nll, std::log(1.25), 1e-12);
    EXPECT_THAT(from_least.notes, ElementsAre(HasSubstr("smallest")));
    const auto from_given = read(content, Metric::nll, 5.0);
    EXPECT_NEAR(from_given.rows[0].delta_nll, std::log(1.6), 1e-12);
    EXPECT_TRUE(from_given.notes.empty());
}

TEST_F(DamageCsv, is_refused_as_a_whole_and_the_place_named) {
    EXPECT_THAT(refused(""), HasSubstr("empty"));
    EXPECT_THAT(refused("name,a\nq2_K,1\n"), HasSubstr("QTYPE"));
    EXPECT_THAT(refused("QTYPE,a\n"), HasSubstr("no row"));
    EXPECT_THAT(refused("QTYPE,a,b,a\nq2_K,1,2,3\n"), AllOf(HasSubstr("columns 2 and 4"), HasSubstr("of a;")));
    EXPECT_THAT(refused("QTYPE,a,b\nq2_K,1,2\nQ2_K,1,2\n"), HasSubstr("rows 2 and 3"));
    EXPECT_THAT(refused("QTYPE,a,b\nq2_K,1\n"), AllOf(HasSubstr("row 2"), HasSubstr("1 values for 2")));
    EXPECT_THAT(refused("QTYPE,a,b\nq2_K,1,2\nq9_K,1,2\n"), AllOf(HasSubstr("row 3"), HasSubstr("'q9_K'")));
    EXPECT_THAT(refused("QTYPE,a,b\nq2_K,1,nan\n"),
                AllOf(HasSubstr("row 2"), HasSubstr("column 3"), HasSubstr("(b)"), HasSubstr("no number")));
    EXPECT_THAT(refused("QTYPE,a,b\nq2_K,1,inf\n"), HasSubstr("no number"));
    EXPECT_THAT(refused("QTYPE,a,b\nq2_K,x1,2\n"), AllOf(HasSubstr("column 2"), HasSubstr("(a)")));
    EXPECT_THAT(refused("QTYPE,a\nq2_K,-0.1\n"), HasSubstr("below 0"));
    EXPECT_THAT(refused("QTYPE,a\nq2_K,0\n", Metric::nll), HasSubstr("above 0"));
    EXPECT_THAT(refused("QTYPE,a\nq2_K,404\n"), HasSubstr("no measurement"));
}

TEST_F(DamageCsv, names_are_checked_against_the_model) {
    const auto table = read("QTYPE,a,b\nq2_K,1,2\n");
    check_names(
        table, [](const std::string&) { return true; }, "model.gguf");
    EXPECT_THAT(error_of([&] {
                    check_names(
                        table, [](const std::string& name) { return name == "a"; }, "model.gguf");
                }),
                AllOf(HasSubstr("row 2 (q2_K), column 3"), HasSubstr("tensor b"), HasSubstr("model.gguf")));
}

}  // namespace
}  // namespace cerebellum
