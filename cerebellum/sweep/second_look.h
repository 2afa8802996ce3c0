#pragma once

#include <cstdint>
#include <functional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "cerebellum/sweep/figure_store.h"
#include "cerebellum/sweep/plan.h"
#include "cerebellum/sweep/remeasure.h"

namespace cerebellum {

/// What becomes of the figures of a sweep that are not believed. All of them are measured again apart from the rest
/// (Remeasure): first on the sweep's device, then, a few of them, on the CPU, which is the judge. What cannot be had so
/// is recorded as unusable. On an engine that is the judge itself only what is no number is doubted.
class SecondLook {
  public:
    using Quantize = std::function<std::vector<std::byte>(const std::string& tensor, const Encoding& type)>;

    SecondLook(ReplayEngine& engine, const SweepMap& map, std::span<const Window> windows,
               const std::vector<LiveState>& at_head, const Quantize& quantize, FigureStore& figures,
               Progress& progress);

    /// A pair without figures in these extents, and why: to be measured again.
    void set_aside(const Remeasure::Pair& pair, std::string why);
    /// A pair was measured in the fast tier: it is there to be compared with its neighbours and with itself.
    void note(const Remeasure::Pair& pair);
    /// A tensor's figures in all types are there: doubts those that stand out. Whether there were any.
    bool compare_types(const TensorPlan& tensor, Tier tier);
    /// Now and then: measures a pair that was noted since the last call once more, in one window. Throws Error where
    /// the device has disagreed with itself too often.
    void check_device();
    /// Measures again what is set aside or doubted, and records what comes of it.
    void resolve();
    /// Gives a tensor whose anchors are all unusable others, so that its fast figures have something to be scaled by.
    /// Where there is none, they are unusable as well.
    void replace_anchors(const TensorPlan& tensor);

    std::size_t unusable() const { return unusable_; }

  private:
    struct Item {
        Remeasure::Pair pair;
        std::string why;
        bool is_stored = false;  // a doubt
        bool repeats = false;    // of a doubt: whether repeating itself clears it
    };

    bool doubt(const Remeasure::Pair& pair, std::string why, bool repeats);
    void resolve(const Item& item);
    bool settle_doubt(const Item& item, std::span<const std::byte> bytes, std::string& why);
    bool measure(const Item& item, std::span<const std::byte> bytes, bool on_the_cpu, Remeasure::Figures& figures,
                 std::string& why);
    bool may_use_the_cpu(const Remeasure::Pair& pair);
    void store(Measurement measured, const Extent& extent);
    void give_up(const Remeasure::Pair& pair, const std::string& why);
    Measurement stored(const Remeasure::Pair& pair, Tier tier, const Extent& extent) const;

    ReplayEngine& engine_;
    const SweepMap& map_;
    std::span<const Window> windows_;
    const Quantize& quantize_;
    FigureStore& figures_;
    Progress& progress_;
    Remeasure remeasure_;
    std::vector<Item> items_;
    std::set<std::pair<std::string, Encoding>> settled_;  // doubted, and looked at
    std::vector<Remeasure::Pair> noted_;
    std::size_t since_check_ = 0;  // pairs noted
    std::size_t checks_ = 0, disagreements_ = 0;
    std::size_t unusable_ = 0;
    int on_the_cpu_left_;
    std::uint64_t random_ = 1;
};

}  // namespace cerebellum
