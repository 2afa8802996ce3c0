#pragma once

#include <functional>
#include <span>
#include <vector>

#include "cerebellum/core/progress.h"
#include "cerebellum/core/recipe.h"
#include "cerebellum/evaluate/figures.h"
#include "cerebellum/replay/engine.h"
#include "cerebellum/sweep/runner.h"

namespace cerebellum {

/// Scores whole recipes without building files: all weights of a block are substituted at once, block after block, and
/// all recipes travel together, so that a tensor is quantized once for every distinct type, and recipes that agree up
/// to some block are replayed once up to it. Types equal to the source's may be named or left out. One vector of window
/// scores per recipe, in the order given.
std::vector<std::vector<WindowScore>> replay_recipes(ReplayEngine& engine, std::span<const Window> windows,
                                                     std::span<const TypeMap> recipes, const Quantizer& quantize,
                                                     Progress& progress);

}  // namespace cerebellum
