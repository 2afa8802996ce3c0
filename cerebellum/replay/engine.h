#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cerebellum/llama/model.h"
#include "cerebellum/llama/recorder.h"
#include "cerebellum/replay/memory_plan.h"
#include "cerebellum/replay/score_kernels.h"
#include "cerebellum/replay/slice.h"

namespace cerebellum {

/// One window of text, ready to be replayed.
struct Window {
    std::vector<Token> tokens;
    InputValues inputs;
};

/// Sums over the scored positions of one window. Scored are the positions from the burn-in on that have a next token.
struct WindowScore {
    double count = 0.0;
    double kld = 0.0;            // nats
    double nll = 0.0;            // of the variant, nats
    double reference_nll = 0.0;  // of the source, nats
    double same_top = 0.0;       // positions with the same most probable token
};

/// Positions that are not scored at the start of a window: too little context to be typical.
int burn_in(int n_tokens);

/// Sums a window's position scores; `scores` has one entry per position.
WindowScore sum_scores(std::span<const PositionScore> scores, int first_position);

struct EngineOptions {
    int threads = 1;
    std::string device;  // as Device takes it; empty: the CPU
    /// Devices beside it that take a part of the model, for models that are too large for one. All weights must fit
    /// then. limits.device_bytes holds for each of them.
    std::vector<std::string> more_devices;
    MemoryLimits limits;
    int n_windows = 1;  // how many will travel together, for the memory plan
};

/// Replays windows of one length on one model. Not thread-safe; the model must outlive it.
class ReplayEngine {
  public:
    ReplayEngine(const Model& model, int n_tokens, int threads)
        : ReplayEngine(model, n_tokens, EngineOptions{threads, {}, {}, {}, 1}) {}
    /// Throws Error where the limits are too small for the model.
    ReplayEngine(const Model& model, int n_tokens, const EngineOptions& options);
    ~ReplayEngine();

    const Model& model() const { return *model_; }
    const Topology& topology() const { return topology_; }
    /// The first device, which the head runs on.
    Device& device() { return device_; }
    /// The device that a slice which begins there runs on.
    Device& device_at(int node) {
        const auto other = device_of(node);
        return other == 0 ? device_ : others_[other - 1]->device;
    }
    /// Bytes of device_at(node) that a caller may take beside what replaying the source takes. 0 where everything runs
    /// on the CPU, or the device does not say what it has.
    std::size_t spare_device_bytes(int node);
    /// From now on states leave so much of each device's memory to the caller; beyond that they go where they go when
    /// it is full. 0 gives it back.
    void reserve_device_bytes(std::size_t bytes);
    /// Whether everything runs on the CPU: then it is bit-identical to llama_decode.
    bool is_host() const { return device_.is_host() && others_.empty(); }
    /// Whether its figures are what others are judged by: it runs on the CPU, and nobody meddles with it.
    bool is_judge() const { return is_host() && !device_.is_watched(); }
    /// An engine of the same model and window length on the CPU. The model must outlive it.
    std::unique_ptr<ReplayEngine> on_the_cpu() const;
    /// "CUDA0", or all devices with the number of blocks that each has.
    std::string device_names() const;
    WeightStore& weights() { return weights_; }
    const MemoryPlan& memory_plan() const { return memory_plan_; }
    std::unique_ptr<Slice> slice(int begin, int end, const Slice::Options& options = {}) {
        const auto other = device_of(begin);
        return other == 0 ? std::make_unique<Slice>(topology_, device_, weights_, begin, end, options)
                          : std::make_unique<Slice>(topology_, others_[other - 1]->device, others_[other - 1]->weights,
                                                    begin, end, options);
    }
    /// Until all devices have done what they were asked to.
    void wait() {
        device_.wait();
        for (auto& other : others_) other->device.wait();
    }
    int n_tokens() const { return n_tokens_; }

    /// Records a window's inputs.
    Window prepare(std::vector<Token> tokens);

    /// How replaying the windows in slices, one per block, compares with llama_decode on the CPU, and with itself.
    struct SelfCheck {
        double largest_deviation = 0.0;  // of a logit; 0: bit-identical
        double kld = 0.0;                // mean over all positions, nats
        double null_floor_kld = 0.0;     // the same of a second replay against the first: what no change at all costs
        bool finite = true;              // llama_decode's own logits
    };
    SelfCheck self_check(std::span<const Window> windows);

    /// Computes log p of the source for a window, from its live state at the head cut, and keeps it for score().
    void set_reference(const Window& window, const LiveState& at_head);
    /// Adds the probabilities that the source gives to every token at the scored positions of a window, to one sum per
    /// token. The window's becomes the reference.
    void add_predictions(const Window& window, const LiveState& at_head, std::span<double> sums);
    /// Scores a variant's live state at the head cut against the reference set last. The weights behind the head cut
    /// are the source's.
    WindowScore score(const Window& window, const LiveState& at_head);
    /// The same with weights behind the head cut substituted; such a head is made once and used for many windows.
    class Head;
    std::unique_ptr<Head> make_head(const Substitutions& substitutes);
    WindowScore score(Head& head, const Window& window, const LiveState& at_head);
    /// The same in two steps: a device goes on with other work before the score is read.
    struct PendingScore {
        std::vector<Value> values;
    };
    PendingScore begin_score(Head& head, const Window& window, const LiveState& at_head);
    WindowScore finish_score(const PendingScore& pending) const;
    /// The head with the source's weights.
    Head& plain_head();
    /// To be called when a round of scoring is over: where weights are streamed, the head's make way for others.
    void finish_scoring();

  private:
    struct Reference;
    struct Other {
        Other(const std::string& name, int threads) : device(name, threads), weights(device) {}
        Device device;
        WeightStore weights;
    };
    void place_on_devices(const EngineOptions& options);
    /// 0: the first device; otherwise one more than the number of the other one.
    std::size_t device_of(int node) const;
    void make_reference();
    std::vector<LiveState> states_at_head(std::span<const Window> windows);
    Value store(const std::shared_ptr<const std::vector<std::byte>>& input);

    const Model* model_;
    int n_tokens_;
    Recorder recorder_;
    Topology topology_;
    Device device_;
    WeightStore weights_;
    std::vector<std::unique_ptr<Other>> others_;
    std::vector<std::size_t> device_of_range_;  // between the cuts; empty where there is but one device
    std::unique_ptr<ValueStore> host_inputs_;   // of the windows, where several devices read them
    MemoryPlan memory_plan_;
    ValueStore::Limits value_limits_;
    // Inputs that windows share (positions, masks) are stored once.
    std::vector<std::pair<std::shared_ptr<const std::vector<std::byte>>, Value>> stored_inputs_;
    std::unique_ptr<Reference> reference_;
    std::unique_ptr<Slice> reference_head_;
    std::unique_ptr<Head> plain_head_;
};

/// The head with some of its weights substituted, and the score behind it.
class ReplayEngine::Head {
  public:
    explicit Head(std::unique_ptr<Slice> slice) : slice_(std::move(slice)) {}
    Slice& slice() { return *slice_; }

  private:
    std::unique_ptr<Slice> slice_;
};

}  // namespace cerebellum
