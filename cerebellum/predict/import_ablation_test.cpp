#include "cerebellum/predict/import_ablation.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "cerebellum/predict/import_support_test.h"

namespace cerebellum {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using testing::error_of;
using ::testing::HasSubstr;

class Ablation : public testing::ImportTest {
  protected:
    std::string refused(const std::string& content) const {
        return error_of([&] { read_ablation(write("a.json", content), "q2_K"); });
    }
};

constexpr auto two_tests = R"({"baseline_ppl": 8.0, "tests": {
  "layer_0.up": {"ppl": 8.4, "gguf_tensor": "blk.0.ffn_up.weight"},
  "layer_1.up": {"ppl": 7.9, "gguf_tensor": "blk.1.ffn_up"}}})";

TEST_F(Ablation, gives_the_loss_of_log_likelihood) {
    const auto table = read_ablation(write("a.json", two_tests), "q3_K");
    ASSERT_EQ(table.rows.size(), 2U);
    EXPECT_EQ(table.metric, Metric::nll);
    EXPECT_TRUE(table.is_crush_sweep);
    EXPECT_EQ(table.rows[0].tensor, "blk.0.ffn_up.weight");
    EXPECT_EQ(table.rows[0].type, "q3_K");
    EXPECT_NEAR(table.rows[0].delta_nll, std::log(8.4) - std::log(8.0), 1e-12);
    EXPECT_EQ(table.rows[1].tensor, "blk.1.ffn_up.weight");
    EXPECT_LT(table.rows[1].delta_nll, 0.0);
    EXPECT_THAT(table.notes, ElementsAre(HasSubstr("q3_K")));
}

TEST_F(Ablation, of_several_texts_is_their_mean) {
    const auto table = read_ablation(write("a.json", R"({"baseline_ppl": {"wiki": 8, "code": 2}, "tests": {
        "t": {"ppl": {"wiki": 8.8, "code": 3}, "gguf_tensor": "a.weight"}}})"),
                                     "q2_K");
    EXPECT_NEAR(table.rows.front().delta_nll, (std::log(1.1) + std::log(1.5)) / 2, 1e-12);
    EXPECT_THAT(refused(R"({"baseline_ppl": {"wiki": 8, "code": 2}, "tests": {
        "t": {"ppl": {"wiki": 8.8}, "gguf_tensor": "a.weight"}}})"),
                AllOf(HasSubstr("'t'"), HasSubstr("same texts")));
}

TEST_F(Ablation, is_refused_as_a_whole_and_the_test_named) {
    EXPECT_THAT(refused(R"({"tests": {"t": {"ppl": 3, "gguf_tensor": "a.weight"}}})"), HasSubstr("baseline_ppl"));
    EXPECT_THAT(refused(R"({"baseline_ppl": 8, "tests": {}})"), HasSubstr("no tests"));
    EXPECT_THAT(refused(R"({"baseline_ppl": 8})"), HasSubstr("no tests"));
    EXPECT_THAT(refused(R"({"baseline_ppl": 0, "tests": {"t": {"ppl": 3, "gguf_tensor": "a.weight"}}})"),
                HasSubstr("baseline_ppl is 0"));
    EXPECT_THAT(refused(R"({"baseline_ppl": 8, "tests": {"t1": {"ppl": 9, "gguf_tensor": "a.weight"},
                                                         "t2": {"gguf_tensor": "b.weight"}}})"),
                AllOf(HasSubstr("'t2'"), HasSubstr("no ppl")));
    EXPECT_THAT(refused(R"({"baseline_ppl": 8, "tests": {"t": {"ppl": 9}}})"),
                AllOf(HasSubstr("'t'"), HasSubstr("no gguf_tensor")));
    EXPECT_THAT(refused(R"({"baseline_ppl": 8, "tests": {"t": {"ppl": "9", "gguf_tensor": "a.weight"}}})"),
                AllOf(HasSubstr("'t'"), HasSubstr("no number")));
    EXPECT_THAT(refused(R"({"baseline_ppl": 8, "tests": {"t": {"ppl": -1, "gguf_tensor": "a.weight"}}})"),
                AllOf(HasSubstr("'t'"), HasSubstr("more than 0")));
    EXPECT_THAT(refused(R"({"baseline_ppl": 8, "tests": {"t": {"ppl": 9, "gguf_tensor": "a", "type": "q9_Z"}}})"),
                AllOf(HasSubstr("'t'"), HasSubstr("q9_Z")));
    EXPECT_THAT(refused(R"({"baseline_ppl": 8, "tests": {"t": {"ppl": 9, "gguf_tensor": "a", "kld": -0.1}}})"),
                AllOf(HasSubstr("'t'"), HasSubstr("below 0")));
    EXPECT_THAT(refused("[1, 2]"), HasSubstr("object"));
}

TEST_F(Ablation, with_nan_is_refused_by_line_and_test) {
    const auto line = refused(
        "{\"baseline_ppl\": 8, \"tests\": {\n\"t1\": {\"ppl\": 9, \"gguf_tensor\": \"a\"},\n"
        "\"t2\": {\"ppl\": NaN, \"gguf_tensor\": \"b\"}}}");
    EXPECT_THAT(line, AllOf(HasSubstr("line 3"), HasSubstr("'t2'")));
}

TEST_F(Ablation, with_a_number_beyond_all_numbers_is_refused) {
    EXPECT_THAT(refused(R"({"baseline_ppl": 1e999999, "tests": {}})"), HasSubstr("beyond all numbers"));
}

TEST_F(Ablation, nested_too_deeply_is_refused) {
    std::string deep;
    for (int i = 0; i < 200'000; ++i) deep += "{\"a\":[";
    EXPECT_THAT(refused(deep), HasSubstr("nested more than 200 deep"));
    // The name is looked for in any text in front of the problem.
    EXPECT_THAT(refused("{\"t9\": {" + std::string(30'000, ' ') + "\"x"), HasSubstr("line 1: "));
    EXPECT_THAT(refused("{\"t9\"\n :\n {" + std::string(3'000, ' ') + "\"x"), HasSubstr("'t9'"));
}

TEST_F(Ablation, with_a_test_or_a_tensor_twice_is_refused) {
    EXPECT_THAT(refused(R"({"baseline_ppl": 8, "tests": {"t": {"ppl": 9, "gguf_tensor": "a"},
                                                         "t": {"ppl": 9, "gguf_tensor": "b"}}})"),
                HasSubstr("'t' is there twice"));
    const auto same = refused(R"({"baseline_ppl": 8, "tests": {"t1": {"ppl": 9, "gguf_tensor": "a"},
                                                               "t2": {"ppl": 9, "gguf_tensor": "a.weight"}}})");
    EXPECT_THAT(same, AllOf(HasSubstr("'t1'"), HasSubstr("'t2'"), HasSubstr("a.weight")));
    EXPECT_THAT(same, ::testing::Not(HasSubstr("contradict")));
    EXPECT_THAT(refused(R"({"baseline_ppl": 8, "tests": {"t1": {"ppl": 9, "gguf_tensor": "a"},
                                                         "t2": {"ppl": 10, "gguf_tensor": "a"}}})"),
                HasSubstr("contradict"));
}

TEST_F(Ablation, with_a_model_that_cannot_be_is_refused) {
    const auto with_model = [&](const std::string& tensors) {
        return refused(R"({"baseline_ppl": 8, "tests": {"t": {"ppl": 9, "gguf_tensor": "a.weight"}}, "model":
            {"name": "m", "fingerprint": "f", "fixed_bytes": 100, "tensors": {)" +
                       tensors + "}}}");
    };
    EXPECT_THAT(with_model(R"("b.weight": {"shape": [256, 4], "type": "q4_K", "source_type": "f16"})"),
                AllOf(HasSubstr("'t'"), HasSubstr("a.weight")));
    EXPECT_THAT(with_model(R"("a.weight": {"shape": [256, -4], "type": "q4_K", "source_type": "f16"})"),
                HasSubstr("impossible"));
    EXPECT_THAT(with_model(R"("a.weight": {"shape": [9223372036854775807, 4], "type": "f16", "source_type": "f16"})"),
                HasSubstr("impossible"));
    EXPECT_THAT(with_model(R"("a.weight": {"shape": [64, 4], "type": "q4_K", "source_type": "f16"})"),
                HasSubstr("do not fit"));
    EXPECT_THAT(with_model(R"("a.weight": {"shape": [64, 4], "type": "q99", "source_type": "f16"})"),
                HasSubstr("no type q99"));
}

TEST_F(Ablation, plans_are_lists_of_names) {
    EXPECT_THAT(
        read_ablation_plan(write("p.json", R"({"tensors": [{"name": "a"}, {"name": "x", "gguf_tensor": "b"}]})")),
        ElementsAre("a", "b"));
    EXPECT_THAT(read_ablation_plan(write("p.json", R"(["c", "d"])")), ElementsAre("c", "d"));
    const auto refused_plan = [&](const std::string& content) {
        return error_of([&] { read_ablation_plan(write("p.json", content)); });
    };
    EXPECT_THAT(refused_plan(R"({"tensors": []})"), HasSubstr("no tensors"));
    EXPECT_THAT(refused_plan(R"({"tests": []})"), HasSubstr("'tensors'"));
    EXPECT_THAT(refused_plan(R"([{"name": "a"}, {"layer": 3}])"), HasSubstr("entry 2"));
    EXPECT_THAT(refused_plan(R"(["a", "b", "a"])"), AllOf(HasSubstr("entry 3"), HasSubstr("again")));
    EXPECT_THAT(refused_plan(R"(["a")"), HasSubstr("valid JSON"));
}

}  // namespace
}  // namespace cerebellum
