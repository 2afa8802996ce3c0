#pragma once

#include <filesystem>
#include <optional>

#include "cerebellum/predict/damage_table.h"

namespace cerebellum {

/// Reads kld_results.csv or ppl_results.csv of the GGUF-Tool-Suite: header QTYPE,TENSOR,...; a row per type, whose
/// values were measured with only that tensor in that type and all others as in the baseline, in high precision.
///
/// "404", "404%" and empty values are that suite's marks of measurements that failed: they are listed as missing. A
/// divergence of exactly 0 in less than 3 bits per weight means that nothing reads the tensor: such ones are listed as
/// unread. Perplexities are turned into ln(P/P0); the file does not have P0, so that it is `baseline_ppl` or, without
/// it, the smallest perplexity of each row.
///
/// Throws Error naming file, row and column where the header is another, a tensor or a type is there twice, a row is
/// of another length, a type is neither ggml's nor ik_llama.cpp's, or a value is no number or impossible.
DamageTable read_damage_csv(const std::filesystem::path& path, Metric metric, std::optional<double> baseline_ppl);

}  // namespace cerebellum
