#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "cerebellum/build/recipe.h"
#include "cerebellum/core/progress.h"
#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/gguf/imatrix_file.h"
#include "cerebellum/quantize/feedback_rounder.h"

namespace cerebellum {

/// What a built file says about its importance matrix: the keys quantize.imatrix.* as llama-quantize writes them.
struct ImatrixInfo {
    std::string file;                    ///< as the user named it; cut to 127 bytes, as llama-quantize does
    std::optional<std::string> dataset;  ///< the first one, likewise
    std::uint32_t entries_count = 0;
    std::uint32_t chunks_count = 0;  ///< the key is left out where this is 0

    bool operator==(const ImatrixInfo&) const = default;
};

ImatrixInfo imatrix_info(const Imatrix& imatrix, const std::string& file);

/// What a built file says about its origin. A stock mix that fits a budget by a few bytes only may have no room for it.
enum class Provenance {
    full,  ///< the keys quantize.imatrix.* and cerebellum.*
    none,  ///< neither: as small as llama-quantize would write it without an importance matrix
};

struct BuildOptions {
    int threads = 0;         ///< 0: physical cores
    bool overwrite = false;  ///< replace a file that is there already
    /// These tensors come first, in this order; all others follow in the source's order. Does not change the size.
    std::vector<std::string> tensor_order;
    std::string imatrix_file;  ///< name of the importance matrix for the metadata
    Provenance provenance = Provenance::full;
    MomentReader moments;                            ///< for tensors that the recipe rounds with feedback
    std::uint64_t slab_bytes = 64ull * 1024 * 1024;  ///< at most so much (or one row) of output is held in memory
};

/// The type of every tensor of the source under these types: named ones theirs, all others the source's.
TypeMap complete_types(const GgufFile& source, const TypeMap& types);

/// The number for general.file_type: that of the quantized type holding most weights (where no tensor is quantized, of
/// any type). llama.cpp only shows it to people; the mapping is the one by which llama-model-loader.cpp names files
/// without the key (numbers: enum llama_ftype in llama.h). 1024 (LLAMA_FTYPE_GUESSED) for types without a number.
std::uint32_t file_type_number(const GgufFile& source, const TypeMap& types);

/// Throws Error naming the first offender: a fingerprint of another source, a tensor the source has not, a type that
/// its rows do not fit or that ggml cannot produce, an importance matrix that is missing or of another size.
void check_recipe(const GgufFile& source, const Recipe& recipe, const Imatrix* imatrix);

/// Exact size of a built file, without building it: fixed_bytes + the sum of tensor_bytes over all tensors.
std::uint64_t predicted_file_bytes(const GgufFile& source, const TypeMap& types,
                                   const std::optional<ImatrixInfo>& imatrix, Provenance provenance = Provenance::full);
/// Everything but tensor data: the same for every recipe.
std::uint64_t fixed_bytes(const GgufFile& source, const std::optional<ImatrixInfo>& imatrix,
                          Provenance provenance = Provenance::full);
/// What one tensor adds to the file in this type, padding included. Throws Error where its rows do not fit the type.
std::uint64_t tensor_bytes(const TensorInfo& tensor, ggml_type type);

/// Writes the model: a GGUF v3 with all of the source's metadata (split.* left out), the recipe's types, and the keys
/// cerebellum.version, cerebellum.recipe_sha256 and cerebellum.source_fingerprint. Tensor data is bit for bit
/// llama-quantize's, but for tensors rounded with feedback. Returns the file's size in bytes. Progress counts bytes
/// written.
///
/// Memory: the metadata plus one slab. `out` appears only when it is complete; an error or Interrupted leaves nothing
/// behind. Throws Error as check_recipe does, where `out` is the source itself or cannot be written, or where weights
/// cannot be stored.
std::uint64_t build_gguf(const GgufFile& source, const Recipe& recipe, const Imatrix* imatrix,
                         const std::filesystem::path& out, const BuildOptions& options, Progress& progress);

}  // namespace cerebellum
