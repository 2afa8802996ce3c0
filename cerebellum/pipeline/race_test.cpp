#include "cerebellum/pipeline/race.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <utility>
#include <vector>

namespace cerebellum {
namespace {

/// Entrants whose damage is known; each window adds noise of its own and a difficulty that all share.
class Entrants {
  public:
    Entrants(std::size_t n, std::size_t windows, double noise, unsigned seed) {
        std::mt19937_64 random(seed);
        std::normal_distribution<double> normal;
        std::vector<double> difficulty(windows);
        for (auto& d : difficulty) d = std::exp(0.5 * normal(random));
        for (std::size_t e = 0; e < n; ++e) {
            truth_.push_back(std::exp(normal(random)));
            auto& row = sums_.emplace_back();
            for (std::size_t w = 0; w < windows; ++w)
                row.push_back(truth_.back() * difficulty[w] * std::exp(noise * normal(random)));
        }
    }

    RaceCosts costs() {
        return [this](std::span<const std::size_t> who, std::size_t windows) {
            std::vector<double> result;
            for (const auto e : who) {
                auto& known = seen_.emplace(e, 0).first->second;
                measured_ += windows - std::min(windows, known);
                known = std::max(known, windows);
                double sum = 0.0;
                for (std::size_t w = 0; w < windows; ++w) sum += sums_[e][w];
                result.push_back(sum);
            }
            rungs_.emplace_back(who.size(), windows);
            return result;
        };
    }
    /// By the figures of all windows.
    std::size_t best() const {
        const auto total = [&](const std::vector<double>& row) {
            double sum = 0.0;
            for (const double x : row) sum += x;
            return sum;
        };
        return static_cast<std::size_t>(std::ranges::min_element(sums_, {}, total) - sums_.begin());
    }
    std::size_t measured() const { return measured_; }
    const std::vector<std::pair<std::size_t, std::size_t>>& rungs() const { return rungs_; }

  private:
    std::vector<double> truth_;
    std::vector<std::vector<double>> sums_;
    std::map<std::size_t, std::size_t> seen_;
    std::size_t measured_ = 0;
    std::vector<std::pair<std::size_t, std::size_t>> rungs_;
};

TEST(Race, finds_the_best_of_all_at_a_fraction_of_the_windows) {
    int found = 0;
    constexpr int trials = 100;
    for (unsigned seed = 0; seed < trials; ++seed) {
        Entrants entrants(200, 16, 0.1, seed);
        const auto order = run_race(200, 16, 1, 3, entrants.costs());
        found += order.front() == entrants.best() ? 1 : 0;
        EXPECT_LT(entrants.measured(), 200U * 16 / 4) << "of what measuring all of them would take";
    }
    EXPECT_GE(found, 97);
}

TEST(Race, goes_from_all_on_few_windows_to_few_on_all) {
    Entrants entrants(100, 8, 0.1, 1);
    const auto order = run_race(100, 8, 1, 3, entrants.costs());
    const std::vector<std::pair<std::size_t, std::size_t>> expected = {{100, 1}, {34, 2}, {12, 4}, {4, 8}};
    EXPECT_EQ(entrants.rungs(), expected);
    EXPECT_EQ(order.size(), 4U);
    Entrants again(100, 8, 0.1, 1);
    EXPECT_EQ(run_race(100, 8, 1, 3, again.costs()), order) << "the same figures, the same answer";
}

TEST(Race, begins_with_as_many_windows_as_it_must_and_measures_few_entrants_on_all) {
    Entrants many(30, 8, 0.1, 2);
    run_race(30, 8, 3, 3, many.costs());
    EXPECT_EQ(many.rungs().front(), (std::pair<std::size_t, std::size_t>{30, 3}));
    EXPECT_EQ(many.rungs().back().second, 8U);
    Entrants few(3, 8, 0.1, 3);
    EXPECT_EQ(run_race(3, 8, 1, 3, few.costs()).front(), few.best());
    EXPECT_EQ(few.rungs().size(), 1U);
    Entrants none(0, 8, 0.1, 4);
    EXPECT_TRUE(run_race(0, 8, 1, 3, none.costs()).empty());
}

TEST(Race, gives_ties_to_the_first) {
    const RaceCosts same = [](std::span<const std::size_t> who, std::size_t) {
        return std::vector<double>(who.size(), 1.0);
    };
    EXPECT_EQ(run_race(20, 4, 1, 2, same).front(), 0U);
}

}  // namespace
}  // namespace cerebellum
