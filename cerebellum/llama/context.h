#pragma once

#include <llama.h>

#include <memory>

#include "cerebellum/llama/model.h"

namespace cerebellum {

using LlamaContext = std::unique_ptr<llama_context, LlamaContextFree>;

/// Context parameters for evaluating windows of `n_tokens` in one ubatch on the CPU alone.
/// In a build with GPU backends "no GPU layers" is not enough for that: operations would still be offloaded.
llama_context_params cpu_context_params(int n_tokens, int threads);
/// The same where the model is: cache and operations on its devices, where it was loaded to be run on any.
llama_context_params context_params(const Model& model, int n_tokens, int threads);

/// Throws Error with llama.cpp's reason where there can be no such context.
LlamaContext make_context(const Model& model, const llama_context_params& params);

/// One sequence from position 0, logits wanted everywhere. Owns the batch's arrays.
class WindowBatch {
  public:
    explicit WindowBatch(int n_tokens);
    ~WindowBatch();
    WindowBatch(const WindowBatch&) = delete;
    WindowBatch& operator=(const WindowBatch&) = delete;
    llama_batch& batch() { return batch_; }

  private:
    llama_batch batch_;
};

}  // namespace cerebellum
