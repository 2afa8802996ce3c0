#include "cerebellum/build/compare.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>

#include "cerebellum/core/hash.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/core/parallel.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/quantize/quantize_tensor.h"

namespace cerebellum {

namespace {

constexpr std::uint64_t chunk_bytes = 4ull << 20;

std::string shape_of(const TensorInfo& tensor) {
    return fmt::format("{}", fmt::join(tensor.shape.begin(), tensor.shape.begin() + tensor.n_dims, "x"));
}

bool holds_numbers(ggml_type type) {
    return type == GGML_TYPE_F32 || ggml_get_type_traits(type)->to_float != nullptr;
}

std::map<std::string, std::string> values_of(const GgufFile& file) {
    std::map<std::string, std::string> values;
    for (std::int64_t id = 0; id < gguf_get_n_kv(file.context()); ++id)
        values[gguf_get_key(file.context(), id)] = value_line(file.context(), id);
    return values;
}

std::vector<KeyDifference> compare_keys(const GgufFile& first, const GgufFile& second) {
    const auto ours = values_of(first), theirs = values_of(second);
    std::set<std::string> keys;
    for (const auto& [key, value] : ours) keys.insert(key);
    for (const auto& [key, value] : theirs) keys.insert(key);
    std::vector<KeyDifference> differences;
    for (const auto& key : keys) {
        KeyDifference difference{key, std::nullopt, std::nullopt};
        if (const auto found = ours.find(key); found != ours.end()) difference.first = found->second;
        if (const auto found = theirs.find(key); found != theirs.end()) difference.second = found->second;
        if (difference.first != difference.second) differences.push_back(std::move(difference));
    }
    return differences;
}

struct Sums {
    bool same_bytes = true;
    double squares = 0.0;
    double error_squares = 0.0;
    double largest = 0.0;
};

std::vector<std::byte> read_rows(const GgufFile& file, const TensorInfo& tensor, std::int64_t begin, std::int64_t end) {
    const auto row = type_size_bytes(tensor.type, tensor.row_length(), 1);
    std::vector<std::byte> bytes(row * static_cast<std::uint64_t>(end - begin));
    file.read(tensor, row * static_cast<std::uint64_t>(begin), bytes);
    return bytes;
}

Sums compare_rows(const GgufFile& first_file, const TensorInfo& first, const GgufFile& second_file,
                  const TensorInfo& second, std::int64_t begin, std::int64_t end) {
    const auto a = read_rows(first_file, first, begin, end), b = read_rows(second_file, second, begin, end);
    Sums sums;
    sums.same_bytes = first.type == second.type && a == b;
    if (!holds_numbers(first.type) || !holds_numbers(second.type)) return sums;
    const auto n = static_cast<std::size_t>((end - begin) * first.row_length());
    std::vector<float> x(n), y(n);
    dequantize_rows(first.type, a, x);
    dequantize_rows(second.type, b, y);
    for (std::size_t i = 0; i < n; ++i) {
        const double difference = static_cast<double>(y[i]) - static_cast<double>(x[i]);
        sums.squares += static_cast<double>(x[i]) * static_cast<double>(x[i]);
        sums.error_squares += difference * difference;
        sums.largest = std::max(sums.largest, std::fabs(difference));
    }
    return sums;
}

void compare_data(TensorComparison& pair, const GgufFile& first_file, const GgufFile& second_file, int threads) {
    const TensorInfo &first = *pair.first, &second = *pair.second;
    if (first.shape != second.shape) return;
    const auto row_floats = static_cast<std::uint64_t>(first.row_length()) * sizeof(float);
    const auto rows = static_cast<std::int64_t>(std::max<std::uint64_t>(1, chunk_bytes / row_floats));
    // One place per chunk, so that the sums do not depend on the threads.
    std::vector<Sums> chunks(static_cast<std::size_t>((first.n_rows() + rows - 1) / rows));
    parallel_chunks(first.n_rows(), rows, threads, [&](std::int64_t begin, std::int64_t end) {
        chunks[static_cast<std::size_t>(begin / rows)] =
            compare_rows(first_file, first, second_file, second, begin, end);
    });
    Sums all;
    for (const auto& chunk : chunks) {
        all.same_bytes = all.same_bytes && chunk.same_bytes;
        all.squares += chunk.squares;
        all.error_squares += chunk.error_squares;
        all.largest = std::max(all.largest, chunk.largest);
    }
    pair.same_bytes = all.same_bytes;
    if (!holds_numbers(first.type) || !holds_numbers(second.type)) return;
    pair.largest_difference = all.largest;
    if (all.error_squares == 0.0)
        pair.relative_error = 0.0;
    else
        pair.relative_error =
            all.squares > 0.0 ? std::sqrt(all.error_squares / all.squares) : std::numeric_limits<double>::infinity();
}

/// The tensors that both files have, in the order of one of them.
std::vector<std::string> common_order(const GgufFile& file, const GgufFile& other) {
    std::vector<std::string> names;
    for (const auto& tensor : file.tensors())
        if (other.find(tensor.name) != nullptr) names.push_back(tensor.name);
    return names;
}

std::string scalar_text(gguf_type type, const gguf_context* context, std::int64_t id) {
    switch (type) {
        case GGUF_TYPE_UINT8:
            return std::to_string(gguf_get_val_u8(context, id));
        case GGUF_TYPE_INT8:
            return std::to_string(gguf_get_val_i8(context, id));
        case GGUF_TYPE_UINT16:
            return std::to_string(gguf_get_val_u16(context, id));
        case GGUF_TYPE_INT16:
            return std::to_string(gguf_get_val_i16(context, id));
        case GGUF_TYPE_UINT32:
            return std::to_string(gguf_get_val_u32(context, id));
        case GGUF_TYPE_INT32:
            return std::to_string(gguf_get_val_i32(context, id));
        case GGUF_TYPE_FLOAT32:
            return fmt::format("{}", gguf_get_val_f32(context, id));
        case GGUF_TYPE_BOOL:
            return gguf_get_val_bool(context, id) ? "true" : "false";
        case GGUF_TYPE_UINT64:
            return std::to_string(gguf_get_val_u64(context, id));
        case GGUF_TYPE_INT64:
            return std::to_string(gguf_get_val_i64(context, id));
        case GGUF_TYPE_FLOAT64:
            return fmt::format("{}", gguf_get_val_f64(context, id));
        default:
            return "?";
    }
}

std::size_t item_bytes(gguf_type type) {
    switch (type) {
        case GGUF_TYPE_UINT16:
        case GGUF_TYPE_INT16:
            return 2;
        case GGUF_TYPE_UINT32:
        case GGUF_TYPE_INT32:
        case GGUF_TYPE_FLOAT32:
            return 4;
        case GGUF_TYPE_UINT64:
        case GGUF_TYPE_INT64:
        case GGUF_TYPE_FLOAT64:
            return 8;
        default:
            return 1;
    }
}

/// In quotes, one line, valid UTF-8.
std::string in_quotes(std::string_view text) {
    return json_to_text(nlohmann::json(text));
}

std::string array_line(const gguf_context* context, std::int64_t id) {
    const auto type = gguf_get_arr_type(context, id);
    const std::size_t count = gguf_get_arr_n(context, id);
    Sha256 hash;
    if (type == GGUF_TYPE_STRING) {
        for (std::size_t i = 0; i < count; ++i) {
            const std::string_view item = gguf_get_arr_str(context, id, i);
            hash.update(fmt::format("{}:", item.size()));
            hash.update(item);
        }
    } else if (count > 0) {
        hash.update({static_cast<const std::byte*>(gguf_get_arr_data(context, id)), count * item_bytes(type)});
    }
    return fmt::format("{}[{}] sha256:{}", gguf_type_name(type), count, hash.finish());
}

}  // namespace

bool Comparison::identical() const {
    return keys.empty() && std::ranges::all_of(tensors, &TensorComparison::same_bytes);
}

std::string value_line(const gguf_context* context, std::int64_t id) {
    constexpr std::size_t longest = 200;
    const auto type = gguf_get_kv_type(context, id);
    if (type == GGUF_TYPE_ARRAY) return array_line(context, id);
    if (type != GGUF_TYPE_STRING) return fmt::format("{} {}", gguf_type_name(type), scalar_text(type, context, id));
    const std::string text = gguf_get_val_str(context, id);
    if (text.size() <= longest) return fmt::format("str {}", in_quotes(text));
    return fmt::format("str of {} bytes sha256:{}", text.size(), sha256(text));
}

Comparison compare_gguf(const GgufFile& first, const GgufFile& second, int threads, Progress& progress) {
    Comparison result;
    result.keys = compare_keys(first, second);
    result.same_order = common_order(first, second) == common_order(second, first);
    std::map<std::string, TensorComparison> tensors;
    double total = 0.0;
    for (const auto& tensor : first.tensors()) {
        tensors[tensor.name].first = tensor;
        total += static_cast<double>(tensor.size_bytes);
    }
    for (const auto& tensor : second.tensors()) tensors[tensor.name].second = tensor;
    progress.begin("comparing", total);
    double done = 0.0;
    for (auto& [name, pair] : tensors) {
        progress.check();
        progress.advance(done, name);
        pair.name = name;
        if (pair.first && pair.second) compare_data(pair, first, second, threads);
        if (pair.first) done += static_cast<double>(pair.first->size_bytes);
        result.tensors.push_back(std::move(pair));
    }
    progress.end();
    return result;
}

std::vector<std::string> diffable_listing(const GgufFile& file, Progress& progress) {
    std::vector<std::string> lines;
    for (const auto& [key, value] : values_of(file)) lines.push_back(fmt::format("key {} = {}", in_quotes(key), value));
    progress.begin("reading", static_cast<double>(file.file_size()));
    double done = 0.0;
    for (const auto& tensor : file.tensors()) {
        Sha256 hash;
        std::vector<std::byte> chunk;
        for (std::uint64_t offset = 0; offset < tensor.size_bytes; offset += chunk.size()) {
            progress.check();
            progress.advance(done + static_cast<double>(offset), tensor.name);
            chunk.resize(std::min(chunk_bytes, tensor.size_bytes - offset));
            file.read(tensor, offset, chunk);
            hash.update(chunk);
        }
        done += static_cast<double>(tensor.size_bytes);
        lines.push_back(fmt::format("tensor {} {} {} sha256:{}", in_quotes(tensor.name), type_name(tensor.type),
                                    shape_of(tensor), hash.finish()));
    }
    progress.end();
    std::ranges::sort(lines);
    return lines;
}

}  // namespace cerebellum
