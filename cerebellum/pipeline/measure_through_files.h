#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "cerebellum/calibrate/text.h"
#include "cerebellum/core/progress.h"
#include "cerebellum/core/recipe.h"
#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/gguf/imatrix_file.h"
#include "cerebellum/llama/model.h"
#include "cerebellum/sweep/figure_store.h"
#include "cerebellum/sweep/runner.h"

namespace cerebellum {

/// What whole files are made of and where they lie while they are needed.
struct FileTrials {
    const GgufFile& source;
    const Model& model;
    const Imatrix& imatrix;
    const std::vector<std::string>& tensor_order;
    std::filesystem::path folder;  // has room for a few files of the source's size
    int threads = 1;
    RunPlace place = {};  // where source and files run
    TypeMap base = {};    // what a file has beside the one change; tensors that it does not name keep the source's type
};

/// Scores of whole mixes: each is built, evaluated by libllama next to the source and removed again. One vector of
/// window scores per mix, in the order given.
std::vector<std::vector<WindowScore>> score_through_files(const FileTrials& trials, std::span<const TypeMap> mixes,
                                                          const TokenWindows& windows, Progress& progress);

/// Measures everything of the plan that is not known yet by changing one tensor at a time in a whole file:
/// the slow way, for models that cannot be replayed. All figures are of the full tier and, where replay is possible,
/// the same as its.
SweepSummary measure_through_files(const FileTrials& trials, std::span<const TensorPlan> plan,
                                   const TokenWindows& windows, FigureStore& figures, Progress& progress);

}  // namespace cerebellum
