#pragma once

#include <span>

#include "cerebellum/core/progress.h"
#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/gguf/imatrix_file.h"
#include "cerebellum/replay/engine.h"
#include "cerebellum/sweep/costs.h"
#include "cerebellum/sweep/plan.h"

namespace cerebellum {

/// Times samples of the work of a plan, in a second or a few: some rows of each type, the first blocks of one window,
/// and the head where the first blocks show that it will not take long. Nothing is recorded. `imatrix` need not know
/// the tensors. Sampling and writing keep their defaults.
Rates measure_rates(ReplayEngine& engine, const Window& window, const GgufFile& source, const Imatrix& imatrix,
                    std::span<const TensorPlan> plan, int threads, const Progress& progress);

}  // namespace cerebellum
