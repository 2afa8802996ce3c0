#include "cerebellum/distribute/executor.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <deque>
#include <mutex>
#include <set>
#include <thread>

#include "cerebellum/core/error.h"
#include "cerebellum/core/quant_type.h"

namespace cerebellum {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;

/// Ranks that are threads, and post boxes instead of MPI.
struct PostOffice {
    explicit PostOffice(int ranks) : boxes(static_cast<std::size_t>(ranks)) {}
    std::mutex mutex;
    std::vector<std::deque<Group::Message>> boxes;
};

class ThreadGroup final : public Group {
  public:
    ThreadGroup(PostOffice& office, int rank) : office_(office), rank_(rank) {}
    int rank() const override { return rank_; }
    int size() const override { return static_cast<int>(office_.boxes.size()); }
    int local_rank() const override { return rank_; }
    int local_size() const override { return size(); }
    bool send(int to, std::string_view bytes) override {
        const std::lock_guard lock(office_.mutex);
        office_.boxes[static_cast<std::size_t>(to)].push_back({rank_, std::string(bytes)});
        return true;
    }
    std::optional<Message> poll() override {
        const std::lock_guard lock(office_.mutex);
        auto& box = office_.boxes[static_cast<std::size_t>(rank_)];
        if (box.empty()) return std::nullopt;
        auto message = std::move(box.front());
        box.pop_front();
        return message;
    }
    void abandon(int code) override { std::_Exit(code); }

  private:
    PostOffice& office_;
    int rank_;
};

/// A figure that depends on tensor, type and window alone.
double figure(const std::string& tensor, const Encoding& type, std::size_t window) {
    return static_cast<double>(std::hash<std::string>{}(tensor) % 1000) / 7.0 + static_cast<double>(type.type) +
           0.001 * static_cast<double>(window);
}

constexpr std::size_t all_windows = 3;

/// Measures nothing, but keeps to the rules: extends what is known, records at once.
SweepSummary fake_trial(std::span<const TensorPlan> plan, FigureStore& figures, Progress& progress,
                        const std::function<void()>& before_each = {}) {
    SweepSummary summary;
    for (const auto& tensor : plan)
        for (const auto type : tensor.types) {
            if (before_each) before_each();
            progress.advance(0.0, tensor.name);
            progress.check();
            auto row = figures.find(tensor.name, type_name(type), Tier::full).value_or(Measurement{});
            if (row.windows() >= tensor.fast_windows(all_windows)) {
                ++summary.resumed;
                continue;
            }
            row.tensor = tensor.name;
            row.type = type_name(type);
            row.tier = Tier::full;
            for (auto w = row.windows(); w < tensor.fast_windows(all_windows); ++w) {
                row.counts.push_back(1.0);
                row.kld.push_back(figure(tensor.name, type, w));
                row.delta_nll.push_back(-0.0);
                row.top1_agree.push_back(1.0 / 3.0);
            }
            figures.record(row);
            ++summary.full_measured;
        }
    return summary;
}

std::vector<WorkItem> some_items(std::size_t n) {
    std::vector<WorkItem> items;
    for (std::size_t i = 0; i < n; ++i) {
        WorkItem item;
        item.plan.name = fmt::format("blk.{}.w", i);
        item.plan.types = {GGML_TYPE_Q4_0, GGML_TYPE_Q2_K};
        item.cost = static_cast<double>(2 * n - i);
        items.push_back(item);
    }
    return items;
}

class CountedFigures final : public HeldFigures {
  public:
    void record(const Measurement& row) override {
        ++times[row.tensor + row.type];
        HeldFigures::record(row);
    }
    std::map<std::string, int> times;
};

class Warnings final : public Progress {
  public:
    void begin(std::string_view, double) override {}
    void advance(double, std::string_view) override {}
    void end() override {}
    void warn(std::string_view message) override { all.emplace_back(message); }
    void info(std::string_view) override {}
    void detail(std::string_view) override {}
    std::vector<std::string> all;
};

class Executor : public ::testing::Test {
  protected:
    ~Executor() override { Progress::stop_requested = false; }

    /// Rank 0 in this thread, the others as they are given.
    SweepSummary run(const std::vector<std::function<void(Group&)>>& others, const std::vector<WorkItem>& items,
                     FigureStore& figures, const Trial& trial = simple()) {
        PostOffice office(1 + static_cast<int>(others.size()));
        std::vector<std::thread> threads;
        for (std::size_t i = 0; i < others.size(); ++i)
            threads.emplace_back([&office, &others, i] {
                ThreadGroup group(office, static_cast<int>(i) + 1);
                others[i](group);
            });
        ThreadGroup group(office, 0);
        SweepSummary summary;
        std::exception_ptr failure;
        try {
            GroupExecutor executor(group);
            summary = executor.measure(items, trial, figures, warnings_);
        } catch (...) {
            failure = std::current_exception();
        }
        for (auto& thread : threads) thread.join();
        if (failure) std::rethrow_exception(failure);
        return summary;
    }

    static Trial simple() {
        return [](std::span<const TensorPlan> plan, FigureStore& figures, Progress& progress) {
            return fake_trial(plan, figures, progress,
                              [] { std::this_thread::sleep_for(std::chrono::microseconds(200)); });
        };
    }
    static void serves(Group& group) {
        NoProgress progress;
        try {
            serve(group, simple(), progress);
        } catch (const Interrupted&) {
            // Ranks are processes, but here they are threads, and what rank 0 sets to stop its own worker stops all.
        }
    }

    void expect_all(const std::vector<WorkItem>& items, const FigureStore& figures) {
        for (const auto& item : items)
            for (const auto type : item.plan.types) {
                const auto row = figures.find(item.plan.name, type_name(type), Tier::full);
                ASSERT_TRUE(row) << item.plan.name;
                ASSERT_EQ(row->windows(), all_windows);
                for (std::size_t w = 0; w < all_windows; ++w) EXPECT_EQ(row->kld[w], figure(item.plan.name, type, w));
                EXPECT_TRUE(std::signbit(row->delta_nll[0]));
            }
    }

    Warnings warnings_;
};

TEST_F(Executor, brings_every_figure_once) {
    const auto items = some_items(40);
    CountedFigures figures;
    const auto summary = run({serves, serves, serves}, items, figures);
    expect_all(items, figures);
    EXPECT_EQ(summary.full_measured, 80U);
    for (const auto& [row, times] : figures.times) EXPECT_EQ(times, 1) << row;
    EXPECT_TRUE(warnings_.all.empty());
}

TEST_F(Executor, brings_what_is_unusable_and_what_was_put_right) {
    const auto items = some_items(4);
    const Trial trial = [](std::span<const TensorPlan> plan, FigureStore& figures, Progress& progress) {
        auto summary = fake_trial(plan, figures, progress);
        for (const auto& tensor : plan) {
            if (figures.find_unusable(tensor.name, "q2_K")) continue;
            auto row = figures.find(tensor.name, "q4_0", Tier::full).value();
            row.kld[0] = 0.5;
            figures.record(row);
            figures.record_unusable({tensor.name, "q2_K", Tier::full, "why"});
            ++summary.unusable;
        }
        return summary;
    };
    HeldFigures figures;
    figures.record_unusable({items[0].plan.name, "q2_K", Tier::full, "known before"});
    const auto summary = run({[&](Group& group) {
                                 NoProgress progress;
                                 serve(group, trial, progress);
                             }},
                             items, figures, trial);
    EXPECT_EQ(summary.unusable, items.size() - 1);
    for (const auto& item : items) {
        const bool known = &item == &items[0];
        EXPECT_EQ(figures.find_unusable(item.plan.name, "q2_K")->reason, known ? "known before" : "why");
        EXPECT_EQ(figures.find(item.plan.name, "q4_0", Tier::full)->kld[0],
                  known ? figure(item.plan.name, GGML_TYPE_Q4_0, 0) : 0.5);
    }
}

TEST_F(Executor, alone_needs_nobody) {
    const auto items = some_items(5);
    CountedFigures figures;
    EXPECT_EQ(run({}, items, figures).full_measured, 10U);
    expect_all(items, figures);
}

TEST_F(Executor, goes_on_from_what_is_there) {
    const auto items = some_items(20);
    CountedFigures figures;
    auto fewer = items;
    fewer.resize(7);
    for (auto& item : fewer) item.plan.windows = 2;
    run({serves}, fewer, figures);
    const auto summary = run({serves}, items, figures);
    expect_all(items, figures);
    EXPECT_EQ(summary.full_measured, 40U);
    EXPECT_EQ(run({serves, serves}, items, figures).full_measured, 0U);
    EXPECT_EQ(figures.times["blk.0.wq4_0"], 2);
    EXPECT_EQ(figures.times["blk.9.wq4_0"], 1);
}

TEST_F(Executor, does_the_work_of_ranks_that_fail) {
    const auto items = some_items(30);
    CountedFigures figures;
    const auto fails = [](Group& group) {
        NoProgress progress;
        int left = 3;
        try {
            serve(
                group,
                [&](std::span<const TensorPlan> plan, FigureStore& into, Progress& its) {
                    return fake_trial(plan, into, its, [&] {
                        if (--left == 0) throw Error("no memory left");
                    });
                },
                progress);
        } catch (const Error& error) {
            give_up(group, error.what());
        }
    };
    const auto never_comes = [](Group&) {};
    run({fails, serves, never_comes, fails}, items, figures);
    expect_all(items, figures);
    for (const auto& [row, times] : figures.times) EXPECT_EQ(times, 1) << row;
    EXPECT_THAT(warnings_.all, Contains(HasSubstr("rank 1 gave up: no memory left")));
}

TEST_F(Executor, a_failure_on_rank_0_ends_the_round_and_keeps_what_has_come) {
    const auto items = some_items(30);
    const auto silent = [](Group&) {};
    using Rank = std::function<void(Group&)>;
    for (const auto& others : {std::vector<Rank>{serves, serves}, std::vector<Rank>{silent}}) {
        CountedFigures figures;
        std::atomic<int> left = 4;
        EXPECT_THROW(run(others, items, figures,
                         [&](std::span<const TensorPlan> plan, FigureStore& into, Progress& its) {
                             return fake_trial(plan, into, its, [&] {
                                 if (--left == 0) throw Error("the device is gone");
                             });
                         }),
                     Error);
        EXPECT_GE(figures.times.size(), 3U);
        EXPECT_LT(figures.times.size(), 60U);
        // A rank that works when it is told to stop sets this for its own process, which here is rank 0's, too.
        if (others.size() == 1) {
            EXPECT_FALSE(Progress::stop_requested);
        }
        Progress::stop_requested = false;
    }
}

TEST_F(Executor, hands_out_bytes_and_lets_go) {
    PostOffice office(2);
    ThreadGroup zero(office, 0), one(office, 1);
    NoProgress progress;
    const std::string bytes("a\0b\xff", 4);
    {
        GroupExecutor executor(zero);
        executor.hand_out(bytes);
        EXPECT_EQ(receive(one, progress), bytes);
    }
    EXPECT_THROW(receive(one, progress), Interrupted);
}

}  // namespace
}  // namespace cerebellum
