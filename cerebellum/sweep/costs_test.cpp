#include "cerebellum/sweep/costs.h"

#include <gtest/gtest.h>

#include <vector>

#include "cerebellum/core/quant_type.h"
#include "cerebellum/gguf/gguf_support_test.h"
#include "cerebellum/llama/log.h"
#include "cerebellum/quantize/quantize_tensor.h"
#include "cerebellum/replay/replay_support_test.h"
#include "cerebellum/sweep/measure_rates.h"
#include "cerebellum/sweep/runner.h"

namespace cerebellum {
namespace {

using Work = CostLedger::Work;

CostLedger::Kind quantizing(ggml_type type) {
    return {Work::quantize, type};
}
const CostLedger::Kind replaying = {Work::change, {}};

/// A job of `pieces` times one change of each type, quantized and replayed, in seconds that the clock will tell.
struct FakeJob {
    std::vector<std::pair<ggml_type, double>> quantize_s = {
        {GGML_TYPE_Q8_0, 0.01}, {GGML_TYPE_Q4_K, 0.1}, {GGML_TYPE_IQ2_XS, 1.0}};
    double replay_s = 0.2;
    int pieces = 100;

    double whole_s() const {
        double piece = 0.0;
        for (const auto& [type, seconds] : quantize_s) piece += seconds + replay_s;
        return pieces * piece;
    }
    /// Estimates are off by these factors. Returns what the ledger says is left, divided by what is, when `part` of the
    /// time is over.
    double estimated_left(double part, double quantize_factor, double replay_factor, int first_piece = 0) const {
        CostLedger ledger;
        double left_s = 0.0, elapsed_s = 0.0;
        for (int p = first_piece; p < pieces; ++p)
            for (const auto& [type, seconds] : quantize_s) {
                ledger.expect(quantizing(type), seconds * quantize_factor);
                ledger.expect(replaying, replay_s * replay_factor);
                left_s += seconds + replay_s;
            }
        const double until_s = part * left_s;
        for (int p = first_piece; p < pieces; ++p)
            for (const auto& [type, seconds] : quantize_s) {
                if (elapsed_s >= until_s) return ledger.left_s() / (left_s - elapsed_s);
                ledger.did(quantizing(type), seconds * quantize_factor, seconds);
                ledger.did(replaying, replay_s * replay_factor, replay_s);
                elapsed_s += seconds + replay_s;
            }
        return ledger.left_s();
    }
};

TEST(CostLedger, is_right_from_the_begin_where_the_rates_are) {
    for (const double part : {0.0, 0.05, 0.5, 0.95}) EXPECT_NEAR(FakeJob().estimated_left(part, 1.0, 1.0), 1.0, 1e-9);
}

TEST(CostLedger, is_within_30_percent_after_5_percent_however_wrong_the_rates_were) {
    for (const double quantize : {0.2, 1.0, 5.0})
        for (const double replay : {0.1, 1.0, 10.0})
            EXPECT_NEAR(FakeJob().estimated_left(0.05, quantize, replay), 1.0, 0.3) << quantize << " " << replay;
}

TEST(CostLedger, is_so_after_a_resume_too) {
    for (const int first : {50, 90}) EXPECT_NEAR(FakeJob().estimated_left(0.05, 3.0, 0.3, first), 1.0, 0.3) << first;
}

TEST(CostLedger, learns_a_busy_machine_from_other_types) {
    CostLedger ledger;
    ledger.expect(quantizing(GGML_TYPE_Q4_K), 10.0);
    ledger.expect(quantizing(GGML_TYPE_IQ2_XS), 100.0);
    ledger.did(quantizing(GGML_TYPE_Q4_K), 10.0, 20.0);
    EXPECT_NEAR(ledger.left_s(), 200.0, 20.0);
}

TEST(CostLedger, takes_the_longer_half_where_a_device_replays_beside_the_quantizing) {
    CostLedger after, beside(true);
    for (auto* ledger : {&after, &beside}) {
        ledger->expect(quantizing(GGML_TYPE_Q4_K), 3.0);
        ledger->expect(replaying, 2.0);
    }
    EXPECT_DOUBLE_EQ(after.left_s(), 5.0);
    EXPECT_DOUBLE_EQ(beside.left_s(), 3.0);
}

TEST(CostLedger, more_work_than_expected_leaves_none) {
    CostLedger ledger;
    ledger.expect(replaying, 1.0);
    ledger.did(replaying, 2.0, 2.0);
    EXPECT_DOUBLE_EQ(ledger.left_s(), 0.0);
}

TEST(Rates, take_the_nearest_type_where_one_was_not_measured) {
    Rates rates;
    EXPECT_DOUBLE_EQ(rates.quantizing(GGML_TYPE_Q4_K, 100.0, 10.0), 100.0 * rates.quantize_default_s);
    rates.quantize_s = {{GGML_TYPE_Q2_K, 2.0}, {GGML_TYPE_Q8_0, 8.0}};
    EXPECT_DOUBLE_EQ(rates.quantizing(GGML_TYPE_Q8_0, 3.0, 10.0), 24.0);
    EXPECT_DOUBLE_EQ(rates.quantizing(GGML_TYPE_Q3_K, 3.0, 10.0), 6.0);
    rates.feedback_s = 0.5;
    EXPECT_DOUBLE_EQ(rates.quantizing(Encoding(GGML_TYPE_Q8_0, Rounding::feedback), 3.0, 10.0),
                     24.0 + 3.0 * 10.0 * 0.5);
}

class SweepProgress : public ::testing::Test {
  protected:
    SweepProgress()
        : source_(GgufFile::open(testing::small_model())),
          model_((silence_llama_log(), Model::load(testing::small_model()))),
          engine_(model_, 64, 1) {
        for (const unsigned seed : {1U, 2U})
            windows_.push_back(engine_.prepare(testing::random_tokens(model_, 64, seed)));
        for (const auto* name : {"token_embd.weight", "blk.0.attn_q.weight", "blk.3.ffn_down.weight"}) {
            TensorPlan tensor;
            tensor.name = name;
            tensor.types = {GGML_TYPE_Q6_K, GGML_TYPE_Q2_K};
            tensor.anchors = {GGML_TYPE_Q2_K};
            plan_.push_back(tensor);
        }
    }
    SweepSummary run(Journal& journal, Progress& progress) {
        const Quantizer quantize = [this](const std::string& name, const Encoding& type) {
            const auto* tensor = source_.find(name);
            return quantize_tensor(*tensor, source_.data(*tensor), type.type, {}, 1);
        };
        return run_sweep(engine_, windows_, plan_, quantize, journal, progress);
    }

    testing::TemporaryFolder folder_;
    GgufFile source_;
    Model model_;
    ReplayEngine engine_;
    std::vector<Window> windows_;
    std::vector<TensorPlan> plan_;
};

/// Keeps the shares that it is told.
class Shares final : public Progress {
  public:
    void begin(std::string_view, double total) override { total_ = total; }
    void advance(double done, std::string_view) override { shares.push_back(done / total_); }
    void end() override {}
    void warn(std::string_view) override {}
    void info(std::string_view) override {}
    void detail(std::string_view) override {}
    std::vector<double> shares;

  private:
    double total_ = 0.0;
};

TEST_F(SweepProgress, no_share_is_next_to_nothing_though_an_embedding_is_only_looked_up) {
    auto journal = Journal::open(folder_ / "j.db", {{{"model", "small"}}});
    Shares progress;
    run(journal, progress);
    ASSERT_GT(progress.shares.size(), 10U);
    for (const double share : progress.shares) {
        EXPECT_GT(share, 1e-4);
        EXPECT_LE(share, 1.0);
    }
    EXPECT_GT(progress.shares.back(), 0.8);
}

TEST_F(SweepProgress, an_embedding_that_is_only_looked_up_says_nothing_of_other_changes) {
    const SweepMap map(engine_.topology());
    const auto embedding = map.place_of("token_embd.weight").value();
    const auto query = map.place_of("blk.0.attn_q.weight").value();
    const int end = map.ranges()[embedding.range].end;
    ASSERT_EQ(map.flops(embedding.use->first, end), 0.0);
    SweepCosts costs(map, {}, engine_.topology().head_cut(), engine_.topology().n_nodes(), false);
    costs.expect_change(embedding, GGML_TYPE_Q4_K, 2, 0, 0.0);
    costs.expect_change(query, GGML_TYPE_Q4_K, 2, 0, 0.0);
    const double before_s = costs.left_s();
    costs.replayed(CostLedger::Work::change, embedding.use->first, end, 2, 1000.0);
    EXPECT_NEAR(costs.left_s(), before_s, 1e-3 * before_s);
}

TEST_F(SweepProgress, an_estimate_is_of_what_the_journal_lacks) {
    auto journal = Journal::open(folder_ / "j.db", {{{"model", "small"}}});
    JournalFigures figures(journal);
    const auto all = estimate_sweep(engine_, windows_.size(), plan_, figures, {}, {});
    // An embedding that is only looked up has no block: every type is measured in full.
    EXPECT_EQ(all.fast, 4U);
    EXPECT_EQ(all.full, 4U);
    EXPECT_GT(all.seconds, 0.0);
    NoProgress progress;
    const auto done = run(journal, progress);
    EXPECT_EQ(done.fast_measured, all.fast);
    EXPECT_EQ(done.full_measured, all.full);
    const auto rest = estimate_sweep(engine_, windows_.size(), plan_, figures, {}, {});
    EXPECT_EQ(rest.fast + rest.full, 0U);
    EXPECT_EQ(rest.seconds, 0.0);
    plan_.back().types.emplace_back(GGML_TYPE_Q4_K);
    const auto more = estimate_sweep(engine_, windows_.size(), plan_, figures, {}, {});
    EXPECT_EQ(more.fast, 1U);
    EXPECT_EQ(more.full, 0U);
    const auto* tensor = source_.find("blk.3.ffn_down.weight");
    EXPECT_DOUBLE_EQ(more.quantized_weights, static_cast<double>(tensor->n_weights()));
}

TEST_F(SweepProgress, measured_rates_know_every_type_of_the_plan) {
    plan_.back().types.emplace_back(GGML_TYPE_Q4_K, Rounding::feedback);
    NoProgress progress;
    const auto rates = measure_rates(engine_, windows_.front(), source_, {}, plan_, 1, progress);
    for (const auto type : {GGML_TYPE_Q6_K, GGML_TYPE_Q2_K, GGML_TYPE_Q4_K}) {
        ASSERT_TRUE(rates.quantize_s.contains(type)) << type_name(type);
        EXPECT_GT(rates.quantize_s.at(type), 1e-11);
        EXPECT_LT(rates.quantize_s.at(type), 1e-4);
    }
    EXPECT_NE(rates.feedback_s, Rates().feedback_s);
    EXPECT_GT(rates.replay_s, 1e-14);
    EXPECT_NE(rates.head_s, Rates().head_s);
}

}  // namespace
}  // namespace cerebellum
