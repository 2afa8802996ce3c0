#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cerebellum/core/progress.h"
#include "cerebellum/distribute/group.h"
#include "cerebellum/sweep/figure_store.h"
#include "cerebellum/sweep/runner.h"
#include "cerebellum/sweep/split.h"

namespace cerebellum {

/// Measures what a plan asks for and the store does not hold yet, and records every figure the moment it is there.
using Trial = std::function<SweepSummary(std::span<const TensorPlan>, FigureStore&, Progress&)>;

/// On rank 0: has work done by all ranks of a group, this one included. The group must outlive it.
class GroupExecutor {
  public:
    explicit GroupExecutor(Group& group);
    /// Lets the other ranks go.
    ~GroupExecutor();
    GroupExecutor(const GroupExecutor&) = delete;
    GroupExecutor& operator=(const GroupExecutor&) = delete;

    const Group& group() const { return group_; }

    /// Sends the same bytes to all other ranks, where receive() waits for them.
    void hand_out(const std::string& bytes);

    /// Has the items measured and records every figure when it arrives. Items should come in the order in which the
    /// graph reads their tensors. Figures that are there already are not measured again. What a rank that gave up, is
    /// gone or is far behind had to do is dealt to others, with a warning.
    ///
    /// In a group of one the trial simply measures everything. Otherwise it runs in a thread of its own, everything
    /// else in the caller's. Throws what the trial throws here, on rank 0; figures that have arrived are kept.
    SweepSummary measure(std::span<const WorkItem> items, const Trial& trial, FigureStore& figures, Progress& progress);

  private:
    class Round;
    Group& group_;
    std::size_t rounds_ = 0;
    std::vector<bool> idle_;     // by rank: it has said that it has nothing to do
    std::vector<bool> gave_up_;  // by rank
};

/// On the other ranks: the bytes that rank 0 hands out. Throws Interrupted where it lets us go instead.
std::string receive(Group& group, const Progress& progress);

/// On the other ranks: measures what rank 0 deals, until it lets us go. Throws what the trial throws, and Interrupted
/// where it is let go in the middle of work that others have done meanwhile.
void serve(Group& group, const Trial& trial, Progress& progress);

/// On the other ranks: tells rank 0 that this rank cannot go on, and waits until it lets us go.
void give_up(Group& group, const std::string& why);

}  // namespace cerebellum
