#pragma once

#include <span>

#include "cerebellum/calibrate/text.h"
#include "cerebellum/core/progress.h"
#include "cerebellum/gguf/imatrix_file.h"
#include "cerebellum/replay/engine.h"

namespace cerebellum {

/// Sums of squared inputs of every weight that is multiplied with activations, over all tokens of the windows: what
/// llama-imatrix collects, from a replay of the source, output and tied embedding weights included. The counts of a
/// mixture's experts are the tokens routed to each. On a device only the sums leave it, but for experts.
Imatrix compute_imatrix(ReplayEngine& engine, std::span<const Window> windows, const std::string& dataset,
                        Progress& progress);

/// The same from whole evaluations by libllama, where the model is; for models that cannot be replayed, too.
Imatrix compute_imatrix(const Model& model, const TokenWindows& windows, int threads, const std::string& dataset,
                        Progress& progress);

}  // namespace cerebellum
