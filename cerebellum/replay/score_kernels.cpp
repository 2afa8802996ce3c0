// This file is compiled for the machine's own vector instructions; its loops are written for auto-vectorisation: fixed
// lanes of independent sums, no branches, no calls in the inner loops.
#include "cerebellum/replay/score_kernels.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

namespace cerebellum {

namespace {

constexpr std::int64_t lanes = 16;
constexpr std::int64_t block = 1024;  // floats summed in single precision before going to double

/// eˣ for x ≤ 88, relative error below 2e-7, 0 below −87 (Cephes' expf: reduction by ln 2 and a polynomial of degree
/// 5).
inline float exp_approx(float x) {
    const float clamped = std::min(std::max(x, -87.3F), 88.0F);
    const float shifted = clamped * 1.44269504F + 12582912.0F;  // 1.5·2²³: rounds to the nearest integer
    const float k = shifted - 12582912.0F;
    const float r = (clamped - k * 0.693359375F) + k * 2.12194440e-4F;
    float p = 1.9875691500e-4F;
    p = p * r + 1.3981999507e-3F;
    p = p * r + 8.3334519073e-3F;
    p = p * r + 4.1665795894e-2F;
    p = p * r + 1.6666665459e-1F;
    p = p * r + 5.0000001201e-1F;
    const float y = p * r * r + r + 1.0F;
    const auto bits = std::bit_cast<std::int32_t>(shifted);  // the integer k sits in the low mantissa bits
    const auto scale = std::bit_cast<float>((bits + 127) << 23);
    return x < -87.3F ? 0.0F : y * scale;
}

float row_max(const float* values, std::int64_t n) {
    float best[lanes];
    std::fill_n(best, lanes, -std::numeric_limits<float>::infinity());
    std::int64_t i = 0;
    for (; i + lanes <= n; i += lanes)
        for (std::int64_t l = 0; l < lanes; ++l) best[l] = std::max(best[l], values[i + l]);
    for (; i < n; ++i) best[0] = std::max(best[0], values[i]);
    return *std::max_element(best, best + lanes);
}

double sum_of(const float (&part)[lanes]) {
    double sum = 0.0;
    for (const float value : part) sum += static_cast<double>(value);
    return sum;
}

double log_sum_exp(const float* values, std::int64_t n, float max) {
    double total = 0.0;
    for (std::int64_t start = 0; start < n; start += block) {
        const std::int64_t stop = std::min(n, start + block);
        float part[lanes] = {};
        std::int64_t i = start;
        for (; i + lanes <= stop; i += lanes)
            for (std::int64_t l = 0; l < lanes; ++l) part[l] += exp_approx(values[i + l] - max);
        for (; i < stop; ++i) part[0] += exp_approx(values[i] - max);
        total += sum_of(part);
    }
    return static_cast<double>(max) + std::log(total);
}

/// p·(eᵈ − 1 − d) for log p and log q.
inline float kld_term(float log_p, float log_q) {
    const float d = log_q - log_p;
    const float p = exp_approx(log_p);
    const float q = exp_approx(log_q);
    const float series =
        d * d * (0.5F + d * (1.0F / 6 + d * (1.0F / 24 + d * (1.0F / 120 + d * (1.0F / 720 + d * (1.0F / 5040))))));
    return std::fabs(d) < 0.6F ? p * series : q - p - p * d;
}

}  // namespace

double log_sum_exp(const float* logits, std::int64_t n) {
    return log_sum_exp(logits, n, row_max(logits, n));
}

void log_softmax_row(const float* logits, float* out, std::int64_t n) {
    const auto shift = static_cast<float>(log_sum_exp(logits, n, row_max(logits, n)));
    for (std::int64_t i = 0; i < n; ++i) out[i] = logits[i] - shift;
}

PositionScore score_row(const float* logits, const float* reference, std::int64_t n, std::int32_t target) {
    const float max = row_max(logits, n);
    const auto shift = static_cast<float>(log_sum_exp(logits, n, max));
    double kld = 0.0;
    float top = -std::numeric_limits<float>::infinity();  // of the reference
    std::int64_t top_block = 0;
    for (std::int64_t start = 0; start < n; start += block) {
        const std::int64_t stop = std::min(n, start + block);
        float part[lanes] = {};
        std::int64_t i = start;
        for (; i + lanes <= stop; i += lanes)
            for (std::int64_t l = 0; l < lanes; ++l) part[l] += kld_term(reference[i + l], logits[i + l] - shift);
        for (; i < stop; ++i) part[0] += kld_term(reference[i], logits[i] - shift);
        kld += sum_of(part);
        const float block_top = row_max(reference + start, stop - start);
        if (block_top > top) {
            top = block_top;
            top_block = start;
        }
    }
    PositionScore score;
    score.kld = static_cast<float>(kld);
    const auto at = std::find(reference + top_block, reference + n, top) - reference;
    score.same_top = at < n && logits[at] == max ? 1.0F : 0.0F;
    constexpr float nan = std::numeric_limits<float>::quiet_NaN();
    score.nll = target >= 0 ? shift - logits[target] : nan;
    score.reference_nll = target >= 0 ? -reference[target] : nan;
    return score;
}

}  // namespace cerebellum
