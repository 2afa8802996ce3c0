#include "cerebellum/allocate/constraints.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <map>
#include <random>

#include "cerebellum/core/quant_type.h"

namespace cerebellum {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using Kind = Constraint::Kind;

const std::vector<ggml_type> some_types = {GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q6_K, GGML_TYPE_Q4_K,
                                           GGML_TYPE_Q2_K};

/// Three blocks of a small transformer. The embedding's rows admit no K-quants; nothing else is special.
AllocationProblem small_transformer() {
    std::mt19937_64 random(1);
    AllocationProblem problem;
    problem.fixed_bytes = 1000;
    const auto add = [&](const std::string& name, const std::vector<ggml_type>& types, double weights) {
        TensorChoices tensor{name, {}};
        const double level = 0.5 + static_cast<double>(random() % 100) / 50.0;
        for (const auto type : types)
            tensor.choices.push_back({type, static_cast<std::uint64_t>(weights * bits_per_weight(type) / 8.0),
                                      type == GGML_TYPE_F16 ? 0.0 : level * std::exp2(-bits_per_weight(type))});
        problem.tensors.push_back(tensor);
    };
    add("token_embd.weight", {GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0}, 96 * 1024);
    for (int block = 0; block < 3; ++block)
        for (const char* role : {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"})
            add("blk." + std::to_string(block) + "." + role + ".weight", some_types, 64 * 1024);
    return problem;
}

constexpr std::uint64_t ample_budget = 1'500'000;

Constraint pin(const char* text) {
    return parse_rule(Kind::pin, "--pin", text);
}
Constraint floor_of(const char* text) {
    return parse_rule(Kind::floor, "--floor", text);
}
Constraint ceiling_of(const char* text) {
    return parse_rule(Kind::ceiling, "--ceiling", text);
}

std::vector<std::string> types_of(const AllocationProblem& problem, const std::string& name) {
    std::vector<std::string> types;
    for (const auto& tensor : problem.tensors)
        if (tensor.name == name)
            for (const auto& choice : tensor.choices) types.push_back(type_name(choice.type));
    return types;
}

std::string refusal(const AllocationProblem& problem, Constraints constraints,
                    std::uint64_t budget_bytes = ample_budget) {
    try {
        allocate(constrained(problem, constraints, budget_bytes), budget_bytes);
    } catch (const Error& error) {
        EXPECT_THAT(error.what(), Not(HasSubstr("\n")));
        return error.what();
    }
    ADD_FAILURE() << "not refused";
    return "";
}

TEST(Constraints, rules_filter_choices) {
    const auto problem =
        constrained(small_transformer(),
                    {{pin("token_embd=q8_0"), floor_of("attn_v=q4_K"), ceiling_of("blk.1.*=q6_K")}}, ample_budget);
    EXPECT_THAT(types_of(problem, "token_embd.weight"), ElementsAre("q8_0"));
    EXPECT_THAT(types_of(problem, "blk.0.attn_v.weight"), ElementsAre("f16", "q8_0", "q6_K", "q4_K"));
    EXPECT_THAT(types_of(problem, "blk.1.attn_v.weight"), ElementsAre("q6_K", "q4_K"));
    EXPECT_THAT(types_of(problem, "blk.1.attn_q.weight"), ElementsAre("q6_K", "q4_K", "q2_K"));
    EXPECT_THAT(types_of(problem, "blk.2.attn_q.weight"), ElementsAre("f16", "q8_0", "q6_K", "q4_K", "q2_K"));
}

TEST(Constraints, the_first_and_last_blocks_are_protected_from_both_ends) {
    const auto problem =
        constrained(small_transformer(), {{parse_protection("--protect-layers", "first=1,last=1")}}, ample_budget);
    for (const char* block : {"blk.0.", "blk.2."})
        EXPECT_THAT(types_of(problem, std::string(block) + "ffn_up.weight"), ElementsAre("f16", "q8_0", "q6_K"));
    EXPECT_EQ(types_of(problem, "blk.1.ffn_up.weight").size(), some_types.size());
    EXPECT_EQ(types_of(problem, "token_embd.weight").size(), 3U);
    const auto other =
        constrained(small_transformer(), {{parse_protection("--protect-layers", "last=2,type=q8_0")}}, ample_budget);
    EXPECT_THAT(types_of(other, "blk.1.ffn_up.weight"), ElementsAre("f16", "q8_0"));
    EXPECT_EQ(types_of(other, "blk.0.ffn_up.weight").size(), some_types.size());
}

TEST(Constraints, coupled_tensors_get_one_type_and_the_best_such_allocation) {
    auto problem = small_transformer();
    problem.tensors.erase(problem.tensors.begin() + 8, problem.tensors.end());  // embedding and one block
    for (std::uint64_t budget = 250'000; budget < 900'000; budget += 61'000) {
        const auto coupled =
            constrained(problem, {{parse_coupling("--couple", "qkv"), parse_coupling("--couple", "gate-up")}}, budget);
        const auto allocation = allocate(coupled, budget);
        EXPECT_LE(allocation.file_bytes, budget);
        const auto type = [&](const char* role) {
            return allocation.types.at(std::string("blk.0.") + role + ".weight");
        };
        EXPECT_EQ(type("attn_q"), type("attn_k"));
        EXPECT_EQ(type("attn_q"), type("attn_v"));
        EXPECT_EQ(type("ffn_gate"), type("ffn_up"));
        // Every assignment of the five that are left to choose.
        double best = std::numeric_limits<double>::infinity();
        const auto of = [&](std::size_t tensor, ggml_type wanted) {
            for (const auto& choice : problem.tensors[tensor].choices)
                if (choice.type == wanted) return choice;
            return TypeChoice{};
        };
        for (const auto& embedding : problem.tensors[0].choices)
            for (const auto qkv : some_types)
                for (const auto output : some_types)
                    for (const auto gate_up : some_types)
                        for (const auto down : some_types) {
                            double kld = embedding.cost;
                            std::uint64_t bytes = problem.fixed_bytes + embedding.bytes;
                            const ggml_type all[] = {qkv, qkv, qkv, output, gate_up, gate_up, down};
                            for (std::size_t i = 0; i < 7; ++i) {
                                kld += of(i + 1, all[i]).cost;
                                bytes += of(i + 1, all[i]).bytes;
                            }
                            if (bytes <= budget) best = std::min(best, kld);
                        }
        EXPECT_NEAR(allocation.cost, best, 1e-12) << budget;
    }
}

TEST(Constraints, experts_and_shared_experts_are_told_apart) {
    AllocationProblem problem;
    for (const char* role : {"ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "ffn_gate_shexp", "ffn_up_shexp",
                             "ffn_down_shexp", "ffn_gate_inp", "attn_q"})
        problem.tensors.push_back(
            {std::string("blk.0.") + role + ".weight", {{GGML_TYPE_Q8_0, 10, 0.0}, {GGML_TYPE_Q4_0, 5, 0.1}}});
    constexpr std::uint64_t budget = 1000;
    const auto experts = constrained(problem, {{parse_coupling("--couple", "experts")}}, budget);
    EXPECT_THAT(experts.coupled, ElementsAre(ElementsAre(0, 1, 2)));
    const auto pairs = constrained(problem, {{parse_coupling("--couple", "gate-up")}}, budget);
    EXPECT_THAT(pairs.coupled, ElementsAre(ElementsAre(0, 1), ElementsAre(3, 4)));
    const auto both =
        constrained(problem, {{parse_coupling("--couple", "gate-up"), parse_coupling("--couple", "experts")}}, budget);
    EXPECT_THAT(both.coupled, ElementsAre(ElementsAre(0, 1, 2), ElementsAre(3, 4)));
    // Older files hold every expert in a tensor of its own.
    AllocationProblem old;
    for (const char* role : {"ffn_gate.0", "ffn_gate.1", "ffn_up.0", "ffn_down.1"})
        old.tensors.push_back({std::string("blk.4.") + role + ".weight", {{GGML_TYPE_Q8_0, 10, 0.0}}});
    EXPECT_THAT(constrained(old, {{parse_coupling("--couple", "experts")}}, budget).coupled,
                ElementsAre(ElementsAre(0, 1, 2, 3)));
    EXPECT_THAT(constrained(old, {{parse_coupling("--couple", "gate-up")}}, budget).coupled,
                ElementsAre(ElementsAre(0, 2)));
}

TEST(Constraints, a_pin_of_one_coupled_tensor_holds_for_all) {
    const auto allocation = allocate(
        constrained(small_transformer(), {{parse_coupling("--couple", "qkv"), pin("blk.1.attn_k=q6_K")}}, ample_budget),
        ample_budget);
    for (const char* role : {"attn_q", "attn_k", "attn_v"})
        EXPECT_EQ(allocation.types.at(std::string("blk.1.") + role + ".weight"), GGML_TYPE_Q6_K);
}

TEST(Constraints, a_limited_number_of_types) {
    for (const std::size_t most : {2U, 3U, 4U}) {
        const auto allocation = allocate(constrained(small_transformer(), {{}, most}, ample_budget), ample_budget);
        std::map<ggml_type, int> used;
        for (const auto& [name, type] : allocation.types) ++used[type.type];
        EXPECT_LE(used.size(), most);
        EXPECT_TRUE(allocation.exact);
        EXPECT_LE(allocation.lower_bound, allocation.cost);
    }
    const auto problem = small_transformer();
    EXPECT_THAT(refusal(problem, {{}, 1}, smallest_file_bytes(problem) + 1000), HasSubstr("too small for 1 type"));
}

TEST(Constraints, what_matches_nothing_is_an_error) {
    const auto problem = small_transformer();
    EXPECT_THAT(refusal(problem, {{pin("output=q8_0")}}),
                AllOf(HasSubstr("--pin output=q8_0"), HasSubstr("no tensor")));
    EXPECT_THAT(refusal(problem, {{floor_of("blk.7.*=q8_0")}}), HasSubstr("--floor blk.7.*=q8_0"));
    EXPECT_THAT(refusal(problem, {{parse_coupling("--couple", "experts")}}), HasSubstr("--couple experts"));
}

TEST(Constraints, conflicts_are_named_and_only_they) {
    const auto problem = small_transformer();
    const auto conflict = refusal(problem, {{pin("token_embd=q8_0"), floor_of("attn_v=q6_K"),
                                             ceiling_of("blk.1.*=q4_K"), pin("blk.2.attn_q=q2_K")}});
    EXPECT_THAT(conflict, AllOf(HasSubstr("--floor attn_v=q6_K and --ceiling blk.1.*=q4_K"),
                                HasSubstr("blk.1.attn_v.weight"), Not(HasSubstr("--pin"))));
    EXPECT_THAT(refusal(problem, {{pin("token_embd=q4_K")}}),
                AllOf(HasSubstr("--pin token_embd=q4_K"), HasSubstr("token_embd.weight"), HasSubstr("q8_0, q4_0")));
    const auto coupled = refusal(
        problem, {{parse_coupling("--couple", "qkv"), pin("attn_q=q8_0"), pin("attn_k=q6_K"), pin("ffn_up=q8_0")}});
    EXPECT_THAT(coupled, AllOf(HasSubstr("--couple qkv"), HasSubstr("--pin attn_q=q8_0"),
                               HasSubstr("--pin attn_k=q6_K"), Not(HasSubstr("ffn_up"))));
    EXPECT_THAT(refusal(problem, {{only_these_types("--only-types q4_K", {GGML_TYPE_Q4_K})}}),
                AllOf(HasSubstr("--only-types q4_K"), HasSubstr("token_embd.weight")));
}

TEST(Constraints, a_budget_that_they_make_impossible_names_them) {
    const auto problem = small_transformer();
    const auto refused =
        refusal(problem, {{pin("token_embd=q8_0"), floor_of("ffn_*=q8_0"), ceiling_of("attn_k=q6_K")}}, 700'000);
    EXPECT_THAT(refused, AllOf(HasSubstr("700000"), HasSubstr("--floor ffn_*=q8_0"), Not(HasSubstr("--ceiling"))));
    // Neither alone is too much.
    const auto enough_for_one = smallest_file_bytes(problem) + 120'000;
    EXPECT_NO_THROW(constrained(problem, {{floor_of("attn_v=q6_K")}}, enough_for_one));
    EXPECT_NO_THROW(constrained(problem, {{floor_of("attn_q=q6_K")}}, enough_for_one));
    EXPECT_THAT(refusal(problem, {{floor_of("attn_v=q6_K"), floor_of("attn_q=q6_K")}}, enough_for_one),
                AllOf(HasSubstr("--floor attn_v=q6_K and --floor attn_q=q6_K")));
    EXPECT_THAT(refusal(problem, {{floor_of("attn_v=q6_K")}}, 1000), HasSubstr("smallest possible file"));
}

TEST(Constraints, what_cannot_be_read_is_a_usage_error) {
    for (const char* text : {"", "q8_0", "=q8_0", "attn_v=", "attn_v=q9_9"})
        EXPECT_THROW(parse_rule(Kind::pin, "--pin", text), UsageError) << text;
    for (const char* text : {"", "first", "first=x", "first=1;last=2", "middle=1", "first=-1", "first=1,type=q9"})
        EXPECT_THROW(parse_protection("--protect-layers", text), UsageError) << text;
    EXPECT_THROW(parse_coupling("--couple", "kv"), UsageError);
}

}  // namespace
}  // namespace cerebellum
