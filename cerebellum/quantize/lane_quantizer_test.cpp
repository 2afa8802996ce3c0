#include "cerebellum/quantize/lane_quantizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <thread>

#include "cerebellum/core/quant_type.h"

namespace cerebellum {
namespace {

using Random = std::mt19937;
struct Numbers {
    const char* name;
    std::function<float(Random&)> next;
};

float normal(Random& random) {
    return std::normal_distribution<float>()(random);
}

const std::vector<Numbers>& weights_of_every_kind() {
    static const std::vector<Numbers> all = {
        {"normal", normal},
        {"student-t",
         [](Random& random) { return std::clamp(std::student_t_distribution<float>(2)(random), -1e9f, 1e9f); }},
        {"all zero", [](Random&) { return 0.0f; }},
        {"constant", [](Random&) { return -0.37f; }},
        {"outliers", [](Random& random) { return (random() % 255 == 0 ? 1e4f : 1e-3f) * normal(random); }},
        {"subnormal", [](Random& random) { return 1e-41f * normal(random); }},
        {"negative", [](Random& random) { return -std::fabs(normal(random)); }},
        {"tiny", [](Random& random) { return 1e-15f * normal(random); }},
        {"huge", [](Random& random) { return std::clamp(3e8f * normal(random), -1e9f, 1e9f); }},
        {"mostly zero", [](Random& random) { return random() % 8 == 0 ? normal(random) : 0.0f; }},
        {"zeros at a stretch",  // groups of zeros among others
         [zero = false, left = Random::result_type{0}](Random& random) mutable {
             if (left-- == 0) {
                 zero = !zero;
                 left = random() % 80;
             }
             return zero ? 0.0f : normal(random);
         }},
        {"few values", [](Random& random) { return static_cast<float>(random() % 7) * 0.125f - 0.375f; }},
        {"halves up to -127",  // half-way between the uneven levels of IQ4, where those are not scaled
         [](Random& random) {
             return random() % 8 == 0 ? -127.0f : static_cast<float>(random() % 481) * 0.5f - 127.0f;
         }},
        {"a hair apart", [](Random& random) { return -1.0f - 1e-7f * static_cast<float>(random() % 5); }},
        {"every magnitude",
         [](Random& random) {
             return std::clamp(std::exp(8 * normal(random)), 0.0f, 1e9f) * (random() % 2 == 0 ? 1.0f : -1.0f);
         }},
        {"scales that round to zero",
         [](Random& random) { return std::fabs(normal(random)) * (random() % 50 == 0 ? 1.0f : 1e-6f); }},
    };
    return all;
}

const std::vector<Numbers>& importance_of_every_kind() {
    static const std::vector<Numbers> all = {
        {"usual", [](Random& random) { return std::exp(normal(random)); }},
        {"with zeros", [](Random& random) { return random() % 3 == 0 ? std::exp(normal(random)) : 0.0f; }},
        {"huge spread", [](Random& random) { return std::exp(15 * normal(random)); }},
        {"zero", [](Random&) { return 0.0f; }},
        {"alike", [](Random&) { return 1.0f; }},
    };
    return all;
}

std::vector<float> draw(const Numbers& numbers, std::int64_t count, Random& random) {
    std::vector<float> result(static_cast<std::size_t>(count));
    for (float& value : result) value = numbers.next(random);
    return result;
}

struct Rows {
    std::vector<float> floats;
    std::int64_t n_rows, row_length;
    std::vector<float> importance;  // empty: none

    const float* given() const { return importance.empty() ? nullptr : importance.data(); }
    std::vector<std::byte> by_lanes(const LaneQuantizer& quantizer, ggml_type type) const {
        std::vector<std::byte> bytes(type_size_bytes(type, row_length, n_rows));
        quantizer.quantize(type, floats.data(), bytes.data(), n_rows, row_length, given());
        return bytes;
    }
    std::vector<std::byte> by(ReferenceQuantizer reference, ggml_type type) const {
        std::vector<std::byte> bytes(type_size_bytes(type, row_length, n_rows));
        reference(type, floats.data(), bytes.data(), n_rows, row_length, given());
        return bytes;
    }
};

/// FNV-1a of the Q4_K that ggml makes of some whole numbers. A ggml whose compiler fused multiplications and additions
/// makes others: no lanes of ours have a say in this.
std::uint64_t fingerprint_of_ggml() {
    Random random(6);
    Rows rows{std::vector<float>(16 * 1024), 16, 1024, std::vector<float>(1024)};
    for (float& x : rows.floats) x = (static_cast<float>(random() % 4001) - 2000.0f) / 1024.0f;
    for (float& x : rows.importance) x = 1.0f + static_cast<float>(random() % 64);
    std::uint64_t hash = 0xcbf29ce484222325U;
    for (const auto byte : rows.by(quantize_with_ggml, GGML_TYPE_Q4_K))
        hash = (hash ^ static_cast<std::uint64_t>(byte)) * 0x100000001b3U;
    return hash;
}
bool ggml_rounds_every_operation() {
    static const bool result = fingerprint_of_ggml() == 0xb216abd5f934df64U;
    return result;
}
constexpr const char* fused =
    "this ggml was compiled with fused multiplications and additions; the one that scripts/llama-cpp.sh builds is not";

class LaneQuantizing : public ::testing::TestWithParam<ggml_type> {
  protected:
    void SetUp() override {
        if (!ggml_rounds_every_operation()) GTEST_SKIP() << fused;
    }
};

TEST_P(LaneQuantizing, equals_ggml_on_every_kind_of_weights_and_importance) {
    ASSERT_TRUE(lane_quantizer().uses_lanes(GetParam(), true));
    Random random(1);
    for (const auto& weights : weights_of_every_kind())
        for (const auto& importance : importance_of_every_kind())
            for (const std::int64_t row_length : {256, 768}) {
                const Rows rows{draw(weights, 5 * row_length, random), 5, row_length,
                                draw(importance, row_length, random)};
                ASSERT_TRUE(rows.by_lanes(lane_quantizer(), GetParam()) == rows.by(quantize_with_ggml, GetParam()))
                    << weights.name << ", importance " << importance.name << ", rows of " << row_length;
            }
}

TEST_P(LaneQuantizing, equals_ggml_without_importance_where_ggml_can_do_without) {
    EXPECT_EQ(lane_quantizer().uses_lanes(GetParam(), false), has_lanes(GetParam(), false));
    if (ggml_quantize_requires_imatrix(GetParam())) {
        EXPECT_FALSE(has_lanes(GetParam(), false));
        return;
    }
    Random random(2);
    for (const auto& weights : weights_of_every_kind())
        for (const std::int64_t row_length : {256, 1280}) {
            const Rows rows{draw(weights, 3 * row_length, random), 3, row_length, {}};
            ASSERT_TRUE(rows.by_lanes(lane_quantizer(), GetParam()) == rows.by(quantize_with_ggml, GetParam()))
                << weights.name << ", rows of " << row_length;
        }
}

TEST_P(LaneQuantizing, takes_any_number_of_blocks) {
    Random random(3);
    const auto block = ggml_blck_size(GetParam());
    for (std::int64_t n_blocks = 1; n_blocks < 20; ++n_blocks)
        for (const bool one_row : {true, false}) {
            const std::int64_t row_length = one_row ? n_blocks * block : block;
            const Rows rows{draw(weights_of_every_kind()[0], n_blocks * block, random), one_row ? 1 : n_blocks,
                            row_length, draw(importance_of_every_kind()[0], row_length, random)};
            ASSERT_TRUE(rows.by_lanes(lane_quantizer(), GetParam()) == rows.by(quantize_with_ggml, GetParam()))
                << n_blocks << (one_row ? " blocks of a row" : " rows");
        }
}

TEST_P(LaneQuantizing, blocks_of_different_kinds_do_not_disturb_each_other) {
    Random random(4);
    Rows rows{{}, 1, 0, {}};
    for (int block = 0; block < 64; ++block)
        for (const auto& kind = weights_of_every_kind()[random() % weights_of_every_kind().size()];
             const float x : draw(kind, 256, random))
            rows.floats.push_back(x);
    rows.row_length = std::ssize(rows.floats);
    rows.importance = draw(importance_of_every_kind()[2], rows.row_length, random);
    EXPECT_TRUE(rows.by_lanes(lane_quantizer(), GetParam()) == rows.by(quantize_with_ggml, GetParam()));
}

INSTANTIATE_TEST_SUITE_P(Types, LaneQuantizing, ::testing::ValuesIn(lane_types()),
                         [](const auto& type) { return std::string(type_name(type.param)); });

Rows usual_rows() {
    Random random(5);
    return {draw(weights_of_every_kind()[0], 4 * 512, random), 4, 512,
            draw(importance_of_every_kind()[0], 512, random)};
}

void one_bit_wrong(ggml_type type, const float* rows, std::byte* out, std::int64_t n_rows, std::int64_t row_length,
                   const float* importance) {
    quantize_with_ggml(type, rows, out, n_rows, row_length, importance);
    out[ggml_row_size(type, row_length) / 2] ^= std::byte{1};
}

TEST(LaneQuantizer, stays_with_the_other_quantizer_where_a_bit_differs) {
    const LaneQuantizer quantizer(one_bit_wrong);
    const auto rows = usual_rows();
    for (const auto type : lane_types()) {
        EXPECT_FALSE(quantizer.uses_lanes(type, true)) << type_name(type);
        EXPECT_TRUE(rows.by_lanes(quantizer, type) == rows.by(one_bit_wrong, type)) << type_name(type);
    }
}

void wrong_in_q6_k(ggml_type type, const float* rows, std::byte* out, std::int64_t n_rows, std::int64_t row_length,
                   const float* importance) {
    (type == GGML_TYPE_Q6_K ? one_bit_wrong : quantize_with_ggml)(type, rows, out, n_rows, row_length, importance);
}

TEST(LaneQuantizer, judges_each_type) {
    if (!ggml_rounds_every_operation()) GTEST_SKIP() << fused;
    const LaneQuantizer quantizer(wrong_in_q6_k);
    EXPECT_FALSE(quantizer.uses_lanes(GGML_TYPE_Q6_K, true));
    EXPECT_TRUE(quantizer.uses_lanes(GGML_TYPE_Q3_K, true));
}

void mark_only(ggml_type type, const float*, std::byte* out, std::int64_t n_rows, std::int64_t row_length,
               const float*) {
    std::fill_n(out, type_size_bytes(type, row_length, n_rows), std::byte{0x5a});
}
void marks_what_is_not_finite(ggml_type type, const float* rows, std::byte* out, std::int64_t n_rows,
                              std::int64_t row_length, const float* importance) {
    const auto finite = [](const float* numbers, std::int64_t count) {
        return std::all_of(numbers, numbers + count, [](float x) { return std::isfinite(x); });
    };
    const bool usual = finite(rows, n_rows * row_length) && (importance == nullptr || finite(importance, row_length));
    (usual ? quantize_with_ggml : mark_only)(type, rows, out, n_rows, row_length, importance);
}

TEST(LaneQuantizer, leaves_what_is_not_finite_to_the_other_quantizer) {
    const LaneQuantizer quantizer(marks_what_is_not_finite);
    for (const float odd : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()})
        for (const auto type : lane_types()) {
            auto rows = usual_rows();
            rows.floats[700] = odd;
            EXPECT_TRUE(rows.by_lanes(quantizer, type) == rows.by(mark_only, type)) << type_name(type);
            rows = usual_rows();
            rows.importance[70] = odd;
            EXPECT_TRUE(rows.by_lanes(quantizer, type) == rows.by(mark_only, type)) << type_name(type);
        }
}

TEST(LaneQuantizer, is_shared_by_threads) {
    const LaneQuantizer quantizer;
    const auto rows = usual_rows();
    const auto expected = rows.by(quantize_with_ggml, GGML_TYPE_Q2_K);
    std::vector<std::vector<std::byte>> results(4);
    {
        std::vector<std::jthread> threads;
        for (auto& result : results) threads.emplace_back([&] { result = rows.by_lanes(quantizer, GGML_TYPE_Q2_K); });
    }
    for (const auto& result : results) EXPECT_TRUE(result == expected);
}

TEST(LaneQuantizer, other_types_are_made_by_ggml) {
    const auto rows = usual_rows();
    for (const auto type : {GGML_TYPE_Q8_0, GGML_TYPE_F16, GGML_TYPE_TQ2_0}) {
        EXPECT_FALSE(lane_quantizer().uses_lanes(type, true));
        EXPECT_TRUE(rows.by_lanes(lane_quantizer(), type) == rows.by(quantize_with_ggml, type)) << type_name(type);
    }
}

}  // namespace
}  // namespace cerebellum
