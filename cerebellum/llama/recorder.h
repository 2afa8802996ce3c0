#pragma once

#include <memory>
#include <span>

#include "cerebellum/llama/model.h"
#include "cerebellum/llama/recorded_graph.h"

namespace cerebellum {

/// Records the graph that libllama builds for a window, and the values of its inputs, without computing anything: the
/// evaluation callback sees every node before the first one runs, and an abort callback then stops the run.
/// Not thread-safe. The model must outlive the recorder and the graph.
class Recorder {
  public:
    /// `n_tokens` is the length of every window.
    Recorder(const Model& model, int n_tokens);
    ~Recorder();

    const RecordedGraph& graph() const;
    /// Input values for one window of n_tokens tokens. Throws Error where libllama builds another graph for it.
    WindowInputs inputs(std::span<const Token> tokens);

  private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace cerebellum
