#include "cerebellum/quantize/lane_quantizer.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <mutex>
#include <random>
#include <stdexcept>

#include "cerebellum/quantize/lane_blocks.h"

namespace cerebellum {

namespace {

using lanes::BlockJob;

struct LaneType {
    ggml_type type;
    lanes::Kernel kernel;
    int block;                // weights
    int block_bytes;          // of the layout that the kernel writes
    bool without_importance;  // whether the kernel does that, too
    bool whole_rows;          // a block's bytes depend on all of its row
};

constexpr LaneType all_types[] = {
    {GGML_TYPE_Q2_K, lanes::make_q2_k, 256, 84, true, false},
    {GGML_TYPE_Q3_K, lanes::make_q3_k, 256, 110, true, false},
    {GGML_TYPE_Q4_K, lanes::make_q4_k, 256, 144, true, false},
    {GGML_TYPE_Q5_K, lanes::make_q5_k, 256, 176, true, false},
    {GGML_TYPE_Q6_K, lanes::make_q6_k, 256, 210, true, false},
    {GGML_TYPE_IQ4_XS, lanes::make_iq4_xs, 256, 136, true, false},
    {GGML_TYPE_IQ4_NL, lanes::make_iq4_nl, 32, 18, true, false},
    {GGML_TYPE_IQ3_S, lanes::make_iq3_s, 256, 110, false, false},
    {GGML_TYPE_IQ3_XXS, lanes::make_iq3_xxs, 256, 98, false, false},
    {GGML_TYPE_IQ2_S, lanes::make_iq2_s, 256, 82, false, false},
    {GGML_TYPE_IQ2_XS, lanes::make_iq2_xs, 256, 74, false, false},
    {GGML_TYPE_IQ2_XXS, lanes::make_iq2_xxs, 256, 66, false, false},
    {GGML_TYPE_IQ1_M, lanes::make_iq1_m, 256, 56, false, false},
    {GGML_TYPE_IQ1_S, lanes::make_iq1_s, 256, 50, false, false},
    {GGML_TYPE_Q4_0, lanes::make_q4_0, 32, 18, false, true},
    {GGML_TYPE_Q4_1, lanes::make_q4_1, 32, 20, false, true},
    {GGML_TYPE_Q5_0, lanes::make_q5_0, 32, 22, false, true},
    {GGML_TYPE_Q5_1, lanes::make_q5_1, 32, 24, false, true},
};
/// Of all types the one whose bytes tell soonest that ggml's compiler fused multiplications and additions. All of
/// ggml's quantizers are one file, so where this one differs none is believed.
constexpr ggml_type canary = GGML_TYPE_Q4_K;

const LaneType* find_type(ggml_type type) {
    const auto* found = std::ranges::find(all_types, type, &LaneType::type);
    return found == std::end(all_types) ? nullptr : found;
}

bool has_layout(const LaneType& type) {
    return ggml_blck_size(type.type) == type.block &&
           ggml_type_size(type.type) == static_cast<std::size_t>(type.block_bytes);
}

/// Some rows of one type on their way through the lanes.
class Run {
  public:
    Run(const LaneType& type, ReferenceQuantizer reference, const float* rows, std::byte* out, std::int64_t n_rows,
        std::int64_t row_length, const float* importance)
        : type_(type),
          reference_(reference),
          rows_(rows),
          out_(out),
          n_rows_(n_rows),
          row_length_(row_length),
          importance_(importance),
          blocks_per_row_(row_length / type.block) {}

    void quantize() {
        if (type_.whole_rows) {
            mean_squares_.resize(static_cast<std::size_t>(n_rows_));
            lanes::row_mean_squares(rows_, n_rows_, row_length_, mean_squares_.data());
        }
        std::array<BlockJob, lanes::max_lanes> jobs{};
        const std::int64_t n_blocks = n_rows_ * blocks_per_row_;
        const std::int64_t at_once = lanes::lane_count();
        for (std::int64_t first = 0; first < n_blocks; first += at_once) {
            const auto count = static_cast<std::size_t>(std::min(at_once, n_blocks - first));
            for (std::size_t i = 0; i < count; ++i) jobs[i] = job(first + static_cast<std::int64_t>(i));
            const auto odd = type_.kernel({jobs.data(), count});
            for (std::size_t i = 0; odd != 0 && i < count; ++i)
                if ((odd >> i & 1) != 0) repeat(jobs[i], first + static_cast<std::int64_t>(i));
        }
    }

  private:
    BlockJob job(std::int64_t block) const {
        return {rows_ + block * type_.block,
                importance_ == nullptr ? nullptr : importance_ + block % blocks_per_row_ * type_.block,
                mean_squares_.empty() ? 0.0f : mean_squares_[static_cast<std::size_t>(block / blocks_per_row_)],
                out_ + block * type_.block_bytes};
    }
    void repeat(const BlockJob& job, std::int64_t block) const {
        if (!type_.whole_rows) return reference_(type_.type, job.weights, job.out, 1, type_.block, job.importance);
        // Of the row only this block may be lost on the lanes; the others come out the same again.
        const auto row_bytes = static_cast<std::size_t>(blocks_per_row_ * type_.block_bytes);
        std::vector<std::byte> row_out(row_bytes);
        const std::int64_t row = block / blocks_per_row_;
        reference_(type_.type, rows_ + row * row_length_, row_out.data(), 1, row_length_, importance_);
        std::copy_n(row_out.begin() + block % blocks_per_row_ * type_.block_bytes, type_.block_bytes, job.out);
    }

    const LaneType& type_;
    ReferenceQuantizer reference_;
    const float* rows_;
    std::byte* out_;
    std::int64_t n_rows_, row_length_;
    const float* importance_;
    std::int64_t blocks_per_row_;
    std::vector<float> mean_squares_;
};

/// Rows of every kind that quantizers treat apart.
std::vector<float> trial_rows(std::int64_t n_rows, std::int64_t row_length) {
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    std::student_t_distribution<float> heavy(2.0f);
    std::vector<float> rows(static_cast<std::size_t>(n_rows * row_length));
    for (std::size_t i = 0; i < rows.size(); ++i) {
        const float x = normal(random);
        const auto dice = random();
        const auto kind = i / static_cast<std::size_t>(row_length) % 12;
        const float values[] = {x,
                                x * 0.02f,
                                std::clamp(heavy(random), -1e6f, 1e6f),
                                dice % 4 != 0 ? 0.0f : x,                        // mostly zeros
                                static_cast<float>(dice % 7) * 0.125f - 0.375f,  // ties
                                -std::fabs(x),
                                dice % 97 != 0 ? x * 1e-3f : x * 100.0f,  // outliers
                                0.37f,
                                x * 1e-18f,
                                x * 1e8f,
                                std::fabs(x) * (dice % 50 != 0 ? 1e-5f : 1.0f),  // scales that round to zero
                                -1.0f - 1e-7f * static_cast<float>(dice % 5)};
        rows[i] = values[kind];
    }
    return rows;
}

bool come_out_the_same(const LaneType& type, bool with_importance, ReferenceQuantizer reference) {
    constexpr std::int64_t n_rows = 36;
    constexpr std::int64_t row_length = 768;
    const auto rows = trial_rows(n_rows, row_length);
    std::mt19937 random(8);
    std::normal_distribution<float> normal;
    std::vector<float> importance(row_length);
    for (float& weight : importance) weight = std::exp(normal(random));
    const float* given = with_importance ? importance.data() : nullptr;
    std::vector<std::byte> ours(ggml_row_size(type.type, row_length) * n_rows), theirs(ours.size());
    reference(type.type, rows.data(), theirs.data(), n_rows, row_length, given);
    try {
        Run(type, reference, rows.data(), ours.data(), n_rows, row_length, given).quantize();
    } catch (const std::runtime_error&) {
        return false;  // this ggml reads a codebook of another kind
    }
    return ours == theirs;
}

}  // namespace

void quantize_with_ggml(ggml_type type, const float* rows, std::byte* out, std::int64_t n_rows, std::int64_t row_length,
                        const float* importance) {
    ggml_quantize_chunk(type, rows, out, 0, n_rows, row_length, importance);
}

struct LaneQuantizer::Verdicts {
    struct Verdict {
        std::once_flag once;
        bool same = false;
    };
    std::array<std::array<Verdict, 2>, std::size(all_types)> of;  // without importance, with it
};

LaneQuantizer::LaneQuantizer(ReferenceQuantizer reference)
    : reference_(reference), verdicts_(std::make_unique<Verdicts>()) {}
LaneQuantizer::~LaneQuantizer() = default;

bool LaneQuantizer::uses_lanes(ggml_type type, bool with_importance) const {
    if (!has_lanes(type, with_importance)) return false;
    const auto* known = find_type(type);
    auto& verdict = verdicts_->of[static_cast<std::size_t>(known - all_types)][with_importance ? 1 : 0];
    std::call_once(verdict.once, [&] {
        const bool is_canary = type == canary && with_importance;
        verdict.same =
            (is_canary || uses_lanes(canary, true)) && come_out_the_same(*known, with_importance, reference_);
    });
    return verdict.same;
}

void LaneQuantizer::quantize(ggml_type type, const float* rows, std::byte* out, std::int64_t n_rows,
                             std::int64_t row_length, const float* importance) const {
    if (uses_lanes(type, importance != nullptr) && lanes::all_finite(rows, n_rows * row_length) &&
        (importance == nullptr || lanes::all_finite(importance, row_length)))
        Run(*find_type(type), reference_, rows, out, n_rows, row_length, importance).quantize();
    else
        reference_(type, rows, out, n_rows, row_length, importance);
}

const LaneQuantizer& lane_quantizer() {
    static const LaneQuantizer quantizer;
    return quantizer;
}

std::vector<ggml_type> lane_types() {
    std::vector<ggml_type> types;
    for (const auto& known : all_types) types.push_back(known.type);
    return types;
}

bool has_lanes(ggml_type type, bool with_importance) {
    const auto* known = find_type(type);
    return known != nullptr && (with_importance || known->without_importance) && has_layout(*known);
}

}  // namespace cerebellum
