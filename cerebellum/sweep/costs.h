#pragma once

#include <cstddef>
#include <map>

#include "cerebellum/core/encoding.h"
#include "cerebellum/sweep/sweep_map.h"

namespace cerebellum {

/// How long this machine takes for what a job is made of. Measured in a moment by measure_rates(), or made up by tests.
/// The defaults are of a desktop and only good for their proportions.
struct Rates {
    /// Seconds per weight, all threads of the job at work. Where a type is not listed: that of the listed type of
    /// nearest bits per weight, or `quantize_default_s`.
    std::map<Encoding, double> quantize_s;
    double quantize_default_s = 5e-8;
    /// Feedback takes so many times as long for each weight and column of its matrix as ggml's rounding of it before.
    double feedback_s = 1e-10;  // seconds per weight and column
    double replay_s = 2e-11;    // per floating-point operation of a block
    double head_s = 2e-11;      // the same behind the last block, scoring included
    double sample_s = 1e-3;     // per token of text that the model writes, several sequences side by side
    double write_s = 2e-9;      // per byte of an output

    /// Seconds for so many weights in rows of `columns`.
    double quantizing(const Encoding& type, double weights, double columns) const;
};

/// What work there is still to be done, and how long it will take. Estimates are in seconds by the rates; what has been
/// done corrects them, kind of work by kind of work (quantizing: type by type): the more there is to see, the more what
/// was seen counts. Not thread-safe.
class CostLedger {
  public:
    enum class Work { quantize, source, change, carry, score };
    struct Kind {
        Work work = Work::quantize;
        Encoding type;  // of quantizing
        // NOLINTNEXTLINE(modernize-use-nullptr): clang-tidy 14 reads a 0 in it
        friend auto operator<=>(const Kind&, const Kind&) = default;
    };

    /// `overlaps`: quantizing runs beside the replays, which a device does, instead of before them.
    explicit CostLedger(bool overlaps = false) : overlaps_(overlaps) {}

    /// There is work of `estimate_s` seconds more to do.
    void expect(const Kind& kind, double estimate_s);
    /// Work that was estimated at `estimate_s` is done and took `actual_s`; more than was expected is no less than
    /// none.
    void did(const Kind& kind, double estimate_s, double actual_s);

    /// Seconds from now on, corrected.
    double left_s() const;
    /// Of one half of the work, corrected: quantizing or replaying.
    double quantizing_left_s() const { return left_of(true); }
    double replaying_left_s() const { return left_of(false); }

  private:
    struct Account {
        double left_s = 0.0, estimated_s = 0.0, actual_s = 0.0;
    };
    double left_of(bool quantizing) const;
    double correction(const Kind& kind, const Account& account) const;

    bool overlaps_;
    std::map<Kind, Account> accounts_;
};

/// What a sweep has before it, piece by piece: the one place where pieces get their costs.
class SweepCosts {
  public:
    /// The map must outlive it. `n_nodes`: of the graph, whose last part from `head_cut` on scores.
    SweepCosts(const SweepMap& map, const Rates& rates, int head_cut, int n_nodes, bool overlaps)
        : map_(&map), rates_(rates), head_cut_(head_cut), n_nodes_(n_nodes), ledger_(overlaps) {}

    /// A tensor's change in a type: so many windows replayed to the end of its range, of which `full` go on to the
    /// head. `quantized_weights`: how many weights are quantized for it, all that the tensor has or a sample.
    void expect_change(const SweepMap::Place& place, const Encoding& type, std::size_t windows, std::size_t full,
                       double quantized_weights);
    /// So many replays of the source through a range of nodes, which others begin at or are compared with.
    void expect_source(int begin, int end, std::size_t windows) {
        expect_replay(CostLedger::Work::source, begin, end, windows);
    }

    void quantized(const SweepMap::Place& place, const Encoding& type, double weights, double actual_s);
    void replayed(CostLedger::Work work, int begin, int end, std::size_t runs, double actual_s);

    double left_s() const { return ledger_.left_s(); }
    /// The part of the stage that is over `elapsed_s` after its begin, by what is left.
    double share_done(double elapsed_s) const;

    /// Sums of what was expected.
    double quantized_weights() const { return quantized_weights_; }
    double replay_flops() const { return replay_flops_; }

  private:
    double replaying(int begin, int end, std::size_t runs) const;
    void expect_replay(CostLedger::Work work, int begin, int end, std::size_t runs);

    const SweepMap* map_;
    Rates rates_;
    int head_cut_, n_nodes_;
    CostLedger ledger_;
    double quantized_weights_ = 0.0, replay_flops_ = 0.0;
};

}  // namespace cerebellum
