#include "cerebellum/sweep/runner.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "cerebellum/core/error.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/gguf/gguf_support_test.h"
#include "cerebellum/llama/log.h"
#include "cerebellum/quantize/quantize_tensor.h"
#include "cerebellum/replay/replay_support_test.h"

namespace cerebellum {
namespace {

using testing::random_tokens;
using testing::small_model;
using testing::TemporaryFolder;

namespace fs = std::filesystem;

constexpr int n_tokens = 64;

/// The same rows, but for how long they took.
std::vector<Measurement> rows_of(const Journal& journal) {
    auto rows = journal.measurements();
    for (auto& row : rows) row.wall_s = 0.0;
    return rows;
}

/// Asks to stop when some number of units of work is done.
class StopAfter final : public Progress {
  public:
    explicit StopAfter(int advances) : left_(advances) { stop_requested = false; }
    ~StopAfter() override { stop_requested = false; }
    void begin(std::string_view, double) override {}
    void advance(double, std::string_view) override {
        if (--left_ == 0) stop_requested = true;
    }
    void end() override {}
    void warn(std::string_view) override {}
    void info(std::string_view) override {}
    void detail(std::string_view) override {}

  private:
    int left_;
};

class RunSweep : public ::testing::Test {
  protected:
    RunSweep()
        : source_(GgufFile::open(small_model())),
          model_((silence_llama_log(), Model::load(small_model()))),
          engine_(model_, n_tokens, 1) {
        for (const unsigned seed : {1U, 2U}) windows_.push_back(engine_.prepare(random_tokens(model_, n_tokens, seed)));
        const std::vector<Encoding> types = {GGML_TYPE_Q6_K, GGML_TYPE_Q4_0, GGML_TYPE_Q2_K};
        for (const auto* name : {"token_embd.weight", "blk.0.attn_q.weight", "blk.0.ffn_down.weight",
                                 "blk.3.attn_v.weight", "blk.5.ffn_up.weight", "output.weight"}) {
            TensorPlan tensor;
            tensor.name = name;
            tensor.types = types;
            tensor.anchors = {GGML_TYPE_Q4_0, GGML_TYPE_Q2_K};
            tensor.anchor_stride = 1;
            plan_.push_back(tensor);
        }
    }

    Journal journal(const std::string& name) const { return Journal::open(folder_ / name, {{{"model", "small"}}}); }

    Quantizer quantizer() {
        return [this](const std::string& name, const Encoding& type) {
            ++quantized_;
            const auto* tensor = source_.find(name);
            return quantize_tensor(*tensor, source_.data(*tensor), type.type, {}, 1);
        };
    }

    SweepSummary run(Journal& into, Progress& progress) {
        return run_sweep(engine_, windows_, plan_, quantizer(), into, progress);
    }

    TemporaryFolder folder_;
    GgufFile source_;
    Model model_;
    ReplayEngine engine_;
    std::vector<Window> windows_;
    std::vector<TensorPlan> plan_;
    int quantized_ = 0;
};

TEST_F(RunSweep, full_figures_are_those_of_the_whole_graph_with_the_tensor_substituted) {
    auto into = journal("j.db");
    NoProgress progress;
    run(into, progress);
    const auto& topology = engine_.topology();
    const int logits = topology.graph().logits;
    int compared = 0;
    for (const auto& row : into.measurements()) {
        if (row.tier != Tier::full) continue;
        ASSERT_EQ(row.kld.size(), windows_.size());
        const auto type = *parse_type(row.type);
        const auto* tensor = source_.find(row.tensor);
        const auto bytes = quantize_tensor(*tensor, source_.data(*tensor), type, {}, 1);
        Slice::Options substituted, plain;
        substituted.substitutes = {{row.tensor, {type, bytes}}};
        substituted.reads = plain.reads = {logits};
        Slice variant(topology, engine_.device(), engine_.weights(), 0, topology.n_nodes(), substituted);
        Slice reference(topology, engine_.device(), engine_.weights(), 0, topology.n_nodes(), plain);
        for (std::size_t w = 0; w < windows_.size(); ++w) {
            reference.run(windows_[w].inputs, {});
            const auto p = reference.read(logits);
            variant.run(windows_[w].inputs, {});
            const auto q = variant.read(logits);
            // Scored on the host, one position after the other.
            const auto n_vocab = static_cast<std::size_t>(model_.n_vocab());
            std::vector<PositionScore> scores;
            std::vector<float> log_p(n_vocab);
            for (std::size_t i = 0; i < static_cast<std::size_t>(n_tokens); ++i) {
                log_softmax_row(reinterpret_cast<const float*>(p.data()) + i * n_vocab, log_p.data(), model_.n_vocab());
                const Token target = i + 1 < windows_[w].tokens.size() ? windows_[w].tokens[i + 1] : -1;
                scores.push_back(score_row(reinterpret_cast<const float*>(q.data()) + i * n_vocab, log_p.data(),
                                           model_.n_vocab(), target));
            }
            const auto expected = sum_scores(scores, burn_in(n_tokens));
            EXPECT_EQ(row.kld[w], expected.kld) << row.tensor << " " << row.type;
            EXPECT_EQ(row.delta_nll[w], expected.nll - expected.reference_nll) << row.tensor << " " << row.type;
            EXPECT_EQ(row.top1_agree[w], expected.same_top) << row.tensor << " " << row.type;
            EXPECT_EQ(row.counts[w], expected.count);
        }
        ++compared;
    }
    EXPECT_GE(compared, 12);
}

TEST_F(RunSweep, figures_of_every_tensor_and_type_grow_with_the_loss) {
    auto into = journal("j.db");
    NoProgress progress;
    const auto summary = run(into, progress);
    EXPECT_TRUE(summary.unmeasured.empty());
    EXPECT_EQ(summary.resumed, 0U);
    EXPECT_EQ(summary.fast_measured + summary.full_measured, into.measurements().size());
    for (const auto& tensor : plan_)
        for (const auto type : tensor.types)
            EXPECT_TRUE(into.has(tensor.name, type_name(type), Tier::fast) ||
                        into.has(tensor.name, type_name(type), Tier::full))
                << tensor.name << " " << type_name(type);
    std::map<std::string, std::map<std::string, double>> energy;
    for (const auto& row : into.measurements())
        if (row.tier == Tier::fast) energy[row.tensor][row.type] = row.local_energy[0] + row.local_energy[1];
    EXPECT_GE(energy.size(), 4U);
    for (const auto& [name, by_type] : energy) {
        EXPECT_LT(by_type.at("q6_K"), by_type.at("q4_0")) << name;
        EXPECT_LT(by_type.at("q4_0"), by_type.at("q2_K")) << name;
    }
}

TEST_F(RunSweep, a_second_run_measures_nothing) {
    auto into = journal("j.db");
    NoProgress progress;
    const auto first = run(into, progress);
    const auto rows = into.measurements();
    quantized_ = 0;
    const auto second = run(into, progress);
    EXPECT_EQ(second.fast_measured + second.full_measured, 0U);
    EXPECT_EQ(second.resumed, first.fast_measured + first.full_measured);
    EXPECT_EQ(quantized_, 0);
    EXPECT_EQ(into.measurements(), rows);
}

TEST_F(RunSweep, interrupted_anywhere_comes_to_the_same_figures) {
    auto undisturbed = journal("undisturbed.db");
    NoProgress progress;
    run(undisturbed, progress);
    for (const int after : {1, 4, 9, 15, 22}) {
        auto into = journal("stopped-" + std::to_string(after) + ".db");
        {
            StopAfter stop(after);
            EXPECT_THROW(run(into, stop), Interrupted) << after;
        }
        EXPECT_LT(into.measurements().size(), undisturbed.measurements().size());
        run(into, progress);
        EXPECT_EQ(rows_of(into), rows_of(undisturbed)) << "stopped after " << after;
    }
}

TEST_F(RunSweep, with_as_little_memory_as_can_be_comes_to_the_same_figures) {
    auto ample = journal("ample.db");
    NoProgress progress;
    run(ample, progress);
    EngineOptions options;
    options.n_windows = static_cast<int>(windows_.size());
    options.limits.scratch_folder = folder_.path();
    const auto needs = memory_needs(engine_.topology(), options.n_windows);
    for (options.limits.host_bytes = std::size_t{64} << 20;; options.limits.host_bytes += 64 << 10) {
        try {
            plan_memory(needs, options.limits, true);
            break;
        } catch (const Error&) {  // still too little
        }
    }
    ReplayEngine tight(model_, n_tokens, options);
    ASSERT_FALSE(tight.memory_plan().resident);
    std::vector<Window> windows;
    for (const auto& window : windows_) windows.push_back(tight.prepare(window.tokens));
    auto into = journal("tight.db");
    run_sweep(tight, windows, plan_, quantizer(), into, progress);
    EXPECT_EQ(rows_of(into), rows_of(ample));
    EXPECT_GT(tight.weights().loaded_bytes(), 2 * needs.weight_bytes) << "the weights were not streamed";
    EXPECT_GT(tight.device().values().usage().scratch_bytes, 0U) << "nothing was spilled";
    EXPECT_LE(tight.weights().placed_bytes(), tight.memory_plan().weight_bytes);
}

TEST_F(RunSweep, windows_measured_later_extend_the_rows_to_the_same_figures) {
    for (auto& tensor : plan_) tensor.anchor_stride = 2;
    windows_.push_back(engine_.prepare(random_tokens(model_, n_tokens, 3)));
    windows_.push_back(engine_.prepare(random_tokens(model_, n_tokens, 4)));
    auto at_once = journal("at-once.db");
    NoProgress progress;
    const auto whole = run(at_once, progress);
    auto into = journal("step-by-step.db");
    const auto plan = plan_;
    double tokens = 0.0;
    // Some pairs get more windows than others in between, and anchors follow later.
    for (auto& tensor : plan_) tensor.windows = 1;
    tokens += run(into, progress).tokens;
    plan_.resize(3);
    for (auto& tensor : plan_) {
        tensor.windows = 3;
        tensor.full_windows = 1;
        tensor.types = {GGML_TYPE_Q4_0};
        tensor.anchors = {GGML_TYPE_Q4_0};
    }
    tokens += run(into, progress).tokens;
    EXPECT_EQ(into.find("blk.0.ffn_down.weight", "q4_0", Tier::fast)->windows(), 3U);
    EXPECT_EQ(into.find("blk.0.ffn_down.weight", "q4_0", Tier::full)->windows(), 1U);
    EXPECT_EQ(into.find("blk.0.ffn_down.weight", "q6_K", Tier::fast)->windows(), 1U);
    plan_ = plan;
    tokens += run(into, progress).tokens;
    EXPECT_EQ(rows_of(into), rows_of(at_once));
    EXPECT_EQ(tokens, whole.tokens);
}

TEST_F(RunSweep, dealt_piece_by_piece_in_any_order_comes_to_the_same_figures) {
    auto at_once = journal("at-once.db");
    NoProgress progress;
    run(at_once, progress);
    auto into = journal("pieces.db");
    JournalFigures figures(into);
    SweepWorker worker(engine_, windows_, quantizer());
    for (const std::size_t piece : {3U, 0U, 4U, 1U, 5U, 2U})
        worker.measure(std::span(plan_).subspan(piece, 1), figures, progress);
    EXPECT_EQ(rows_of(into), rows_of(at_once));
}

TEST_F(RunSweep, neighbours_share_the_source_s_states_and_come_to_the_same_figures) {
    auto at_once = journal("at-once.db");
    NoProgress progress;
    const auto alone = run(at_once, progress);
    auto into = journal("shared.db");
    JournalFigures figures(into);
    ReplayEngine other(model_, n_tokens, 1);
    std::vector<Window> its_windows;
    for (const auto& window : windows_) its_windows.push_back(other.prepare(window.tokens));
    Neighbours neighbours = {folder_.path(), "job", 0, 2};
    SweepWorker first(engine_, windows_, quantizer(), neighbours);
    const auto files = [this] {
        return std::ranges::count_if(fs::directory_iterator(folder_.path()),
                                     [](const auto& entry) { return entry.path().extension() == ".states"; });
    };
    EXPECT_EQ(files(), 1);
    neighbours.index = 1;
    SweepWorker second(other, its_windows, quantizer(), neighbours);
    EXPECT_EQ(files(), 0) << "what all have opened needs no name";
    second.share_states(progress);
    auto summary = first.measure(std::span(plan_).first(4), figures, progress);
    add(summary, second.measure(std::span(plan_).subspan(4), figures, progress));
    EXPECT_EQ(rows_of(into), rows_of(at_once));
    EXPECT_LE(summary.replay_flops, alone.replay_flops) << "the source was replayed more often than by one process";
}

TEST_F(RunSweep, tensors_that_nothing_reads_are_reported) {
    auto into = journal("j.db");
    TensorPlan stranger;
    stranger.name = "blk.9.attn_q.weight";
    stranger.types = stranger.anchors = {GGML_TYPE_Q4_0};
    plan_ = {stranger};
    NoProgress progress;
    const auto summary = run(into, progress);
    EXPECT_EQ(summary.unmeasured, std::vector<std::string>{"blk.9.attn_q.weight"});
    EXPECT_TRUE(into.measurements().empty());
}

/// The same rows of every matrix as the whole tensor has in that type.
RowQuantizer row_quantizer(const GgufFile& source) {
    return [&source](const std::string& name, const Encoding& type, std::span<const std::int64_t> rows) {
        const auto* tensor = source.find(name);
        const auto some = sampled_rows(*tensor, source.data(*tensor), rows);
        return quantize_tensor(some.tensor, some.bytes, type.type, {}, 1);
    };
}

TEST_F(RunSweep, rows_that_stand_for_all_give_nearly_the_same_figures) {
    auto whole = journal("whole.db"), sampled = journal("sampled.db");
    NoProgress progress;
    run(whole, progress);
    SweepOptions options;
    int sampled_tensors = 0;
    options.quantize_rows = [&, of_source = row_quantizer(source_)](const std::string& name, const Encoding& type,
                                                                    std::span<const std::int64_t> rows) {
        EXPECT_LE(2 * std::ssize(rows), source_.find(name)->shape[1]) << name;
        ++sampled_tensors;
        return of_source(name, type, rows);
    };
    run_sweep(engine_, windows_, plan_, quantizer(), sampled, progress, options);
    EXPECT_GT(sampled_tensors, 0);
    int estimated = 0;
    for (const auto& row : whole.measurements()) {
        const auto other = sampled.find(row.tensor, row.type, row.tier);
        ASSERT_TRUE(other) << row.tensor << " " << row.type;
        // Anchors are measured whole, and what is looked up is all that there is of an embedding.
        if (row.type != "q6_K" || row.tensor == "token_embd.weight") {
            if (row.tensor == "output.weight") continue;
            EXPECT_EQ(other->local_energy, row.local_energy) << row.tensor << " " << row.type;
            EXPECT_EQ(other->kld, row.kld) << row.tensor << " " << row.type;
            continue;
        }
        const auto& expected = row.tier == Tier::fast ? row.local_energy : row.kld;
        const auto& found = row.tier == Tier::fast ? other->local_energy : other->kld;
        ASSERT_EQ(found.size(), expected.size());
        for (std::size_t w = 0; w < found.size(); ++w)
            EXPECT_NEAR(found[w] / expected[w], 1.0, 0.4) << row.tensor << " in window " << w;
        estimated += *other == row ? 0 : 1;
    }
    EXPECT_GT(estimated, 0) << "nothing was sampled";
}

TEST_F(RunSweep, sampled_figures_do_not_depend_on_what_was_measured_before) {
    SweepOptions options;
    options.quantize_rows = row_quantizer(source_);
    NoProgress progress;
    auto at_once = journal("at-once.db"), into = journal("later.db");
    run_sweep(engine_, windows_, plan_, quantizer(), at_once, progress, options);
    for (auto& tensor : plan_) tensor.windows = 1;
    run_sweep(engine_, windows_, plan_, quantizer(), into, progress, options);
    for (auto& tensor : plan_) tensor.windows = 0;
    run_sweep(engine_, windows_, plan_, quantizer(), into, progress, options);
    EXPECT_EQ(rows_of(into), rows_of(at_once));
}

}  // namespace
}  // namespace cerebellum
