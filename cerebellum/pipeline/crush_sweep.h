#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "cerebellum/core/stats.h"
#include "cerebellum/pipeline/session.h"

namespace cerebellum {

/// The classical ablation: everything at a baseline's types, one tensor at a time crushed to another type.
struct CrushOptions {
    /// "source", a stock mix of llama-quantize, a recipe.json, or a GGUF of the same tensors.
    std::string baseline = "source";
    ggml_type crush = GGML_TYPE_Q2_K;
    /// Only these, by name, with or without ".weight"; empty: all that llama-quantize would quantize and that the run's
    /// globs admit.
    std::vector<std::string> tensors;
};

struct CrushedTensor {
    std::string tensor;
    ggml_type base_type = GGML_TYPE_COUNT;
    Estimate kld;        // from the baseline, nats per token
    Estimate delta_nll;  // against the baseline, nats per token, paired
    double perplexity = 0.0;
};

struct SkippedTensor {
    std::string tensor;
    std::string reason;
};

struct CrushSweep {
    std::string model;        // file name of the source
    std::string fingerprint;  // of the source
    std::string baseline;     // as it was asked for
    ggml_type crush = GGML_TYPE_COUNT;
    double baseline_perplexity = 0.0;
    /// KLD of the baseline from the source, where the baseline was made of it.
    std::optional<Estimate> baseline_kld;
    std::string text;
    double tokens = 0.0;  // scored positions
    std::size_t windows = 0;
    std::vector<CrushedTensor> tensors;
    std::vector<SkippedTensor> skipped;
    std::uint64_t fixed_bytes = 0;          // most that a built file takes beside tensor data
    std::vector<TensorInfo> model_tensors;  // all, with the baseline's types
    TypeMap source_types;
    SweepSummary summary;
};

/// Runs it. `run.journal` keeps the measurements; a baseline that has to be made is written beside it, as is a second
/// journal with the source's text and importance matrix, which the baseline is made with. Perplexities are of the
/// text's windows that all changes are measured on, without their burn-in.
///
/// Throws UsageError where the baseline is none, Error where it has other tensors than the source, a named tensor is
/// not in the model, or there is nothing to crush, and as Session does.
CrushSweep crush_sweep(RunOptions run, const CrushOptions& options, Progress& progress);

/// ablation_results.json: what the tools that know this schema read, and beside it all that `allocate --ablation`
/// needs.
nlohmann::json ablation_json(const CrushSweep& sweep);

}  // namespace cerebellum
