#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "cerebellum/gguf/gguf_file.h"

namespace cerebellum {

/// What llama-imatrix stores for one tensor: sums of squared activations, not means (tools/imatrix/imatrix.cpp,
/// save_imatrix). Tensors of experts have one count per expert; every other tensor, stacked ones included, has a single
/// count, so that a stacked dense tensor appears as one matrix of row_length x shape[2] columns.
struct ImatrixEntry {
    std::vector<float> in_sum2;  ///< counts.size() x n_cols, expert by expert: Σ x² over the tokens seen
    std::vector<float> counts;   ///< tokens that went into each matrix's sums (whole numbers, as floats)
    std::int64_t n_cols = 0;     ///< in_sum2.size() / counts.size()
};

/// An importance matrix. Entries carry the full name of the weight they belong to ("blk.0.attn_q.weight").
struct Imatrix {
    std::map<std::string, ImatrixEntry> entries;
    std::vector<std::string> datasets;  ///< names of the texts
    std::uint32_t chunk_count = 0;
    /// Tokens per chunk. 0 for one that came from a .dat file, which stores mean values times the number of chunks: its
    /// counts are chunks and its sums are per token of a chunk.
    std::uint32_t chunk_size = 0;
};

/// Reads llama.cpp's GGUF format and the older .dat one. Throws Error naming the path where the file is neither, sums
/// and counts do not match, or values are not finite.
Imatrix read_imatrix(const std::filesystem::path& path);

/// Writes the format that llama-imatrix v0.5.0 writes, byte for byte, and llama-quantize reads; the final name only
/// ever shows a complete file. Throws Error naming the path or the entry.
void write_imatrix(const std::filesystem::path& path, const Imatrix& imatrix);

/// Writes the older .dat format as llama-imatrix --output-format dat does: tensors of which nothing was seen are left
/// out, experts that no token reached get ones. Throws Error as write_imatrix does.
void write_legacy_imatrix(const std::filesystem::path& path, const Imatrix& imatrix);

/// Where a matrix has no importance at all over 16 columns or more (columns that are 0 on the text that it was computed
/// from), quantizers round every weight of them to 0. They get the same small importance there: a thousandth of the
/// matrix's mean, and where nothing of it has any, 1. Returns the names of the entries that were changed. Files are
/// then no longer those of llama-quantize to the byte.
std::vector<std::string> fill_gaps(Imatrix& imatrix);
/// One line for the user about these entries; empty without any.
std::string describe_gaps(const std::vector<std::string>& names);

/// The values that llama-quantize hands to the quantizer (tools/quantize/quantize.cpp, load_imatrix), same shape as
/// in_sum2: in_sum2 / count, and 1 for every column of a matrix that no token reached.
std::vector<float> quantization_weights(const ImatrixEntry& entry);

/// The weights for one tensor, row_length x shape[2] values; empty where `imatrix` is null or does not know it. Throws
/// Error where the entry is of another size, as llama-quantize does, which lets only token embeddings pass.
std::vector<float> quantization_weights(const Imatrix* imatrix, const TensorInfo& tensor);

}  // namespace cerebellum
