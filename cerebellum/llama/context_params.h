#pragma once

#include <llama.h>

namespace cerebellum {

/// Context parameters for evaluating windows of `n_tokens` in one ubatch on the CPU alone.
/// In a build with GPU backends "no GPU layers" is not enough for that: operations would still be offloaded.
llama_context_params cpu_context_params(int n_tokens, int threads);

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
