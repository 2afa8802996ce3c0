#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cerebellum/calibrate/text.h"
#include "cerebellum/core/progress.h"
#include "cerebellum/distribute/executor.h"
#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/gguf/imatrix_file.h"
#include "cerebellum/journal/journal.h"
#include "cerebellum/journal/moment_file.h"
#include "cerebellum/pipeline/effort.h"
#include "cerebellum/pipeline/measure_through_files.h"
#include "cerebellum/pipeline/stage_times.h"
#include "cerebellum/quantize/feedback_rounder.h"
#include "cerebellum/quantize/quantized_cache.h"
#include "cerebellum/replay/engine.h"
#include "cerebellum/sweep/plan.h"
#include "cerebellum/sweep/runner.h"
#include "cerebellum/sweep/split.h"

namespace cerebellum {

/// What all stages that look at a model need to know.
struct RunOptions {
    std::filesystem::path model;
    std::vector<std::filesystem::path> texts;  // none: the model writes its own
    std::vector<std::string> domains;          // of the texts, one by one, or none
    int tokens = 4096;                         // measured on; the other parts of the text follow from it
    int context = 0;                           // tokens per window; 0: 512, or what the model was trained for if less
    int threads = 0;                           // 0: physical cores
    std::uint64_t seed = 1;                    // of self-sampled text
    std::filesystem::path journal;
    std::optional<std::filesystem::path> imatrix;  // none: computed from the calibration text
    std::vector<ggml_type> types;                  // allowed types; none: all
    bool full = false;                             // measure every type in full
    RoundingChoice rounding = RoundingChoice::ggml;
    std::vector<std::string> tensors;  // globs; only tensors that one of them matches; none: all
    std::optional<Shard> shard;        // measure only this part of what there is to measure
    /// What stands for the source when it runs: the source itself, or a copy of it in this type, smaller and faster,
    /// from which damage is then counted.
    std::optional<ggml_type> reference;
    /// Another file of the same tensors that stands for the source when it runs, and what to call it. The bytes that
    /// its tensors are changed to are still made of the source.
    std::filesystem::path baseline;
    std::string baseline_name;
    bool all_rows = false;         // quantize all rows of every tensor that is measured, no sample of them
    bool no_replay = false;        // measure through whole files, though replaying may be possible
    std::string device;            // where replays run, as Device takes it; empty: the CPU
    std::vector<std::string> rpc;  // ggml RPC servers, host:port, that share the model with `device`, or have it alone
    MemoryLimits limits;
    Effort effort = Effort::normal;  // quick: a few types of each tensor; it says nothing of tokens
    /// What is to be done is only looked at: a copy that would stand for the source is not made.
    bool dry = false;
};

/// The importance matrix sees this many times the tokens that are measured on.
inline constexpr int calibration_factor = 4;

/// Of what belongs to the calibration part's windows, one by one, that of the windows that are measured on: evenly
/// spread ones, in the order in which they are taken.
template <typename Value>
std::vector<Value> measured_of(const std::vector<Value>& calibration) {
    std::vector<Value> measured;
    for (const auto i : spread_order((calibration.size() + calibration_factor - 1) / calibration_factor))
        measured.push_back(calibration[i * calibration_factor]);
    return measured;
}

/// A model with its text, importance matrix and journal, each made when first asked for and kept in the journal, so
/// that a later run of any stage finds them. Not thread-safe.
class Session {
  public:
    /// Opens model and journal. Throws Error where one cannot be used, or the journal belongs to other settings.
    Session(RunOptions options, Progress& progress);
    ~Session();

    const RunOptions& options() const { return options_; }
    const GgufFile& source() const { return source_; }
    /// The reference: the source, or its copy in another type.
    const Model& model() const { return model_; }
    /// "the source", or what stands for it.
    std::string reference_name() const;
    Journal& journal() { return *journal_; }
    /// Where whole models run that libllama evaluates: on the devices that replays run on.
    RunPlace place() const;
    int threads() const { return options_.threads; }
    int context() const { return options_.context; }

    const TextParts& text();
    /// How many windows are asked for; a short text gives fewer.
    void fill_imatrix();
    TextDemand demand() const;
    /// Whether the model is measured by replaying it. Where it cannot be replayed exactly, which is found out at the
    /// first call and warned of, everything is measured through whole files.
    bool replays();
    /// The replay engine, checked against llama_decode at the first call. Throws NotReplayable where replay is not
    /// bit-identical on the CPU, Error where it is far off on another device.
    ReplayEngine& engine();
    /// What measuring through whole files takes.
    FileTrials file_trials();
    /// What keeps a tensor from being measured: it is not read when the model runs, or by operations that do not take
    /// any type. Empty where nothing does, or where the model's graph cannot be recorded.
    std::string why_unmeasurable(const std::string& tensor);
    bool is_measurable(const std::string& tensor) { return why_unmeasurable(tensor).empty(); }
    /// Mean KLD, nats per token, of the source replayed twice: what no change at all appears to cost. Zero but for
    /// rounding on the CPU.
    double null_floor_kld() const;
    const Imatrix& imatrix();
    /// What the built file says about the importance matrix.
    std::string imatrix_name() const;
    /// Every quantizable tensor of the source, in llama-quantize's order.
    const std::vector<std::string>& quantizable();
    /// All tensors of the source in the order in which llama-quantize writes them.
    const std::vector<std::string>& tensor_order();
    /// Quantizes each tensor in each type once: what was made before comes from a cache.
    Quantizer quantizer();
    RowQuantizer row_quantizer();
    /// A tensor's bytes where the cache has them.
    SharedBytes known_bytes(const std::string& tensor, const Encoding& type);
    /// The rounding that was asked for; where nothing is replayed, and so no second moments are known, "auto" is
    /// ggml's.
    RoundingChoice rounding();
    /// Whether a tensor can be rounded with feedback in a type; asks for moments to be possible at all.
    bool rounds_with_feedback(const TensorInfo& tensor, ggml_type type);
    /// Second moments of the inputs of all matrices, collected when first asked for; empty where the rounding that was
    /// chosen needs none.
    MomentReader moments();

    /// Lets go of what measuring holds in memory; the next call that needs it makes it again.
    void rest();
    /// Text and importance matrix of another session whose model reads the same tokens, in place of this one's own.
    void adopt(const TextParts& text, Imatrix imatrix);

    /// Windows of a part, recorded and ready.
    std::vector<Window> prepare(const TokenWindows& windows);
    /// The quantizable tensors that the options' globs admit.
    std::vector<std::string> wanted_tensors();
    /// What is to be measured: every wanted tensor in every type that it may have.
    std::vector<TensorPlan> plan();
    /// The same without tensors that cannot be measured, of which it warns.
    std::vector<TensorPlan> measurable_plan();
    /// The windows that changes are measured on, in the order in which they are taken.
    TokenWindows measured_windows() { return measured_of(text().calibration); }
    /// The parts of a plan that can be measured apart from each other, on several machines.
    std::vector<WorkItem> work_items(std::span<const TensorPlan> plan);
    /// Measures what the journal does not hold yet of measurable_plan(), or of the options' shard of it, or of another
    /// plan.
    SweepSummary measure();
    SweepSummary measure(std::span<const TensorPlan> wanted);
    /// What of a plan is still to be measured, by rates. Of a model that is replayed, as the next.
    SweepEstimate estimate(std::span<const TensorPlan> wanted, const Rates& rates);
    /// How fast this machine does what a plan asks for. Takes a moment when first called.
    const Rates& rates(std::span<const TensorPlan> wanted);
    /// What was done in this session, by stages.
    StageTimes& times() { return times_; }

    /// From now on all ranks of a group measure; they get the text and the importance matrix from here. The executor
    /// must outlive the session.
    void distribute(GroupExecutor& executor);
    /// On another rank than 0, with a journal of its own that is still empty: takes over what rank 0 hands out and
    /// measures what it deals. Throws Error where this rank's settings, or what it runs on, are not rank 0's.
    void take_part(Group& group);

  private:
    JournalIdentity identity() const;
    std::map<std::string, std::string> identity_fields() const;
    SweepSummary measure_quietly(std::span<const TensorPlan> wanted);
    /// Measures a part of a plan, by replaying or through whole files. Keeps what its next call can use again.
    Trial trial();
    Neighbours neighbours_of(const Group& group, const std::string& job) const;
    /// Of the recorded graph, which need not be replayable; null where there is none.
    const Topology* topology();
    void keep_text();
    void warn_of_special_tokens();
    /// Calls use(model) with the reference where place() is, loaded there for as long as it takes.
    template <typename Use>
    auto on_place(Use use) const;
    /// Says which weights there are moments for, or can be.
    MomentFile& moment_file();
    QuantizedCache& quantized_tensors();
    SweepOptions sweep_options();
    SweepOptions estimated_options() const;
    const TensorInfo& source_tensor(const std::string& name) const;
    const MomentFile& collected_moments();

    StageTimes times_;
    RunOptions options_;
    Progress& progress_;
    GgufFile source_;
    Model model_;
    std::unique_ptr<Journal> journal_;
    std::optional<TextParts> text_;
    std::unique_ptr<ReplayEngine> engine_;
    GroupExecutor* executor_ = nullptr;
    Neighbours neighbours_;
    std::vector<Window> measured_;
    std::unique_ptr<SweepWorker> worker_;
    std::optional<bool> replays_;
    struct Recorded;
    std::unique_ptr<Recorded> recorded_;  // where nothing is replayed
    std::optional<Imatrix> imatrix_;
    std::unique_ptr<QuantizedCache> quantized_;
    std::optional<MomentFile> moments_;
    bool moments_ready_ = false;
    bool warned_of_unusable_ = false;
    std::optional<Rates> rates_;
    std::vector<std::string> quantizable_;
    std::vector<std::string> tensor_order_;
};

/// Version of the measuring procedure: changes whenever a figure would come out differently. Part of a journal's
/// identity.
inline constexpr const char* measuring_version = "7";

/// An importance matrix as the journal keeps it.
std::optional<Imatrix> imatrix_from_journal(const Journal& journal);
/// The source's tensors as the journal keeps them, its artifact "tensors": names, types and shapes.
std::string serialize(std::span<const TensorInfo> tensors);
/// Throws Error where the journal does not hold them.
std::vector<TensorInfo> tensors_from_journal(const Journal& journal);

}  // namespace cerebellum
