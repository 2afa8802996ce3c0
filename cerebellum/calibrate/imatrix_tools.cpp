#include "cerebellum/calibrate/imatrix_tools.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>
#include <optional>
#include <string_view>

#include "cerebellum/core/compressed_file.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/tensor_name.h"

namespace cerebellum {

namespace {

/// Adds what one matrix says about a tensor; the entry may be empty still.
void add(ImatrixEntry& sum, const ImatrixEntry& more, float scale, const std::string& name) {
    if (sum.in_sum2.empty()) {
        sum.in_sum2.assign(more.in_sum2.size(), 0.0f);
        sum.counts.assign(more.counts.size(), 0.0f);
    }
    const auto refuse = [&] {
        throw Error(
            fmt::format("cannot merge importance matrices of different models: {} has {} values in one of them "
                        "and {} in another, for {} and {} matrices",
                        name, sum.in_sum2.size(), more.in_sum2.size(), sum.counts.size(), more.counts.size()));
    };
    if (sum.in_sum2.size() != more.in_sum2.size()) refuse();
    // .dat files have a single count for all experts together.
    if (sum.counts.size() == 1) sum.counts.resize(more.counts.size(), sum.counts.front());
    if (more.counts.size() != 1 && more.counts.size() != sum.counts.size()) refuse();
    for (std::size_t i = 0; i < sum.in_sum2.size(); ++i) sum.in_sum2[i] += more.in_sum2[i] * scale;
    for (std::size_t i = 0; i < sum.counts.size(); ++i)
        sum.counts[i] += more.counts[more.counts.size() == 1 ? 0 : i] * scale;
    sum.n_cols = static_cast<std::int64_t>(sum.in_sum2.size() / sum.counts.size());
}

/// The same tensor's name one block before.
std::optional<std::string> one_block_before(const std::string& name) {
    constexpr std::string_view prefix = "blk.";
    for (auto at = name.find(prefix); at != std::string::npos; at = name.find(prefix, at + 1)) {
        const char* begin = name.data() + at + prefix.size();
        int block = 0;
        const auto [end, problem] = std::from_chars(begin, name.data() + name.size(), block);
        if (problem != std::errc() || *begin == '-' || *end != '.') continue;
        if (block == 0) return std::nullopt;
        auto before = name;
        return before.replace(at + prefix.size(), static_cast<std::size_t>(end - begin), std::to_string(block - 1));
    }
    return std::nullopt;
}

double dot(const std::vector<float>& a, const std::vector<float>& b) {
    return std::inner_product(a.begin(), a.end(), b.begin(), 0.0, std::plus<>(),
                              [](double x, double y) { return x * y; });
}

/// Mean squared activations of every column of every matrix that has seen a token.
std::vector<double> mean_squares(const ImatrixEntry& entry) {
    std::vector<double> means;
    means.reserve(entry.in_sum2.size());
    for (std::size_t i = 0; i < entry.in_sum2.size(); ++i)
        if (const double count = entry.counts[i / static_cast<std::size_t>(entry.n_cols)]; count > 0.0)
            means.push_back(entry.in_sum2[i] / count);
    return means;
}

}  // namespace

Imatrix merge_imatrices(const std::vector<Imatrix>& matrices, std::uint32_t legacy_chunk_size) {
    Imatrix merged;
    for (const auto& matrix : matrices) {
        const float scale = matrix.chunk_size == 0 ? static_cast<float>(legacy_chunk_size) : 1.0f;
        for (const auto& [name, entry] : matrix.entries) add(merged.entries[name], entry, scale, name);
        merged.datasets.insert(merged.datasets.end(), matrix.datasets.begin(), matrix.datasets.end());
        if (merged.chunk_size == 0) merged.chunk_size = matrix.chunk_size;
    }
    if (merged.chunk_size == 0) merged.chunk_size = legacy_chunk_size;
    float most = 0.0f;
    for (const auto& [name, entry] : merged.entries)
        for (const float count : entry.counts) most = std::max(most, count);
    merged.chunk_count = static_cast<std::uint32_t>(most / static_cast<float>(merged.chunk_size));
    return merged;
}

std::vector<ImatrixStatistics> imatrix_statistics(const Imatrix& imatrix) {
    constexpr double inactive = 1e-5;
    std::vector<ImatrixStatistics> all;
    for (const auto& [name, entry] : imatrix.entries) {
        const auto values = mean_squares(entry);
        if (values.empty()) continue;
        const auto n = static_cast<double>(values.size());
        auto& one = all.emplace_back();
        one.tensor = name;
        one.columns = static_cast<std::int64_t>(values.size());
        one.total = std::accumulate(values.begin(), values.end(), 0.0);
        one.min = *std::ranges::min_element(values);
        one.max = *std::ranges::max_element(values);
        one.mean = one.total / n;
        double squares = 0.0;
        for (const double value : values) squares += (value - one.mean) * (value - one.mean);
        one.deviation = std::sqrt(squares / n);
        one.active = static_cast<double>(std::ranges::count_if(values, [](double v) { return v > inactive; })) / n;
        if (one.total > 0.0)
            for (const double value : values)
                if (value > 0.0) one.entropy -= value / one.total * std::log2(value / one.total);
        one.outliers = static_cast<double>(std::ranges::count_if(
                           values, [&](double v) { return one.deviation > 0.0 && v - one.mean > one.deviation; })) /
                       n;
        if (const auto before = one_block_before(name))
            if (const auto found = imatrix.entries.find(*before);
                found != imatrix.entries.end() && found->second.in_sum2.size() == entry.in_sum2.size()) {
                const double scale = std::sqrt(dot(entry.in_sum2, entry.in_sum2)) *
                                     std::sqrt(dot(found->second.in_sum2, found->second.in_sum2));
                if (scale > 0.0) one.cosine = dot(entry.in_sum2, found->second.in_sum2) / scale;
            }
        one.experts = std::ssize(entry.counts);
        one.experts_reached = std::ranges::count_if(entry.counts, [](float count) { return count > 0.0f; });
        one.tokens = *std::ranges::max_element(entry.counts);
    }
    return all;
}

TokenWindows imatrix_windows(const Model& model, const std::filesystem::path& text, int n_tokens, int most) {
    auto tokens = model.tokenize(read_text(text));
    if (model.adds_bos()) tokens.insert(tokens.begin(), model.first_token());
    const auto step = static_cast<std::size_t>(n_tokens);
    TokenWindows windows;
    for (std::size_t begin = 0; begin + step <= tokens.size(); begin += step) {
        if (most > 0 && std::ssize(windows) == most) break;
        auto& window = windows.emplace_back(tokens.begin() + static_cast<std::ptrdiff_t>(begin),
                                            tokens.begin() + static_cast<std::ptrdiff_t>(begin + step));
        if (model.adds_bos()) window.front() = model.first_token();
    }
    if (windows.empty())
        throw Error(fmt::format("{} has {} tokens, less than one window of {}; give more text or a smaller --ctx",
                                text.string(), tokens.size(), n_tokens));
    return windows;
}

namespace {

/// Blocks behind the last one that llama.cpp runs on a text: they predict further tokens (MTP).
bool predicts_further_tokens(const GgufFile& source, std::string_view tensor) {
    const auto blocks = source.uint_value(source.architecture() + ".block_count");
    const auto further = source.uint_value(source.architecture() + ".nextn_predict_layers");
    const auto block = block_of(tensor);
    return blocks && further && block && static_cast<std::uint64_t>(*block) + *further >= *blocks;
}

/// Why the first of them has no entry, and what helps.
std::string why_without_entry(const GgufFile& source, const std::string& tensor) {
    if (predicts_further_tokens(source, tensor))
        return "blocks that predict further tokens (MTP) run on no text, so that no importance matrix has them";
    if (!block_of(tensor)) return "'imatrix compute --process-output' has tensors outside of the blocks, too";
    return "no text adds it: llama.cpp does not multiply by it, or the matrix was computed from another model";
}

}  // namespace

std::string coverage_warning(const Imatrix& imatrix, const GgufFile& source, const TypeMap& types) {
    std::int64_t experts = 0, unreached = 0, without_entry = 0;
    std::string first_unreached, first_without;
    for (const auto& [name, type] : types) {
        const TensorInfo* tensor = source.find(name);
        if (tensor == nullptr || tensor->type == type.type || !ggml_is_quantized(type.type)) continue;
        const auto found = imatrix.entries.find(name);
        if (found == imatrix.entries.end()) {
            if (name == "token_embd.weight" || name == "per_layer_token_embd.weight") continue;
            if (without_entry++ == 0) first_without = name;
            continue;
        }
        const auto zero = std::ranges::count(found->second.counts, 0.0f);
        experts += std::ssize(found->second.counts);
        unreached += zero;
        if (zero > 0 && first_unreached.empty()) first_unreached = name;
    }
    std::string text;
    if (unreached > 0)
        text = fmt::format(
            "{} of {} matrices were reached by no token of the importance matrix (first in {}) and are "
            "rounded with equal weights, as llama-quantize does it; compute it from more text, or from other kinds of "
            "it",
            unreached, experts, first_unreached);
    if (without_entry > 0)
        text +=
            fmt::format("{}{} tensors have no entry in the importance matrix (first: {}); {}", text.empty() ? "" : "; ",
                        without_entry, first_without, why_without_entry(source, first_without));
    return text;
}

}  // namespace cerebellum
