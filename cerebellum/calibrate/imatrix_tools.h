#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "cerebellum/calibrate/text.h"
#include "cerebellum/core/recipe.h"
#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/gguf/imatrix_file.h"

namespace cerebellum {

/// The matrix of all texts together: sums and counts added up, as llama-imatrix --in-file A --in-file B does. One that
/// came from a .dat file counts in chunks: they are taken to have `legacy_chunk_size` tokens each. Throws Error where
/// the matrices are of different models (another size of the same tensor).
Imatrix merge_imatrices(const std::vector<Imatrix>& matrices, std::uint32_t legacy_chunk_size);

/// What llama-imatrix --show-statistics prints for a tensor, of its mean squared activations per column (columns of
/// experts that no token reached left out).
struct ImatrixStatistics {
    std::string tensor;
    double total = 0.0;  ///< the activation energy: their sum
    double min = 0.0;
    double max = 0.0;
    double mean = 0.0;
    double deviation = 0.0;
    double active = 0.0;       ///< share of columns above 1e-5
    std::int64_t columns = 0;  ///< that they are of
    double entropy = 0.0;      ///< in bits, of the columns' shares of the sum; at most log2(columns)
    double outliers = 0.0;     ///< share of columns more than one deviation above the mean ("ZD")
    double cosine = 0.0;  ///< between this tensor's sums and those of the same tensor one block before; 0 without one
    std::int64_t experts = 0;          ///< matrices that are counted by themselves
    std::int64_t experts_reached = 0;  ///< of these, with at least one token
    double tokens = 0.0;               ///< the most that any of them has seen
};

/// In the order of the entries; tensors that no token reached are left out.
std::vector<ImatrixStatistics> imatrix_statistics(const Imatrix& imatrix);

/// A text cut as llama-imatrix cuts it: all tokens in a row, BOS in front where the model wants one, whole windows of
/// `n_tokens`, of which each begins with BOS instead of its first token. At most `most` windows; 0: all. Throws Error
/// naming the file where there is not one window.
TokenWindows imatrix_windows(const Model& model, const std::filesystem::path& text, int n_tokens, int most);

/// One line for the user about what of these types is rounded without knowing what matters: experts that no token
/// reached (which get equal weights, as llama-quantize does it), and matrices without an entry. Empty where all is
/// covered; token embeddings never are and are not mentioned.
std::string coverage_warning(const Imatrix& imatrix, const GgufFile& source, const TypeMap& types);

}  // namespace cerebellum
