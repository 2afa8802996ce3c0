#pragma once

#include <ggml.h>

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cerebellum/core/recipe.h"

namespace cerebellum {

/// A stock mix of llama-quantize, under the name it has there.
struct Preset {
    std::string name;
    int file_type = 0;  // llama_ftype
};

/// The stock mixes that llama-quantize offers as quantizations, aliases and 16/32-bit types left out.
const std::vector<Preset>& stock_presets();
std::optional<Preset> find_preset(std::string_view name);
/// Any name that llama-quantize takes as a type but COPY, in any case: the mixes, their aliases (Q4_K for Q4_K_M), the
/// types for special models (TQ1_0, MXFP4_MOE), F16, BF16, F32.
std::optional<Preset> find_quantization(std::string_view name);

/// What a run of llama-quantize would do to a file, found with libllama's own dry run (nothing is written).
struct QuantizeOutcome {
    /// Every tensor of the file, in the order in which llama-quantize writes them.
    std::vector<std::string> order;
    /// The type each tensor would have.
    TypeMap types;
    /// It would refuse to do this without an importance matrix, and there is none.
    bool lacks_imatrix = false;
};

struct QuantizeRequest {
    int file_type = 0;         // llama_ftype
    bool has_imatrix = false;  // some mixes choose other types when there is an importance matrix
    bool pure = false;         // every quantizable tensor gets the type of file_type
    std::optional<ggml_type> token_embedding_type = {};  // --token-embedding-type
    /// --tensor-type: unanchored regular expressions and types, the first match counts.
    std::vector<std::pair<std::string, ggml_type>> overrides = {};
};

/// Throws Error with libllama's reason where it would refuse.
QuantizeOutcome dry_run(const std::filesystem::path& model, const QuantizeRequest& request);

/// The tensors that llama-quantize would ever quantize, in its order. Throws Error where libllama cannot read the
/// model.
std::vector<std::string> quantizable_tensors(const std::filesystem::path& model);

/// The llama_ftype whose default type is `type`, for `--pure`; empty for types that no mix is named after.
std::optional<int> file_type_of(ggml_type type);

}  // namespace cerebellum
