#pragma once

#include <cstdint>
#include <filesystem>
#include <limits>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "cerebellum/core/channel_scaling.h"
#include "cerebellum/core/recipe.h"

namespace cerebellum {

/// What to build: the types, and what is known about them. Stored as recipe.json.
struct Recipe {
    TypeMap types;                   ///< tensors that are not named keep their source type
    std::string source_fingerprint;  ///< GgufFile::fingerprint() of the model it was made for; empty: any model
    std::string source_name;         ///< for people
    std::uint64_t file_bytes = 0;    ///< exact size of the built file; 0 where unknown
    double predicted_kld = std::numeric_limits<double>::quiet_NaN();  ///< nats per token; NaN where unknown
    std::map<std::string, std::string> provenance;                    ///< free-form: how it came to be
    std::map<std::string, std::string> source_tensors = {};  ///< tensor_identities() of the model; empty: unknown
    std::vector<ChannelScaling> scaling = {};                ///< done to the source before anything is quantized
};

/// Keys of the provenance that a build obeys: imatrix_sha256() of the matrix that the figures and bytes belong to, and
/// "none" for a file without the keys quantize.imatrix.* and cerebellum.*.
inline constexpr const char* imatrix_digest_key = "imatrix_sha256";
inline constexpr const char* metadata_key = "metadata";

/// Deterministic: the same recipe gives the same text.
std::string recipe_to_json(const Recipe& recipe);
/// `origin` names the text in errors. Throws Error where it is no recipe of ours or names a type that ggml has not.
Recipe recipe_from_json(std::string_view text, std::string_view origin);

/// Throws Error naming the path.
Recipe read_recipe(const std::filesystem::path& path);
void write_recipe(const std::filesystem::path& path, const Recipe& recipe);

/// SHA-256 (hexadecimal) of recipe_to_json: what the built file carries as cerebellum.recipe_sha256.
std::string recipe_sha256(const Recipe& recipe);

/// The text of a file for llama-quantize --tensor-type-file, so that stock tools can build the same model:
/// llama-quantize --imatrix I --tensor-type-file F source.gguf out.gguf Q8_0
/// (the base type must be quantized, or the file is ignored). One "^name$=type" per line; the patterns are regular
/// expressions that llama-quantize lower-cases and matches anywhere, hence anchors, escapes, and "." for every
/// character that would not survive. Tensors the recipe does not name would get the base type there: complete the map
/// first with complete_types (build_gguf.h). llama-quantize keeps norms and other small tensors in their source type
/// whatever the file says, and refuses IQ3_XXS, IQ2_S and IQ1_M without an importance matrix, which ggml does not need
/// for them.
std::string tensor_type_file(const TypeMap& types);

}  // namespace cerebellum
