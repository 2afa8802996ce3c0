#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cerebellum/core/encoding.h"
#include "cerebellum/core/figure_error.h"
#include "cerebellum/core/progress.h"
#include "cerebellum/journal/journal.h"
#include "cerebellum/replay/engine.h"
#include "cerebellum/sweep/extent.h"
#include "cerebellum/sweep/sweep_map.h"

namespace cerebellum {

/// To be thrown where a device cannot compute with the model's own weights: it is gone.
Error device_is_gone(const FigureError& reason);

/// Measures one change apart from everything else: everything that it needs is replayed anew, one window at a time,
/// and the device is waited for after each. Figures that a sweep does not believe are measured so again, on the sweep's
/// own device or, the change's block, on the CPU. Everything given to it must outlive it. Not thread-safe.
class Remeasure {
  public:
    /// `at_head` are the source's live states at the head, by window, as far as they are known.
    Remeasure(ReplayEngine& engine, const SweepMap& map, std::span<const Window> windows,
              const std::vector<LiveState>& at_head, Progress& progress)
        : engine_(engine), map_(map), windows_(windows), at_head_(at_head), progress_(progress) {}
    ~Remeasure();

    struct Pair {
        std::string tensor;
        Encoding type;
        Extent fast, full;
    };
    /// Of these windows only; the tier that was not asked for is empty.
    struct Figures {
        Measurement fast, full;
    };
    /// `bytes`: the tensor in its type. On the CPU the source's state comes from the device, and what is behind the
    /// block runs there again, unless it reads the changed weight too. Throws FigureError where the change cannot be
    /// computed, Error where the source cannot either: then the device is gone.
    Figures measure(const Pair& pair, std::span<const std::byte> bytes, bool on_the_cpu);
    /// Lets go of the states that the next pair of the same block would have needed.
    void rest() { known_.clear(); }

  private:
    using States = std::map<std::size_t, LiveState>;  // by window

    States states_at(std::size_t range, const std::vector<std::size_t>& windows);
    LiveState at_head(std::size_t w);
    ReplayEngine& cpu();
    const Window& window(const ReplayEngine& engine, std::size_t w);
    LiveState through_block(ReplayEngine& engine, const SweepMap::Place& place, const Substitutions& changed,
                            std::size_t w, LiveState state, double& energy);
    WindowScore score(ReplayEngine& engine, const SweepMap::Place& place, const Substitutions& changed, std::size_t w,
                      LiveState state);

    ReplayEngine& engine_;
    const SweepMap& map_;
    std::span<const Window> windows_;
    const std::vector<LiveState>& at_head_;
    Progress& progress_;
    std::unique_ptr<ReplayEngine> cpu_;
    std::map<std::size_t, Window> cpu_windows_;
    States made_at_head_;
    std::size_t known_range_ = 0;  // that known_ is in front of
    States known_;
};

}  // namespace cerebellum
