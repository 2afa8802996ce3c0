#pragma once

#include <ggml.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "cerebellum/gguf/gguf_file.h"

namespace cerebellum {

/// A tensor → its bytes in another type, bit for bit what llama-quantize v0.5.0 writes (src/llama-quant.cpp):
/// dequantize to float with ggml, then ggml_quantize_chunk row by row, each matrix with its own importance weights;
/// where it was found to make the same bytes, LaneQuantizer does that.
/// ggml rounds rows independently, so neither threads nor slabs change a bit.

/// `source.size()` bytes of whole blocks of `type` to `floats.size()` numbers. Throws Error where ggml cannot read the
/// type; sizes that do not match are our own bug (assertion).
void dequantize_rows(ggml_type type, std::span<const std::byte> source, std::span<float> floats);

/// Throws Error, naming tensor and type, unless the tensor can be stored in `target`: the row length fits, ggml can
/// read the source and write the target, and weights are there if ggml's quantizer insists on them (IQ2_XXS, IQ2_XS,
/// IQ1_S). Keeping the source's type is always possible.
void check_quantizable(const TensorInfo& tensor, ggml_type target, bool has_imatrix_weights);

/// Rows [first_row, first_row + n_rows) of the tensor, in the target type, into `out` (type_size_bytes of that many
/// rows). `source` is the data of the whole tensor; `imatrix_weights` is empty or row_length x shape[2] values
/// (quantization_weights in gguf/imatrix_file.h). Needs a few rows of floats per thread and nothing else, so a caller
/// can stream a tensor of any size. Throws Error as check_quantizable does, and FigureError where weights are not
/// finite or too large for the type.
void quantize_rows(const TensorInfo& tensor, std::span<const std::byte> source, ggml_type target,
                   std::span<const float> imatrix_weights, std::int64_t first_row, std::int64_t n_rows,
                   std::span<std::byte> out, int threads);

/// The same where only the bytes of those rows are at hand.
void quantize_row_bytes(const TensorInfo& tensor, std::span<const std::byte> rows, ggml_type target,
                        std::span<const float> imatrix_weights, std::int64_t first_row, std::int64_t n_rows,
                        std::span<std::byte> out, int threads);

/// The whole tensor at once; errors as quantize_rows.
std::vector<std::byte> quantize_tensor(const TensorInfo& tensor, std::span<const std::byte> source, ggml_type target,
                                       std::span<const float> imatrix_weights, int threads);

/// Throws FigureError, as quantizing all of the tensor would, where a weight is not finite or certainly too large for
/// the type: for whoever quantizes a sample of the rows only.
void check_all_weights(const TensorInfo& tensor, std::span<const std::byte> source, ggml_type target, int threads);

/// Some rows of every matrix of a tensor, as a tensor of their own: `rows` ascend, below shape[1].
struct SampledRows {
    TensorInfo tensor;
    std::vector<std::byte> bytes;
};
SampledRows sampled_rows(const TensorInfo& tensor, std::span<const std::byte> source,
                         std::span<const std::int64_t> rows);

}  // namespace cerebellum
