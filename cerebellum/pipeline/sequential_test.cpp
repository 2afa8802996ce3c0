#include "cerebellum/pipeline/sequential.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <tuple>

#include "cerebellum/core/error.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/core/stats.h"
#include "cerebellum/predict/curve.h"

namespace cerebellum {
namespace {

const std::vector<ggml_type> types = {GGML_TYPE_Q8_0, GGML_TYPE_Q6_K, GGML_TYPE_Q5_K,   GGML_TYPE_Q4_K,
                                      GGML_TYPE_Q3_K, GGML_TYPE_Q2_K, GGML_TYPE_IQ2_XXS};
constexpr double tokens = 100.0;

struct Noise {
    double window = 0.3;  // common to a window, relative
    double pair = 0.1;    // of each tensor, type and window
    double gain = 0.1;    // of a tensor's gain between windows
};

/// A model that is not there: tensors of known damage, measured on windows with noise.
class World {
  public:
    World(std::size_t n_tensors, std::size_t windows, Noise noise, unsigned seed)
        : windows_(windows), noise_(noise), seed_(seed) {
        std::mt19937_64 random(99);  // the truth is the same for all seeds
        for (std::size_t t = 0; t < n_tensors; ++t) {
            TensorPlan tensor;
            tensor.name = "tensor" + std::to_string(t);
            tensor.types.assign(types.begin(), types.end());
            tensor.anchors = {GGML_TYPE_Q4_K, GGML_TYPE_Q2_K};
            tensor.anchor_stride = 2;
            plan_.push_back(tensor);
            scale_.push_back(std::exp(std::normal_distribution<double>()(random)));
            gain_.push_back(std::exp(0.5 * std::normal_distribution<double>()(random)));
            weights_.push_back(1e5 * static_cast<double>(1 + random() % 8));
        }
    }

    double energy(std::size_t t, ggml_type type) const { return scale_[t] * std::pow(4.0, -bits_per_weight(type)); }
    double damage(std::size_t t, ggml_type type) const {
        return type == GGML_TYPE_F16 ? 0.0 : energy(t, type) * gain_[t];
    }
    double damage(const TypeMap& recipe) const {
        double sum = 0.0;
        for (const auto& [name, type] : recipe) sum += damage(std::stoul(name.substr(6)), type.type);
        return sum;
    }
    std::uint64_t budget(double bits) const {
        double weights = 0.0;
        for (const double n : weights_) weights += n;
        return static_cast<std::uint64_t>(weights * bits / 8.0);
    }

    SweepSummary measure(std::span<const TensorPlan> plan) {
        SweepSummary summary;
        for (const auto& tensor : plan)
            for (const auto type : tensor.types) {
                const bool anchor = std::ranges::find(tensor.anchors, type) != tensor.anchors.end();
                extend_row(tensor.name, type.type, Tier::fast, tensor.fast_windows(windows_), summary);
                if (anchor) extend_row(tensor.name, type.type, Tier::full, tensor.anchor_windows(windows_), summary);
            }
        return summary;
    }
    /// Stops as Ctrl-C does.
    void interrupt_after(int rows) { left_ = rows; }

    std::vector<Measurement> figures() const {
        std::vector<Measurement> all;
        for (const auto& [key, row] : rows_) all.push_back(row);
        return all;
    }

    AllocationProblem problem(std::span<const Measurement> measurements) const {
        AllocationProblem problem;
        const auto curves = fit_curves(measurements);
        for (std::size_t t = 0; t < plan_.size(); ++t) {
            const auto bytes = [&](ggml_type type) {
                return static_cast<std::uint64_t>(weights_[t] * bits_per_weight(type) / 8.0);
            };
            TensorChoices choices{plan_[t].name, {{GGML_TYPE_F16, bytes(GGML_TYPE_F16), 0.0}}};
            for (const auto& point : curves.at(plan_[t].name).points)
                choices.choices.push_back({point.type, bytes(point.type.type), point.kld});
            problem.tensors.push_back(std::move(choices));
        }
        return problem;
    }

    SequentialDesign design() {
        SequentialDesign design;
        design.plan = plan_;
        design.windows = windows_;
        design.tokens_per_window = tokens;
        design.measure = [this](std::span<const TensorPlan> plan) { return measure(plan); };
        design.figures = [this] { return figures(); };
        design.problem = [this](std::span<const Measurement> rows) { return problem(rows); };
        return design;
    }
    const std::vector<TensorPlan>& plan() const { return plan_; }

    double damage_of_recipe(double bits) const { return damage(allocate(problem(figures()), budget(bits)).types); }

  private:
    double draw(std::size_t a, std::size_t b, std::size_t w) const {
        std::seed_seq seeds{static_cast<std::size_t>(seed_), a, b, w};
        std::mt19937 random(seeds);
        return std::normal_distribution<double>()(random);
    }

    void extend_row(const std::string& name, ggml_type type, Tier tier, std::size_t wanted, SweepSummary& summary) {
        const auto t = std::stoul(name.substr(6));
        auto& row = rows_[{name, type, tier}];
        row.tensor = name;
        row.type = type_name(type);
        row.tier = tier;
        if (row.windows() >= wanted) return;
        if (left_ == 0) throw Interrupted("stopped");
        if (left_ > 0) --left_;
        for (auto w = row.windows(); w < wanted; ++w) {
            const double e = energy(t, type) * (1.0 + noise_.window * draw(1000, 0, w)) *
                             (1.0 + noise_.pair * draw(t, static_cast<std::size_t>(type), w));
            row.local_energy.push_back(tokens * e);
            row.local_counts.push_back(tokens);
            summary.tokens += tokens;
            if (tier == Tier::fast) continue;
            row.counts.push_back(tokens);
            row.kld.push_back(tokens * e * gain_[t] * (1.0 + noise_.gain * draw(t, 500, w)));
            row.delta_nll.push_back(row.kld.back());
            row.top1_agree.push_back(tokens);
        }
    }

    std::size_t windows_;
    Noise noise_;
    unsigned seed_;
    int left_ = -1;
    std::vector<TensorPlan> plan_;
    std::vector<double> scale_, gain_, weights_;
    std::map<std::tuple<std::string, ggml_type, Tier>, Measurement> rows_;
};

constexpr double some_bits = 4.0;

SequentialReport run(World& world, double bits = some_bits) {
    NoProgress progress;
    SequentialOptions options;
    options.budgets_bytes = {world.budget(bits)};
    return measure_sequentially(world.design(), options, progress);
}

TEST(Sequential, needs_at_most_half_of_the_tokens_for_as_good_a_recipe) {
    double sequential = 0.0, fixed = 0.0, tokens_used = 0.0, tokens_fixed = 0.0;
    for (unsigned seed = 1; seed <= 10; ++seed)
        for (const double bits : {2.8, 4.0, 5.5}) {
            World some(30, 16, {}, seed), all(30, 16, {}, seed);
            const auto report = run(some, bits);
            const auto summary = all.measure(all.plan());
            EXPECT_DOUBLE_EQ(report.fixed_tokens, summary.tokens);
            EXPECT_DOUBLE_EQ(report.tokens, report.sweep.tokens);
            EXPECT_LE(report.expected_loss.front(), 0.01);  // where all windows are used up, a little is left
            tokens_used += report.tokens;
            tokens_fixed += report.fixed_tokens;
            sequential += some.damage_of_recipe(bits);
            fixed += all.damage_of_recipe(bits);
        }
    EXPECT_LT(tokens_used, 0.5 * tokens_fixed);
    EXPECT_LT(sequential, 1.01 * fixed);
}

TEST(Sequential, spends_more_where_there_is_more_noise) {
    World quiet(20, 16, {0.3, 0.02, 0.02}, 1), noisy(20, 16, {0.3, 0.4, 0.4}, 1);
    const auto little = run(quiet), much = run(noisy);
    EXPECT_LT(little.tokens, much.tokens);
    EXPECT_GT(much.rounds, 1U);
    // What all tensors have in common makes windows differ and choices not.
    World common(20, 16, {0.6, 0.02, 0.02}, 1);
    EXPECT_LT(run(common).tokens, much.tokens);
}

TEST(Sequential, spends_little_on_types_far_from_the_budget) {
    World world(20, 16, {0.3, 0.05, 0.05}, 1);
    run(world, 5.0);
    double far = 0.0, near = 0.0;
    for (const auto& row : world.figures()) {
        if (row.tier != Tier::fast) continue;
        if (row.type == "iq2_xxs") far += static_cast<double>(row.windows());
        if (row.type == "q5_K") near += static_cast<double>(row.windows());
    }
    EXPECT_LE(far, 1.5 * 20 * 2);
    EXPECT_GT(near, far);
}

TEST(Sequential, interrupted_anywhere_comes_to_the_same_figures) {
    const Noise noise = {0.3, 0.3, 0.2};
    World undisturbed(10, 16, noise, 1);
    const auto report = run(undisturbed);
    ASSERT_GT(report.rounds, 2U);
    for (const int after : {1, 50, 95, 110, 125}) {
        World world(10, 16, noise, 1);
        world.interrupt_after(after);
        EXPECT_THROW(run(world), Interrupted) << after;
        world.interrupt_after(-1);
        const auto again = run(world);
        EXPECT_EQ(world.figures(), undisturbed.figures()) << after;
        EXPECT_EQ(again.tokens, report.tokens);
        EXPECT_LT(again.sweep.tokens, report.sweep.tokens);
    }
}

TEST(Sequential, stopping_early_leaves_figures_unbiased_and_intervals_right) {
    double bias = 0.0, square = 0.0, covered = 0.0, n = 0.0, early = 0.0;
    for (unsigned seed = 1; seed <= 60; ++seed) {
        World world(10, 16, {0.05, 0.3, 0.2}, seed);
        run(world);
        for (const auto& row : world.figures()) {
            if (row.tier != Tier::fast || row.windows() < 2) continue;
            const auto type = *parse_type(row.type);
            const double truth = world.energy(std::stoul(row.tensor.substr(6)), type);
            const auto estimate = clustered_mean(row.local_energy, row.local_counts);
            const auto interval = confidence_interval(estimate);
            // In units of what the windows that were taken would scatter by.
            const double z = (estimate.mean / truth - 1.0) / (0.304 / std::sqrt(static_cast<double>(row.windows())));
            bias += z;
            square += z * z;
            covered += interval.lower <= truth && truth <= interval.upper;
            early += row.windows() > 2 && row.windows() < 16;
            ++n;
        }
    }
    EXPECT_GT(early / n, 0.02) << "too few were stopped in between for this to say anything";
    EXPECT_NEAR(bias / n, 0.0, 0.1);
    EXPECT_NEAR(square / n, 1.0, 0.15);
    EXPECT_GT(covered / n, 0.92);
    EXPECT_LT(covered / n, 0.98);
}

TEST(Sequential, with_few_windows_takes_what_there_is) {
    World world(5, 1, {}, 1);
    const auto report = run(world);
    EXPECT_EQ(report.rounds, 1U);
    EXPECT_LE(report.tokens, report.fixed_tokens);
}

}  // namespace
}  // namespace cerebellum
