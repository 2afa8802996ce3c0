#include "cerebellum/distribute/dealer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <queue>
#include <random>

namespace cerebellum {
namespace {

using ::testing::ElementsAre;

/// Workers with a pace of their own that die at some moment, on a clock that jumps from event to event.
struct Run {
    double end_s = 0.0;
    std::map<std::size_t, int> times_done;  // by piece
    bool complete = false;
};
struct Worker {
    double pace = 1.0;      // cost per second
    double dies_s = 1e300;  // nobody is told
};

Run simulate(const std::vector<double>& costs, const std::vector<Worker>& workers, double told_after_s = 1e300) {
    Dealer dealer(costs, workers.size());
    Run run;
    struct Event {
        double at_s;
        std::size_t worker;
        std::optional<Dealer::Batch> finished;
        bool operator<(const Event& other) const { return at_s > other.at_s; }
    };
    std::priority_queue<Event> events;
    for (std::size_t w = 0; w < workers.size(); ++w) events.push({0.0, w, std::nullopt});
    while (!events.empty() && !dealer.done()) {
        const auto event = events.top();
        events.pop();
        if (event.at_s > 1e6) break;
        const auto w = event.worker;
        if (event.at_s > workers[w].dies_s) {
            if (event.at_s >= workers[w].dies_s + told_after_s) dealer.lose(w);
            continue;
        }
        if (event.finished && dealer.finish(event.finished->id, event.at_s))
            for (const auto piece : event.finished->pieces) ++run.times_done[piece];
        run.end_s = event.at_s;
        if (const auto batch = dealer.deal(w, event.at_s)) {
            double cost = 0.0;
            for (const auto piece : batch->pieces) cost += costs[piece];
            const double end_s = event.at_s + cost / workers[w].pace;
            events.push({end_s, w, batch});
            if (end_s > workers[w].dies_s && told_after_s < 1e300)
                events.push({workers[w].dies_s + told_after_s + 1e-9, w, std::nullopt});
        } else {
            events.push({event.at_s + 0.5, w, std::nullopt});
        }
    }
    run.complete = dealer.done();
    return run;
}

std::vector<double> some_costs(std::size_t n, unsigned seed) {
    std::mt19937 random(seed);
    std::vector<double> costs;
    for (std::size_t i = 0; i < n; ++i)
        costs.push_back((1.0 + static_cast<double>(random() % 100) / 100.0) *
                        (2.0 - static_cast<double>(i) / static_cast<double>(n)));
    return costs;
}

TEST(Dealer, deals_in_order_much_at_first_and_little_in_the_end) {
    Dealer dealer(std::vector<double>(30, 1.0), 2);
    const auto first = dealer.deal(0, 0.0), second = dealer.deal(1, 0.0);
    EXPECT_THAT(first->pieces, ElementsAre(0, 1, 2, 3, 4));
    EXPECT_EQ(second->pieces.front(), 5U);
    EXPECT_LT(second->pieces.size(), first->pieces.size());
    std::size_t last = 0;
    for (auto batch = dealer.deal(0, 1.0); batch; batch = dealer.deal(0, 1.0)) last = batch->pieces.size();
    EXPECT_EQ(last, 1U);
}

TEST(Dealer, equal_workers_finish_together_and_nothing_is_done_twice) {
    const auto costs = some_costs(500, 1);
    const double sum = std::accumulate(costs.begin(), costs.end(), 0.0);
    for (const std::size_t n : {1U, 2U, 8U, 32U}) {
        const auto run = simulate(costs, std::vector<Worker>(n));
        EXPECT_TRUE(run.complete);
        EXPECT_EQ(run.times_done.size(), costs.size());
        for (const auto& [piece, times] : run.times_done) EXPECT_EQ(times, 1) << piece;
        EXPECT_GT(sum / static_cast<double>(n) / run.end_s, 0.95) << n;
    }
}

TEST(Dealer, faster_workers_get_more) {
    const auto costs = some_costs(300, 2);
    const double sum = std::accumulate(costs.begin(), costs.end(), 0.0);
    const auto run = simulate(costs, {{4.0}, {1.0}, {1.0}});
    EXPECT_GT(sum / 6.0 / run.end_s, 0.93);
}

TEST(Dealer, what_a_lost_worker_had_is_dealt_to_others) {
    Dealer dealer({1.0, 1.0, 1.0}, 2);
    const auto lost = dealer.deal(0, 0.0);
    dealer.lose(0);
    EXPECT_TRUE(dealer.is_lost(0));
    EXPECT_EQ(dealer.workers_left(), 1U);
    EXPECT_FALSE(dealer.deal(0, 1.0)) << "a lost worker gets nothing";
    const auto again = dealer.deal(1, 1.0);
    EXPECT_EQ(again->pieces, lost->pieces);
    // It was only thought lost: what it brings counts for nothing, its batch is somebody else's.
    EXPECT_FALSE(dealer.finish(lost->id, 2.0));
    EXPECT_TRUE(dealer.finish(again->id, 2.0));
    EXPECT_FALSE(dealer.finish(again->id, 2.0));
}

TEST(Dealer, what_is_overdue_is_dealt_once_more_and_the_first_to_finish_counts) {
    Dealer dealer({1.0, 1.0}, 3);
    const auto slow = dealer.deal(0, 0.0), quick = dealer.deal(1, 0.0);
    EXPECT_FALSE(dealer.deal(2, 1000.0)) << "without a pace nothing is overdue";
    EXPECT_TRUE(dealer.finish(quick->id, 10.0));
    EXPECT_FALSE(dealer.deal(1, 39.0)) << "it may still come";
    const auto copy = dealer.deal(1, 41.0);
    ASSERT_TRUE(copy);
    EXPECT_EQ(copy->pieces, slow->pieces);
    EXPECT_FALSE(dealer.deal(2, 42.0)) << "one copy is enough";
    EXPECT_FALSE(dealer.deal(0, 42.0));
    EXPECT_TRUE(dealer.finish(slow->id, 50.0));
    EXPECT_TRUE(dealer.done());
    EXPECT_FALSE(dealer.finish(copy->id, 51.0));
    EXPECT_FALSE(dealer.deal(2, 52.0));
}

RC_GTEST_PROP(Dealers, finish_everything_while_one_worker_lives, ()) {
    const auto costs = some_costs(*rc::gen::inRange<std::size_t>(1, 60), *rc::gen::arbitrary<unsigned>());
    const auto n = *rc::gen::inRange<std::size_t>(1, 6);
    std::vector<Worker> workers(n);
    for (std::size_t w = 1; w < n; ++w) {
        workers[w].pace = *rc::gen::element(0.1, 1.0, 3.0);
        workers[w].dies_s = *rc::gen::element(0.5, 7.0, 30.0, 1e300);
    }
    for (const double told_after_s : {2.0, 1e300}) {
        const auto run = simulate(costs, workers, told_after_s);
        RC_ASSERT(run.complete);
        RC_ASSERT(run.times_done.size() == costs.size());
    }
}

}  // namespace
}  // namespace cerebellum
