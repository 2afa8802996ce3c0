#include "cerebellum/pipeline/search.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <random>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "cerebellum/core/quant_type.h"

namespace cerebellum {
namespace {

const std::vector<ggml_type> types = {GGML_TYPE_Q8_0, GGML_TYPE_Q6_K, GGML_TYPE_Q4_K, GGML_TYPE_Q3_K, GGML_TYPE_Q2_K};
constexpr double tokens = 100.0;

/// A model that is not there. The damage of tensors adds up; predictions are off by a factor for each choice, and a
/// window's figures by what the window has to do with each choice.
class World {
  public:
    World(std::size_t n_tensors, double prediction_error, double window_noise, unsigned seed) : noise_(window_noise) {
        std::mt19937_64 random(seed);
        std::normal_distribution<double> normal;
        seed_ = random();
        for (std::size_t t = 0; t < n_tensors; ++t) {
            const double scale = std::exp(normal(random));
            const auto weights = 256 * (1 + random() % 8);
            auto& tensor = predicted_.tensors.emplace_back();
            auto& real = truth_.tensors.emplace_back();
            tensor.name = real.name = "t" + std::to_string(t);
            for (const auto type : types) {
                const double bits = bits_per_weight(type);
                const double damage =
                    scale * static_cast<double>(weights) * std::pow(4.0, -bits) * std::exp(0.1 * normal(random));
                const auto bytes = static_cast<std::uint64_t>(bits / 8.0 * static_cast<double>(weights));
                tensor.choices.push_back({type, bytes, damage});
                real.choices.push_back({type, bytes, damage * std::exp(prediction_error * normal(random))});
            }
        }
        std::uint64_t least = smallest_file_bytes(truth_), most = 0;
        for (const auto& tensor : truth_.tensors) most += tensor.choices.front().bytes;
        budget_bytes_ = least + (most - least) / 4;
    }

    AllocationProblem& predicted() { return predicted_; }
    std::uint64_t budget_bytes() const { return budget_bytes_; }
    TypeMap best_predicted() const { return allocate(predicted_, budget_bytes_).types; }
    SearchResult search(const TypeMap& start, const RecipeScorer& trial) const {
        NoProgress progress;
        return search_recipe({predicted_, budget_bytes_, start}, trial, progress);
    }
    const AllocationProblem& truth() const { return truth_; }

    static const TypeChoice& choice(const TensorChoices& tensor, const TypeMap& recipe) {
        return *std::ranges::find(tensor.choices, recipe.at(tensor.name), &TypeChoice::type);
    }
    double damage(const TypeMap& recipe) const {
        double sum = 0.0;
        for (const auto& tensor : truth_.tensors) sum += choice(tensor, recipe).cost;
        return sum;
    }
    std::uint64_t bytes(const TypeMap& recipe) const {
        std::uint64_t sum = 0;
        for (const auto& tensor : truth_.tensors) sum += choice(tensor, recipe).bytes;
        return sum;
    }

    /// Ends after so many calls, as a clock would.
    RecipeScorer trial(int calls = 1 << 30) {
        calls_ = 0;
        return [this, calls](std::span<const TypeMap> recipes,
                             SearchWindows windows) -> std::optional<std::vector<std::vector<WindowScore>>> {
            if (calls_ == calls) return std::nullopt;
            ++calls_;
            const std::size_t first = windows == SearchWindows::explore ? 0 : 16;
            const std::size_t n = windows == SearchWindows::explore ? 16 : 32;
            std::vector<std::vector<WindowScore>> scores;
            for (const auto& recipe : recipes) {
                EXPECT_EQ(recipe.size(), truth_.tensors.size());
                auto& row = scores.emplace_back();
                for (std::size_t w = first; w < first + n; ++w) row.push_back(score(recipe, w));
            }
            return scores;
        };
    }

    int calls() const { return calls_; }

  private:
    WindowScore score(const TypeMap& recipe, std::size_t window) const {
        std::mt19937_64 of_window(seed_ + 7919 * window);
        std::normal_distribution<double> normal;
        const double difficulty = std::exp(0.4 * normal(of_window) - 0.08);
        double sum = 0.0;
        for (std::size_t t = 0; t < truth_.tensors.size(); ++t) {
            const auto& made = choice(truth_.tensors[t], recipe);
            std::mt19937_64 own(seed_ + 7919 * window + 104729 * (t + 1) +
                                1299709ULL * static_cast<unsigned>(made.type.type));
            std::normal_distribution<double> noise;
            sum += made.cost * (1.0 + noise_ * noise(own));
        }
        return {tokens, tokens * difficulty * sum, 0.0, 0.0, tokens};
    }

    double noise_;
    std::uint64_t seed_ = 0;
    int calls_ = 0;
    AllocationProblem predicted_, truth_;
    std::uint64_t budget_bytes_ = 0;
};

TEST(Search, finds_what_wrong_predictions_have_missed) {
    double possible = 0.0, gained = 0.0;
    std::size_t accepted = 0, wrong = 0;
    for (unsigned seed = 0; seed < 20; ++seed) {
        World world(24, 0.3, 0.1, seed);
        const auto start = world.best_predicted();
        const auto found = world.search(start, world.trial());
        EXPECT_TRUE(found.exhausted);
        EXPECT_LE(world.bytes(found.types), world.budget_bytes());
        possible += 1.0 - world.damage(allocate(world.truth(), world.budget_bytes()).types) / world.damage(start);
        gained += 1.0 - world.damage(found.types) / world.damage(start);
        auto recipe = start;
        for (const auto& step : found.steps) {
            EXPECT_FALSE(step.to.empty());
            auto after = recipe;
            for (const auto& [tensor, type] : step.to) {
                EXPECT_EQ(recipe.at(tensor), step.from.at(tensor));
                after[tensor] = type;
            }
            EXPECT_EQ(step.file_bytes, world.bytes(after));
            EXPECT_LE(step.file_bytes, world.budget_bytes());
            EXPECT_EQ(step.accepted, step.p <= step.level);
            if (!step.accepted) continue;
            ++accepted;
            wrong += world.damage(after) >= world.damage(recipe) ? 1 : 0;
            recipe = after;
        }
        EXPECT_EQ(recipe, found.types);
    }
    EXPECT_GE(accepted, 20U);
    EXPECT_LE(wrong, accepted / 20);
    EXPECT_GT(gained, 0.5 * possible) << "of what exact figures would have gained";
}

TEST(Search, hardly_ever_leaves_the_best_recipe_there_is) {
    constexpr unsigned worlds = 300;
    unsigned left = 0;
    std::size_t tests = 0;
    for (unsigned seed = 0; seed < worlds; ++seed) {
        // The predictions mislead and the windows are noisy, but nothing is better than the start.
        World world(12, 0.3, 0.6, seed);
        const auto best = allocate(world.truth(), world.budget_bytes());
        ASSERT_TRUE(best.exact);
        const auto found = world.search(best.types, world.trial());
        tests += found.steps.size();
        left += found.accepted() > 0 ? 1 : 0;
    }
    EXPECT_GE(tests, worlds / 2) << "there was something to be misled by";
    // 5 %, and three standard deviations of the count.
    EXPECT_LE(left, static_cast<unsigned>(0.05 * worlds + 3.0 * std::sqrt(0.05 * 0.95 * worlds)));
}

TEST(Search, that_is_cut_short_has_done_the_first_steps_of_a_longer_one) {
    World world(24, 0.3, 0.1, 3);
    const auto start = world.best_predicted();
    const auto whole = world.search(start, world.trial());
    ASSERT_GE(whole.steps.size(), 2U);
    const int all_calls = world.calls();
    const auto again = world.search(start, world.trial());
    EXPECT_EQ(again.types, whole.types);
    for (int calls = 0; calls < all_calls; ++calls) {
        const auto part = world.search(start, world.trial(calls));
        EXPECT_FALSE(part.exhausted);
        ASSERT_LE(part.steps.size(), whole.steps.size());
        auto recipe = start;
        for (std::size_t i = 0; i < part.steps.size(); ++i) {
            EXPECT_EQ(part.steps[i].to, whole.steps[i].to);
            EXPECT_EQ(part.steps[i].p, whole.steps[i].p);
            if (part.steps[i].accepted)
                for (const auto& [tensor, type] : part.steps[i].to) recipe[tensor] = type;
        }
        EXPECT_EQ(part.types, recipe);
    }
}

TEST(Search, keeps_to_couplings_and_the_number_of_types) {
    std::size_t accepted = 0;
    for (unsigned seed = 0; seed < 5; ++seed) {
        World world(12, 0.5, 0.05, seed);
        auto& problem = world.predicted();
        problem.coupled = {{0, 1, 2}, {5, 6}};
        problem.max_types = 3;
        const auto found = world.search(world.best_predicted(), world.trial());
        accepted += found.accepted();
        EXPECT_EQ(found.types.at("t0"), found.types.at("t1"));
        EXPECT_EQ(found.types.at("t0"), found.types.at("t2"));
        EXPECT_EQ(found.types.at("t5"), found.types.at("t6"));
        std::set<ggml_type> used;
        for (const auto& [tensor, type] : found.types) used.insert(type.type);
        EXPECT_LE(used.size(), 3U);
        EXPECT_LE(world.bytes(found.types), world.budget_bytes());
    }
    EXPECT_GE(accepted, 3U);
}

}  // namespace
}  // namespace cerebellum
