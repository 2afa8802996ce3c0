// A sweep on a device that spoils what it computes.
#include "cerebellum/sweep/second_look.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <set>

#include "cerebellum/core/figure_error.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/gguf/gguf_support_test.h"
#include "cerebellum/llama/log.h"
#include "cerebellum/quantize/quantize_tensor.h"
#include "cerebellum/replay/replay_support_test.h"
#include "cerebellum/sweep/runner.h"

namespace cerebellum {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::random_tokens;
using testing::small_model;
using testing::TemporaryFolder;

constexpr int n_tokens = 32;

using PairName = std::pair<std::string, ggml_type>;

enum class Harm { nan, infinity, zeros, error, much };

/// Does harm to what a device computes with some weights in some types.
class Spoiler {
  public:
    std::map<PairName, Harm> pairs;
    int times = std::numeric_limits<int>::max();  // that it does so
    int spoilt = 0;

    ggml_status operator()(ggml_cgraph* graph, ggml_status status) {
        const auto harm = of(graph);
        if (!harm || spoilt >= times) return status;
        ++spoilt;
        if (*harm == Harm::error) return GGML_STATUS_FAILED;
        int sums = 0;
        for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
            auto* node = ggml_graph_node(graph, i);
            if ((node->flags & GGML_TENSOR_FLAG_OUTPUT) == 0 || node->type != GGML_TYPE_F32) continue;
            const std::span values(static_cast<float*>(node->data), ggml_nbytes(node) / sizeof(float));
            switch (*harm) {
                case Harm::nan:
                    std::ranges::fill(values, std::numeric_limits<float>::quiet_NaN());
                    break;
                case Harm::infinity:
                    std::ranges::fill(values, std::numeric_limits<float>::infinity());
                    break;
                case Harm::zeros:
                    std::ranges::fill(values, 0.0F);
                    break;
                case Harm::much:  // of the probe's sums the first is the change's, the second the state's
                    if (node->op == GGML_OP_SUM_ROWS && sums++ % 2 == 0)
                        for (auto& value : values) value *= 1e7F;
                    break;
                case Harm::error:
                    break;
            }
        }
        return status;
    }

  private:
    std::optional<Harm> of(ggml_cgraph* graph) const {
        for (int i = 0; i < ggml_graph_n_nodes(graph); ++i)
            for (const auto* source : ggml_graph_node(graph, i)->src)
                if (source != nullptr)
                    if (const auto found = pairs.find({source->name, source->type}); found != pairs.end())
                        return found->second;
        return std::nullopt;
    }
};

class Warnings final : public Progress {
  public:
    std::vector<std::string> said;
    void begin(std::string_view, double) override {}
    void advance(double, std::string_view) override {}
    void end() override {}
    void warn(std::string_view message) override { said.emplace_back(message); }
    void info(std::string_view) override {}
    void detail(std::string_view) override {}
};

class Spoilt : public ::testing::Test {
  protected:
    Spoilt()
        : source_(GgufFile::open(small_model())),
          model_((silence_llama_log(), Model::load(small_model()))),
          engine_(model_, n_tokens, 1) {
        for (const unsigned seed : {1U, 2U}) windows_.push_back(engine_.prepare(random_tokens(model_, n_tokens, seed)));
        for (const auto* name : {"token_embd.weight", "blk.0.ffn_down.weight", "blk.3.attn_v.weight", "output.weight"})
            plan_.push_back(plan_of(name, {GGML_TYPE_Q6_K, GGML_TYPE_Q4_0, GGML_TYPE_Q2_K}));
    }
    ~Spoilt() override { engine_.device().watch({}); }

    static TensorPlan plan_of(const std::string& name, std::vector<Encoding> types) {
        TensorPlan tensor;
        tensor.name = name;
        tensor.types = std::move(types);
        tensor.anchors = {GGML_TYPE_Q4_0, GGML_TYPE_Q2_K};
        tensor.anchor_stride = 2;
        return tensor;
    }

    Journal journal(const std::string& name) const { return Journal::open(folder_ / name, {{{"model", "small"}}}); }

    void spoil(Spoiler& spoiler) {
        engine_.device().watch([&spoiler](ggml_cgraph* graph, ggml_status status) { return spoiler(graph, status); });
    }

    SweepSummary run(Journal& into, Progress& progress) {
        const Quantizer quantize = [this](const std::string& name, const Encoding& type) {
            ++quantized_;
            if (unquantizable_.contains({name, type.type})) throw FigureError("its weights overflow");
            const auto* tensor = source_.find(name);
            return quantize_tensor(*tensor, source_.data(*tensor), type.type, {}, 1);
        };
        return run_sweep(engine_, windows_, plan_, quantize, into, progress);
    }
    /// Every figure, exactly.
    std::vector<std::string> rows(const Journal& journal) const {
        std::vector<std::string> rows;
        for (const auto& m : journal.measurements())
            rows.push_back(fmt::format("{} {} {}: {} {} {} {} {} {}", m.tensor, m.type, tier_name(m.tier),
                                       fmt::join(m.counts, " "), fmt::join(m.kld, " "), fmt::join(m.delta_nll, " "),
                                       fmt::join(m.top1_agree, " "), fmt::join(m.local_energy, " "),
                                       fmt::join(m.local_counts, " ")));
        return rows;
    }
    /// What a device without faults gives.
    const std::vector<std::string>& sound() {
        if (sound_.empty()) {
            auto into = journal("sound.db");
            NoProgress progress;
            run(into, progress);
            sound_ = rows(into);
        }
        return sound_;
    }

    TemporaryFolder folder_;
    GgufFile source_;
    Model model_;
    ReplayEngine engine_;
    std::vector<Window> windows_;
    std::vector<TensorPlan> plan_;
    std::set<PairName> unquantizable_;
    int quantized_ = 0;
    Warnings progress_;

  private:
    std::vector<std::string> sound_;
};

TEST_F(Spoilt, pairs_get_the_figures_of_the_cpu_whatever_the_harm) {
    ASSERT_EQ(sound().size(), 3U * 4U + 2U * 2U);
    for (const auto harm : {Harm::nan, Harm::infinity, Harm::zeros, Harm::error, Harm::much}) {
        Spoiler spoiler;
        spoiler.pairs = {{{"blk.0.ffn_down.weight", GGML_TYPE_Q4_0}, harm},
                         {{"blk.3.attn_v.weight", GGML_TYPE_Q2_K}, harm}};
        // Of two that are too large alike neither stands out.
        if (harm != Harm::much) spoiler.pairs.insert({{"blk.3.attn_v.weight", GGML_TYPE_Q6_K}, harm});
        // Zeros as the whole model's input or output are another model's figures, and finite.
        if (harm != Harm::zeros && harm != Harm::much)
            spoiler.pairs.insert(
                {{{"token_embd.weight", GGML_TYPE_Q4_0}, harm}, {{"output.weight", GGML_TYPE_Q2_K}, harm}});
        spoil(spoiler);
        auto into = journal("spoilt-" + std::to_string(static_cast<int>(harm)) + ".db");
        const auto summary = run(into, progress_);
        EXPECT_GT(spoiler.spoilt, 3);
        EXPECT_EQ(summary.unusable, 0U);
        EXPECT_THAT(into.unusable(), IsEmpty());
        EXPECT_EQ(rows(into), sound()) << static_cast<int>(harm);
    }
}

TEST_F(Spoilt, once_and_never_again_is_measured_again_on_the_device) {
    sound();
    Spoiler spoiler;
    spoiler.pairs = {{{"blk.3.attn_v.weight", GGML_TYPE_Q4_0}, Harm::nan}};
    spoiler.times = 1;
    spoil(spoiler);
    auto into = journal("once.db");
    run(into, progress_);
    EXPECT_EQ(spoiler.spoilt, 1);
    EXPECT_EQ(rows(into), sound());
    EXPECT_THAT(progress_.said, IsEmpty());
}

TEST_F(Spoilt, what_has_no_figure_in_any_way_is_recorded_with_its_reason_and_the_rest_goes_on) {
    sound();
    unquantizable_ = {{"blk.0.ffn_down.weight", GGML_TYPE_Q6_K}, {"output.weight", GGML_TYPE_Q2_K}};
    auto into = journal("left-out.db");
    const auto summary = run(into, progress_);
    EXPECT_EQ(summary.unusable, 2U);
    const std::vector<UnusableFigure> expected = {{"blk.0.ffn_down.weight", "q6_K", Tier::fast, "its weights overflow"},
                                                  {"output.weight", "q2_K", Tier::full, "its weights overflow"}};
    EXPECT_EQ(into.unusable(), expected);
    auto others = sound();
    std::erase_if(others, [](const std::string& row) {
        return row.starts_with("blk.0.ffn_down.weight q6_K") || row.starts_with("output.weight q2_K");
    });
    EXPECT_EQ(rows(into), others);
    // It is known now: nothing is tried again, though it might work.
    unquantizable_.clear();
    quantized_ = 0;
    const auto again = run(into, progress_);
    EXPECT_EQ(again.fast_measured + again.full_measured + again.unusable, 0U);
    EXPECT_EQ(quantized_, 0);
}

TEST_F(Spoilt, a_tensor_whose_anchors_are_unusable_gets_another_one) {
    unquantizable_ = {{"blk.3.attn_v.weight", GGML_TYPE_Q4_0}, {"blk.3.attn_v.weight", GGML_TYPE_Q2_K}};
    auto into = journal("anchors.db");
    run(into, progress_);
    const auto anchor = into.find("blk.3.attn_v.weight", "q6_K", Tier::full);
    ASSERT_TRUE(anchor);
    EXPECT_EQ(anchor->windows(), 1U) << "as many as an anchor has";
    // It is the figure that the type has as an anchor.
    plan_ = {plan_of("blk.3.attn_v.weight", {GGML_TYPE_Q6_K})};
    plan_[0].anchors = {GGML_TYPE_Q6_K};
    auto alone = journal("alone.db");
    run(alone, progress_);
    EXPECT_EQ(anchor->kld, alone.find("blk.3.attn_v.weight", "q6_K", Tier::full)->kld);
}

TEST_F(Spoilt, a_tensor_without_any_figure_at_all_is_no_choice_and_stops_nothing) {
    for (const auto type : {GGML_TYPE_Q6_K, GGML_TYPE_Q4_0, GGML_TYPE_Q2_K})
        unquantizable_.insert({"blk.3.attn_v.weight", type});
    auto into = journal("none.db");
    EXPECT_EQ(run(into, progress_).unusable, 3U);
    std::set<std::string> measured;
    for (const auto& m : into.measurements()) measured.insert(m.tensor);
    EXPECT_THAT(measured, ElementsAre("blk.0.ffn_down.weight", "output.weight", "token_embd.weight"));
}

TEST_F(Spoilt, figures_without_one_that_scales_them_are_left_out) {
    // The block computes, and whatever comes behind it does not: every score of this tensor's changes is no number.
    plan_ = {plan_of("blk.3.attn_v.weight", {GGML_TYPE_Q6_K, GGML_TYPE_Q4_0, GGML_TYPE_Q2_K})};
    bool in_head = false;
    engine_.device().watch([&](ggml_cgraph* graph, ggml_status status) {
        for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
            auto* node = ggml_graph_node(graph, i);
            if (node->op != GGML_OP_CUSTOM) continue;
            in_head = true;
            const std::span values(static_cast<float*>(node->data), ggml_nbytes(node) / sizeof(float));
            std::ranges::fill(values, std::numeric_limits<float>::infinity());
        }
        return status;
    });
    auto into = journal("unscaled.db");
    EXPECT_EQ(run(into, progress_).unusable, 3U);
    EXPECT_TRUE(in_head);
    EXPECT_THAT(into.measurements(), IsEmpty());
}

TEST_F(Spoilt, a_device_that_is_gone_ends_the_run_and_the_next_one_goes_on) {
    sound();
    int left = 60;
    engine_.device().watch([&](ggml_cgraph*, ggml_status status) { return --left < 0 ? GGML_STATUS_FAILED : status; });
    auto into = journal("gone.db");
    try {
        run(into, progress_);
        FAIL() << "it went on without a device";
    } catch (const FigureError&) {
        FAIL() << "it was taken for one pair's fault";
    } catch (const Error& error) {
        EXPECT_THAT(error.what(), HasSubstr("run the same command again"));
    }
    EXPECT_THAT(into.unusable(), IsEmpty());
    EXPECT_GT(into.measurements().size(), 0U);
    EXPECT_LT(into.measurements().size(), sound().size());
    engine_.device().watch({});
    run(into, progress_);
    EXPECT_EQ(rows(into), sound());
}

TEST_F(Spoilt, a_device_that_disagrees_with_itself_is_found_out) {
    plan_.clear();
    for (int layer = 0; layer < model_.n_layers(); ++layer)
        for (const auto* role : {"attn_q", "attn_k", "attn_v", "ffn_up", "ffn_gate"})
            plan_.push_back(plan_of("blk." + std::to_string(layer) + "." + role + ".weight",
                                    {GGML_TYPE_Q6_K, GGML_TYPE_Q5_0, GGML_TYPE_Q4_0, GGML_TYPE_Q3_K, GGML_TYPE_Q2_K}));
    ASSERT_GE(plan_.size() * 5, 150U);
    // Every change is off by a factor that is another one each time: no figure is absurd.
    float factor = 1.0F;
    engine_.device().watch([&](ggml_cgraph* graph, ggml_status status) {
        for (int i = 0, sums = 0; i < ggml_graph_n_nodes(graph); ++i) {
            auto* node = ggml_graph_node(graph, i);
            if ((node->flags & GGML_TENSOR_FLAG_OUTPUT) == 0 || node->op != GGML_OP_SUM_ROWS || sums++ % 2 != 0)
                continue;
            factor = factor > 2.0F ? 1.0F : 1.1F * factor;
            for (std::int64_t t = 0; t < node->ne[1]; ++t) static_cast<float*>(node->data)[t] *= factor;
        }
        return status;
    });
    auto into = journal("unsteady.db");
    try {
        run(into, progress_);
        FAIL() << "nobody noticed";
    } catch (const Error& error) {
        EXPECT_THAT(error.what(), HasSubstr("cannot be trusted"));
    }
    ASSERT_THAT(progress_.said, ::testing::SizeIs(::testing::Ge(2U)));
    EXPECT_THAT(progress_.said.front(), HasSubstr("disagrees with itself"));
}

}  // namespace
}  // namespace cerebellum
