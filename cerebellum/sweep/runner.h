#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cerebellum/core/progress.h"
#include "cerebellum/journal/journal.h"
#include "cerebellum/replay/engine.h"
#include "cerebellum/sweep/costs.h"
#include "cerebellum/sweep/figure_store.h"
#include "cerebellum/sweep/plan.h"
#include "cerebellum/sweep/row_sample.h"
#include "cerebellum/sweep/shared_states.h"

namespace cerebellum {

/// A tensor's bytes in another type; the caller knows the source and the importance matrix.
using Quantizer = std::function<std::vector<std::byte>(const std::string& tensor, const Encoding& type)>;

/// How a sweep quantizes no more than it has to; without `quantize_rows` every tensor whole.
///
/// In the fast tier types whose quantizers search codebooks, which takes them several times as long as others, are
/// measured on a sample of a matrix's rows, the others exact (row_sample.h). Tensors outside of the blocks are changed
/// only in the rows that the text looks up and, of an output matrix, in those that hold all but `neglected_mass` of the
/// probability that the source gives to any token.
struct SweepOptions {
    RowQuantizer quantize_rows;
    /// Whether a type takes long to quantize to; none: all do.
    std::function<bool(const Encoding&)> is_slow;
    double neglected_mass = 0.005;
};

struct SourceStates;

/// What a sweep did, for reports and benchmarks.
struct SweepSummary {
    std::size_t fast_measured = 0;
    std::size_t full_measured = 0;
    std::size_t resumed = 0;              // found in the journal
    std::size_t unusable = 0;             // pairs without a figure, recorded with the reason
    double tokens = 0.0;                  // replayed by changed tensors, one for each pair, tier and window's token
    std::vector<std::string> unmeasured;  // tensors of the plan that nothing reads, or nothing that takes any type
    double replay_flops = 0.0;            // multiply-adds of all replayed matrix products, times two
    double replay_s = 0.0;
    double quantize_s = 0.0;
    double waiting_s = 0.0;  // of a device, for the host to quantize what it is to replay next
};

/// Measures everything of the plan that the journal does not hold yet and records each figure the moment it is there.
///
/// Fast tier: the tensor is substituted in a replay from its first use to the end of its block, and the relative energy
/// of the change in the block's output is taken. Full tier (anchors): that changed output is replayed to the end of the
/// model and scored over the full vocabulary, on the
/// first windows / anchor_stride windows; its row keeps the local energy of just these windows, for the ratio of the
/// two. Tensors read outside of the blocks (embeddings, head) are measured in full for every type, since no single
/// block's output shows their damage. A row that saw fewer windows than the plan wants is extended by the others.
///
/// A figure that cannot be so is measured again in other ways, and where it cannot be had, recorded as unusable with
/// the reason: see SecondLook. Throws Error where the device is gone, or has shown that it cannot be trusted.
///
/// Progress is in seconds: what is done is the time since the begin, what is left is estimated by the rates and
/// corrected by what the run itself takes.
SweepSummary run_sweep(ReplayEngine& engine, std::span<const Window> windows, std::span<const TensorPlan> plan,
                       const Quantizer& quantize, Journal& journal, Progress& progress,
                       const SweepOptions& options = {}, const Rates& rates = {});

/// What run_sweep() has to do, without doing it.
struct SweepEstimate {
    std::size_t fast = 0, full = 0;  // rows to be measured or extended
    std::size_t resumed = 0;         // that the store holds already
    double quantized_weights = 0.0;
    double replay_flops = 0.0;
    double seconds = 0.0;  // by the rates
};
SweepEstimate estimate_sweep(ReplayEngine& engine, std::size_t n_windows, std::span<const TensorPlan> plan,
                             FigureStore& figures, const SweepOptions& options, const Rates& rates);

/// Adds up what parts of a sweep did.
void add(SweepSummary& sum, const SweepSummary& part);

/// Sweeps over one plan after the other, as they are dealt out to it, with the same figures. It keeps the source's
/// states between them: plans that follow each other in the order of the graph cost no replay of the source twice.
/// With neighbours it makes a share of these states and takes the others from them, where the file for that has room.
/// Everything given to it must outlive it. Not thread-safe.
class SweepWorker {
  public:
    SweepWorker(ReplayEngine& engine, std::span<const Window> windows, Quantizer quantize,
                const Neighbours& neighbours = {}, SweepOptions options = {});
    ~SweepWorker();
    SweepSummary measure(std::span<const TensorPlan> plan, FigureStore& figures, Progress& progress);
    /// Makes this process's share of the states, which its neighbours will wait for, whether or not there is anything
    /// for this process to measure.
    void share_states(Progress& progress);

  private:
    ReplayEngine* engine_;
    std::span<const Window> windows_;
    Quantizer quantize_;
    SweepOptions options_;
    std::unique_ptr<SourceStates> states_;
};

}  // namespace cerebellum
