#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "cerebellum/build/recipe.h"
#include "cerebellum/build/write_tensors.h"
#include "cerebellum/core/progress.h"
#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/gguf/imatrix_file.h"
#include "cerebellum/quantize/feedback_rounder.h"

namespace cerebellum {

/// What a built file says about its importance matrix: the keys quantize.imatrix.* as llama-quantize writes them.
struct ImatrixInfo {
    std::string file;                    ///< as the user named it
    std::optional<std::string> dataset;  ///< the first one
    std::uint32_t entries_count = 0;
    std::uint32_t chunks_count = 0;  ///< the key is left out where this is 0

    bool operator==(const ImatrixInfo&) const = default;
};

ImatrixInfo imatrix_info(const Imatrix& imatrix, const std::string& file);

/// What a built file says about its origin. A stock mix that fits a budget by a few bytes only may have no room for it.
enum class Provenance {
    full,     ///< the keys quantize.imatrix.* and cerebellum.*; names of files without the folders of this machine
    imatrix,  ///< quantize.imatrix.* only: byte for byte what llama-quantize writes
    none,     ///< neither: as small as llama-quantize would write it without an importance matrix
};

struct BuildOptions {
    int threads = 0;         ///< 0: physical cores
    bool overwrite = false;  ///< replace a file that is there already
    /// general.file_type; empty: file_type_number() of the types.
    std::optional<std::uint32_t> file_type;
    /// Write a split model (OUT-00001-of-0000N.gguf) of files of at most this size, metadata included. A tensor that is
    /// larger has a file to itself. 0: one file.
    std::uint64_t split_bytes = 0;
    /// Write as many files as the source has, each with the same tensors. Not together with split_bytes.
    bool keep_split = false;
    /// These tensors come first, in this order; all others follow in the source's order. Does not change the size.
    std::vector<std::string> tensor_order;
    std::string imatrix_file;  ///< name of the importance matrix for the metadata
    Provenance provenance = Provenance::full;
    MomentReader moments;  ///< for tensors that the recipe rounds with feedback
    /// Tensors that have been quantized before, from this source with this importance matrix.
    KnownBytes known;
    /// Each thread holds at most so much (or one row) of input and of output in memory.
    std::uint64_t chunk_bytes = 4ull * 1024 * 1024;
};

/// What build_gguf would write: for looking at before it is done.
struct PlannedFile {
    std::filesystem::path path;
    std::uint64_t bytes = 0;
    std::vector<std::string> tensors;  ///< in the order of the file
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

/// How many tensors these types would round that are quantized in the source already, in one line for the user; empty
/// where there are none. They are dequantized once, and what their first rounding lost stays lost.
std::string requantization_warning(const GgufFile& source, const TypeMap& types);

/// The files that build_gguf would write with these arguments, exact to the byte. Throws Error as build_gguf does, but
/// looks at no output path and needs no second moments.
std::vector<PlannedFile> plan_build(const GgufFile& source, const Recipe& recipe, const Imatrix* imatrix,
                                    const std::filesystem::path& out, const BuildOptions& options);

/// Writes the model: a GGUF v3 with all of the source's metadata (split.* left out or set anew), the recipe's types,
/// and the keys cerebellum.version, cerebellum.recipe_sha256 and cerebellum.source_fingerprint. Tensor data is bit for
/// bit llama-quantize's, but for tensors rounded with feedback. Returns the size in bytes, of all files together.
/// Progress counts bytes written.
///
/// Memory: the metadata plus a few megabytes per thread (write_tensors.h), whatever the size of model and tensors;
/// rounding with feedback takes two squares of a matrix's columns more for each matrix under way. Room on the disk is
/// taken before the work begins. `out` appears only when it is complete; an error or Interrupted leaves nothing behind.
/// Of a split model the first file, by which it is opened, appears last; where it replaces another, the old first file
/// is gone before the first new one appears, so that no mixture of both can be opened. Throws Error as check_recipe
/// does, where `out` is the source itself or cannot be written, or where weights cannot be stored.
std::uint64_t build_gguf(const GgufFile& source, const Recipe& recipe, const Imatrix* imatrix,
                         const std::filesystem::path& out, const BuildOptions& options, Progress& progress);

}  // namespace cerebellum
