#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace cerebellum::lanes {

/// One block of a quantized type that a kernel makes: K-quants and IQ4_XS 256 weights, the others 32.
struct BlockJob {
    const float* weights;     // finite
    const float* importance;  // of the same columns, finite; null: none is known
    float mean_square;        // of the whole row's weights, summed in order; only for the types that use it
    std::byte* out;
};

/// Makes the bytes of up to lane_count() blocks, one in each SIMD lane, by exactly the floating-point operations of
/// ggml's quantizer in exactly their order. Either all jobs have importance or none has. Bit i of the result: job i met
/// numbers beyond what the lanes reproduce (its scales overflow, or nearly so), its bytes have to come from ggml.
using Kernel = std::uint32_t (*)(std::span<const BlockJob> jobs);

/// By what the compiler was told that the processor has: 8, 16 or 32.
int lane_count();
inline constexpr int max_lanes = 32;

// Each equals the function of ggml-quants.c behind it.
std::uint32_t make_q2_k(std::span<const BlockJob> jobs);    // quantize_q2_K
std::uint32_t make_q3_k(std::span<const BlockJob> jobs);    // quantize_q3_K
std::uint32_t make_q4_k(std::span<const BlockJob> jobs);    // quantize_q4_K
std::uint32_t make_q5_k(std::span<const BlockJob> jobs);    // quantize_q5_K
std::uint32_t make_q6_k(std::span<const BlockJob> jobs);    // quantize_q6_K
std::uint32_t make_iq4_xs(std::span<const BlockJob> jobs);  // quantize_iq4_xs
std::uint32_t make_iq4_nl(std::span<const BlockJob> jobs);  // quantize_iq4_nl
// With importance only; mean_square is used.
std::uint32_t make_q4_0(std::span<const BlockJob> jobs);  // quantize_q4_0
std::uint32_t make_q4_1(std::span<const BlockJob> jobs);  // quantize_q4_1
std::uint32_t make_q5_0(std::span<const BlockJob> jobs);  // quantize_q5_0
std::uint32_t make_q5_1(std::span<const BlockJob> jobs);  // quantize_q5_1

/// Mean of the squares of each row, summed from the first weight to the last as ggml does. `means` has n_rows places.
void row_mean_squares(const float* rows, std::int64_t n_rows, std::int64_t row_length, float* means);

/// Whether no number is infinite or none at all.
bool all_finite(const float* numbers, std::int64_t count);

}  // namespace cerebellum::lanes
