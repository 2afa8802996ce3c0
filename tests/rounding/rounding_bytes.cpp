// Prints a digest of the bytes that ggml and we make of the same numbers, for every type: with importance, without, and
// with error feedback. Compiled several times for different processors (tests/CMakeLists.txt), whose lists are equal.
// Exit code 77 on a processor that lacks what it was compiled for.

#include <fmt/format.h>
#include <ggml.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "cerebellum/core/hash.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/quantize/block_codec.h"
#include "cerebellum/quantize/feedback.h"
#include "cerebellum/quantize/input_metric.h"
#include "cerebellum/quantize/lane_quantizer.h"

namespace {

using namespace cerebellum;

constexpr std::int64_t n_rows = 16, n_cols = 768;

/// Of whole numbers only: a distribution of the standard library may differ from one to the next.
std::vector<float> numbers(std::size_t count, std::uint32_t seed) {
    std::mt19937 random(seed);
    std::vector<float> result(count);
    for (float& value : result) {
        std::int64_t sum = 0;
        for (int i = 0; i < 6; ++i) sum += static_cast<std::int64_t>(random() % 4096) - 2048;
        value = static_cast<float>(sum) / 65536.0f;
    }
    return result;
}

std::string digest(const std::vector<std::byte>& bytes) {
    return sha256({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
}

/// Σ x xᵀ of 96 inputs, columns of different sizes.
std::vector<float> moments() {
    const auto n = static_cast<std::size_t>(n_cols);
    const auto x = numbers(96 * n, 3);
    std::vector<float> result;
    for (std::size_t i = 0; i < n; ++i)
        for (std::size_t j = 0; j <= i; ++j) {
            double sum = 0.0;
            for (std::size_t t = 0; t < 96; ++t)
                sum += static_cast<double>(x[t * n + i]) * static_cast<double>(x[t * n + j]);
            result.push_back(static_cast<float>(sum) * static_cast<float>((1 + i % 7) * (1 + j % 7)));
        }
    return result;
}

int quantized(const std::vector<float>& weights, bool with_importance) {
    const auto importance = numbers(static_cast<std::size_t>(n_cols), 2);
    std::vector<float> squares;
    for (const float x : importance) squares.push_back(x * x);
    for (const auto type : lane_types()) {
        if (!has_lanes(type, with_importance)) continue;
        if (!lane_quantizer().uses_lanes(type, with_importance)) {
            fmt::print(stderr, "{}: lanes compiled for this processor make other bytes than ggml\n", type_name(type));
            return 1;
        }
        std::vector<std::byte> bytes(type_size_bytes(type, n_cols, n_rows));
        lane_quantizer().quantize(type, weights.data(), bytes.data(), n_rows, n_cols,
                                  with_importance ? squares.data() : nullptr);
        fmt::print("{} {} {}\n", type_name(type), with_importance ? "importance" : "plain", digest(bytes));
    }
    return 0;
}

void fed_back(const std::vector<float>& weights) {
    const InputMetric metric(moments(), n_cols);
    const auto read = [&](std::int64_t row, std::span<float> out) {
        std::copy_n(weights.begin() + row * n_cols, n_cols, out.begin());
    };
    for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
        const auto* const codec = find_codec(static_cast<ggml_type>(i));
        if (codec == nullptr) continue;
        std::vector<std::byte> bytes(type_size_bytes(codec->type, n_cols, n_rows));
        quantize_with_ggml(codec->type, weights.data(), bytes.data(), n_rows, n_cols, nullptr);
        const auto changed = round_with_feedback(*codec, metric, read, bytes, 1);
        fmt::print("{} feedback {} {}\n", type_name(codec->type), changed, digest(bytes));
    }
}

}  // namespace

int main() {
#ifdef CEREBELLUM_NEEDS
    if (!__builtin_cpu_supports(CEREBELLUM_NEEDS)) {
        fmt::print(stderr, "this processor has no {}\n", CEREBELLUM_NEEDS);
        return 77;
    }
#endif
    const auto weights = numbers(static_cast<std::size_t>(n_rows * n_cols), 1);
    if (quantized(weights, true) != 0 || quantized(weights, false) != 0) return 1;
    fed_back(weights);
    return 0;
}
