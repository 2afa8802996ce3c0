#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "cerebellum/allocate/recipe_problem.h"
#include "cerebellum/build/recipe.h"
#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/gguf/imatrix_file.h"
#include "cerebellum/predict/damage_table.h"

namespace cerebellum {

/// A model as far as allocating from imported measurements needs it.
struct ImportedModel {
    TensorList base;                                ///< types: what a tensor has that nothing is decided about
    std::map<std::string, ggml_type> source_types;  ///< of the file that will be quantized; empty where unknown
    std::uint64_t fixed_bytes = 0;                  ///< of the built file beside tensor data
    bool fixed_bytes_known = false;                 ///< a tensor map says nothing of header and tokenizer
    std::string name;
    std::string fingerprint;  ///< of the source; empty where its data is not there
    std::vector<std::string> notes;
};

/// The most that a built file takes beside tensor data, whoever builds it and however the importance matrix is called.
std::uint64_t longest_fixed_bytes(const GgufFile& source);

/// The model that an export of ours carries.
ImportedModel imported_model(const ExportedModel& model);
/// From a tensor map.
ImportedModel imported_model(TensorList map);
/// From a GGUF, of which the header is enough. With a `base`, a stock mix of llama-quantize ("Q4_K_M"), a type or a
/// recipe.json, the base types are those; else the file's own. Throws Error where `base` is none of these, or
/// llama.cpp cannot quantize the model.
ImportedModel imported_model(const GgufFile& file, const std::string& base, bool has_imatrix);

struct ImportOptions {
    std::vector<ggml_type> types;  ///< allowed; empty: all
    bool extrapolate_layer = false;
    const Imatrix* imatrix = nullptr;  ///< llama-quantize makes some types with an importance matrix only
    std::uint64_t budget_bytes = 0;
};

/// An allocation from imported figures, and what became of every tensor.
struct ImportedAllocation {
    Recipe recipe;  ///< names every tensor; predicted_kld is the predicted change from the baseline
    Metric metric = Metric::kld;
    bool optimal = false;
    std::uint64_t tensor_bytes = 0;
    std::size_t measured = 0;
    std::vector<std::string> at_crush_type;  ///< measured in the type that they have in the base anyway; they keep it
    std::vector<std::string> extrapolated;   ///< taken from the rest of their block
    std::vector<std::string> unmeasured;     ///< keep their base type though they could be quantized
    std::vector<std::string> notes;
};

/// Throws Error where the table names a tensor that the model does not have, all measured tensors are in the type they
/// were crushed to already, nothing is left to decide, or the budget is too small.
ImportedAllocation allocate_imported(const DamageTable& table, const ImportedModel& model,
                                     const ImportOptions& options);

}  // namespace cerebellum
