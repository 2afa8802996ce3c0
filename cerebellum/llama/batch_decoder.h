#pragma once

#include <ggml.h>

#include <memory>
#include <span>
#include <vector>

#include "cerebellum/llama/model.h"

namespace cerebellum {

/// Settings that llama.cpp's own programs have; everything else is at its default there (flash attention where the
/// backend has it).
struct BatchDecoderSettings {
    int n_sequences = 1;        // at most 256, llama.cpp's limit
    int cache_tokens = 512;     // of all sequences together
    bool shared_cache = false;  // one cache whose tokens may belong to several sequences, instead of one each
    int batch_tokens = 512;     // most tokens of one decode()
    int micro_batch_tokens = 512;
    int threads = 1;
    ggml_type cache_type = GGML_TYPE_F16;
};

/// A token in its place. With a shared cache it may belong to several sequences.
struct BatchToken {
    Token token = 0;
    int position = 0;
    std::vector<int> sequences;
    bool wants_logits = false;
};

/// Several sequences side by side, continued by any of their tokens. The model must outlive it. Not thread-safe.
class BatchDecoder {
  public:
    /// Throws Error where llama.cpp cannot make such a context.
    BatchDecoder(const Model& model, const BatchDecoderSettings& settings);

    /// Evaluates the tokens. Returns the logits of those that want them, in their order, [rows × n_vocab], valid until
    /// the next call. Throws Error where llama.cpp cannot evaluate them.
    std::span<const float> decode(std::span<const BatchToken> tokens);
    /// Forgets all sequences, or one.
    void forget();
    void forget(int sequence);
    /// Sequence `to` (empty before) begins with everything that is in `from`.
    void continue_from(int from, int to);

    int n_vocab() const { return n_vocab_; }

  private:
    struct Batch;
    struct BatchFree {
        void operator()(Batch* batch) const;
    };
    int n_vocab_;
    std::unique_ptr<Batch, BatchFree> batch_;
    std::unique_ptr<llama_context, LlamaContextFree> context_;
};

}  // namespace cerebellum
