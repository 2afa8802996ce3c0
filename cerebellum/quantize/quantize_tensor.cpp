#include "cerebellum/quantize/quantize_tensor.h"

#include <fmt/format.h>

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>

#include "cerebellum/core/error.h"
#include "cerebellum/core/figure_error.h"
#include "cerebellum/core/parallel.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/quantize/lane_quantizer.h"

namespace cerebellum {

namespace {

/// Weights a thread dequantizes and rounds at a time: llama-quantize's own chunk, small enough for the cache.
constexpr std::int64_t chunk_weights = 32 * 512;

/// Beyond this magnitude a weight certainly overflows the type; the bound refuses nothing that could be stored.
/// Quantized types: K-quants scale furthest, 63·15·65504, and some of ggml's quantizers abort on numbers whose squares
/// overflow. F16: 65520 is the first number that rounds to infinity; found here, as ggml's own check would print it.
float largest_weight(ggml_type target) {
    if (ggml_is_quantized(target)) return 1e9f;
    if (target == GGML_TYPE_F16) return 65519.996f;
    return std::numeric_limits<float>::max();
}

bool can_dequantize(ggml_type type) {
    return type == GGML_TYPE_F32 || ggml_get_type_traits(type)->to_float != nullptr;
}

void check_values(const TensorInfo& tensor, ggml_type target, std::span<const float> values, std::int64_t first_row) {
    // What the source holds already can be copied.
    const float largest = target == tensor.type ? std::numeric_limits<float>::max() : largest_weight(target);
    for (std::size_t i = 0; i < values.size(); ++i) {
        if (std::fabs(values[i]) <= largest) continue;  // false for NaN
        throw FigureError(fmt::format(
            "cannot store {} as {}: row {} holds the value {}, which is too large or no number; choose "
            "another type for it, or mend the source",
            tensor.name, type_name(target), first_row + static_cast<std::int64_t>(i) / tensor.row_length(), values[i]));
    }
}

}  // namespace

void dequantize_rows(ggml_type type, std::span<const std::byte> source, std::span<float> floats) {
    assert(source.size() == type_size_bytes(type, static_cast<std::int64_t>(floats.size()), 1));
    if (type == GGML_TYPE_F32) {
        std::memcpy(floats.data(), source.data(), source.size());
        return;
    }
    if (!can_dequantize(type)) throw Error(fmt::format("cannot read tensors of type {} as numbers", type_name(type)));
    ggml_get_type_traits(type)->to_float(source.data(), floats.data(), static_cast<std::int64_t>(floats.size()));
}

void check_quantizable(const TensorInfo& tensor, ggml_type target, bool has_imatrix_weights) {
    if (target == tensor.type) return;
    const auto refuse = [&](std::string_view reason) {
        throw Error(fmt::format("cannot quantize {} to {}: {}", tensor.name, type_name(target), reason));
    };
    if (!can_dequantize(tensor.type)) refuse(fmt::format("its type {} holds no weights", type_name(tensor.type)));
    if (!type_is_quantizable(target)) refuse("ggml has no quantizer for that type");
    if (!type_fits_row(target, tensor.row_length()))
        refuse(
            fmt::format("its rows of {} weights are no multiple of {}", tensor.row_length(), ggml_blck_size(target)));
    if (type_needs_imatrix(target) && !has_imatrix_weights)
        refuse("that type needs an importance matrix, which has no entry for this tensor; choose another type for it");
}

namespace {

/// Rows [begin, begin + n_rows) from the bytes `rows`, through a buffer that fits the cache.
void quantize_few(const TensorInfo& tensor, const std::byte* rows, ggml_type target,
                  std::span<const float> imatrix_weights, std::int64_t begin, std::int64_t n_rows, std::byte* result) {
    const std::int64_t row_length = tensor.row_length();
    const std::size_t target_row = ggml_row_size(target, row_length);
    const std::size_t result_bytes = static_cast<std::size_t>(n_rows) * target_row;
    const std::int64_t end = begin + n_rows;
    const auto n_values = static_cast<std::size_t>(n_rows * row_length);
    // Of a copied tensor only the types that hold weights can be checked.
    std::unique_ptr<float[]> buffer;
    if (can_dequantize(tensor.type)) {
        buffer = std::make_unique_for_overwrite<float[]>(n_values);
        dequantize_rows(tensor.type, {rows, static_cast<std::size_t>(n_rows) * ggml_row_size(tensor.type, row_length)},
                        {buffer.get(), n_values});
        check_values(tensor, target, {buffer.get(), n_values}, begin);
    }
    if (target == tensor.type) {
        std::memcpy(result, rows, result_bytes);
        return;
    }
    for (std::int64_t row = begin; row < end;) {
        // Each matrix of experts has its own importance weights.
        const std::int64_t matrix = row / tensor.shape[1];
        const std::int64_t stop = std::min(end, (matrix + 1) * tensor.shape[1]);
        const float* weights =
            imatrix_weights.empty() ? nullptr : imatrix_weights.data() + matrix % tensor.shape[2] * row_length;
        lane_quantizer().quantize(target, buffer.get() + (row - begin) * row_length,
                                  result + static_cast<std::size_t>(row - begin) * target_row, stop - row, row_length,
                                  weights);
        row = stop;
    }
    if (!ggml_validate_row_data(target, result, result_bytes))
        throw FigureError(
            fmt::format("cannot quantize {} to {}: its weights overflow that type in rows {} to {}; choose "
                        "another type for it",
                        tensor.name, type_name(target), begin, end - 1));
}

}  // namespace

void quantize_row_bytes(const TensorInfo& tensor, std::span<const std::byte> rows, ggml_type target,
                        std::span<const float> imatrix_weights, std::int64_t first_row, std::int64_t n_rows,
                        std::span<std::byte> out, int threads) {
    check_quantizable(tensor, target, !imatrix_weights.empty());
    const std::int64_t row_length = tensor.row_length();
    const std::size_t source_row = ggml_row_size(tensor.type, row_length);
    const std::size_t target_row = ggml_row_size(target, row_length);
    assert(first_row >= 0 && n_rows >= 0 && first_row + n_rows <= tensor.n_rows());
    assert(rows.size() == source_row * static_cast<std::size_t>(n_rows));
    assert(out.size() == target_row * static_cast<std::size_t>(n_rows));
    if (!imatrix_weights.empty() && imatrix_weights.size() != static_cast<std::size_t>(row_length * tensor.shape[2]))
        throw Error(fmt::format("cannot quantize {}: {} importance weights do not fit {} columns of {} matrices",
                                tensor.name, imatrix_weights.size(), row_length, tensor.shape[2]));
    // Builds the tables of the IQ types, under ggml's lock, before threads compete for them.
    ggml_quantize_init(target);
    parallel_chunks(n_rows, std::max<std::int64_t>(1, chunk_weights / row_length), threads,
                    [&](std::int64_t begin, std::int64_t end) {
                        quantize_few(tensor, rows.data() + static_cast<std::size_t>(begin) * source_row, target,
                                     imatrix_weights, first_row + begin, end - begin,
                                     out.data() + static_cast<std::size_t>(begin) * target_row);
                    });
}

void quantize_rows(const TensorInfo& tensor, std::span<const std::byte> source, ggml_type target,
                   std::span<const float> imatrix_weights, std::int64_t first_row, std::int64_t n_rows,
                   std::span<std::byte> out, int threads) {
    assert(source.size() == tensor.size_bytes);
    const std::size_t row = ggml_row_size(tensor.type, tensor.row_length());
    quantize_row_bytes(
        tensor, source.subspan(static_cast<std::size_t>(first_row) * row, static_cast<std::size_t>(n_rows) * row),
        target, imatrix_weights, first_row, n_rows, out, threads);
}

std::vector<std::byte> quantize_tensor(const TensorInfo& tensor, std::span<const std::byte> source, ggml_type target,
                                       std::span<const float> imatrix_weights, int threads) {
    check_quantizable(tensor, target, !imatrix_weights.empty());
    std::vector<std::byte> bytes(type_size_bytes(target, tensor.row_length(), tensor.n_rows()));
    quantize_rows(tensor, source, target, imatrix_weights, 0, tensor.n_rows(), bytes, threads);
    return bytes;
}

void check_all_weights(const TensorInfo& tensor, std::span<const std::byte> source, ggml_type target, int threads) {
    assert(source.size() == tensor.size_bytes);
    if (!can_dequantize(tensor.type)) return;
    const std::int64_t row_length = tensor.row_length();
    const std::size_t row = ggml_row_size(tensor.type, row_length);
    parallel_chunks(tensor.n_rows(), std::max<std::int64_t>(1, chunk_weights / row_length), threads,
                    [&](std::int64_t begin, std::int64_t end) {
                        std::vector<float> values(static_cast<std::size_t>((end - begin) * row_length));
                        dequantize_rows(tensor.type,
                                        source.subspan(static_cast<std::size_t>(begin) * row,
                                                       static_cast<std::size_t>(end - begin) * row),
                                        values);
                        check_values(tensor, target, values, begin);
                    });
}

SampledRows sampled_rows(const TensorInfo& tensor, std::span<const std::byte> source,
                         std::span<const std::int64_t> rows) {
    SampledRows result{tensor, {}};
    const auto row = ggml_row_size(tensor.type, tensor.row_length());
    const auto matrices = tensor.n_rows() / tensor.shape[1];
    result.tensor.shape[1] = std::ssize(rows);
    result.tensor.size_bytes = row * rows.size() * static_cast<std::size_t>(matrices);
    result.bytes.reserve(result.tensor.size_bytes);
    for (std::int64_t matrix = 0; matrix < matrices; ++matrix)
        for (const auto index : rows) {
            assert(0 <= index && index < tensor.shape[1]);
            const auto bytes = source.subspan(static_cast<std::size_t>(matrix * tensor.shape[1] + index) * row, row);
            result.bytes.insert(result.bytes.end(), bytes.begin(), bytes.end());
        }
    return result;
}

}  // namespace cerebellum
