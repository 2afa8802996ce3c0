#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "cerebellum/predict/damage_table.h"

namespace cerebellum {

/// Reads ablation_results.json: {"baseline_ppl": P, "tests": {NAME: {"ppl": P', "gguf_tensor": TENSOR}}}, where each
/// test has one tensor crushed to `crush_type` and everything else at a baseline's types. Both perplexities may be
/// objects with one value per text; the texts then count equally. Damage is ln(P'/P), nats per token. An export of ours
/// (crush_export.h in pipeline/) has more: the crush type, divergences, shapes and types.
///
/// Throws Error naming file and test where the JSON is damaged (NaN included) or has a key twice, something is missing
/// or no positive number, a tensor was tested twice in a type, or ggml has no such type or shape.
DamageTable read_ablation(const std::filesystem::path& path, const std::string& crush_type);

/// Tensors that a plan lists: {"tensors": [...]} or a list, of names or of objects with "gguf_tensor" or "name". Throws
/// Error naming the entry that is neither, or is there twice; Error where the plan is empty.
std::vector<std::string> read_ablation_plan(const std::filesystem::path& path);

/// JSON whose objects have no key twice. Throws Error naming the file, the line, and the object where it is damaged.
nlohmann::json read_strict_json(const std::filesystem::path& path);

}  // namespace cerebellum
