#pragma once

#include <ggml.h>

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "cerebellum/quantize/lane_blocks.h"

/// Vectors with one block in each lane, for the kernels of lane_blocks.h. Only for files compiled with
/// -ffp-contract=off: a fused multiplication and addition would round once where ggml rounds twice.
namespace cerebellum::lanes {

static_assert(std::endian::native == std::endian::little, "blocks are put together from 32-bit words");

#if defined(__AVX512F__)
inline constexpr int width = 16;
#elif defined(__AVX__)
inline constexpr int width = 8;
#else
inline constexpr int width = 4;
#endif

using Floats [[gnu::vector_size(width * sizeof(float))]] = float;
/// Also the result of comparisons: all bits where it holds.
using Ints [[gnu::vector_size(width * sizeof(float))]] = std::int32_t;

inline Floats fill(float value) {
    return Floats{} + value;
}
inline Ints fill(std::int32_t value) {
    return Ints{} + value;
}
inline Floats to_floats(Ints x) {
    return __builtin_convertvector(x, Floats);
}
inline Floats smaller(Floats a, Floats b) {
    return a < b ? a : b;
}
inline Floats larger(Floats a, Floats b) {
    return a > b ? a : b;
}
inline Ints smaller(Ints a, Ints b) {
    return a < b ? a : b;
}
inline Ints larger(Ints a, Ints b) {
    return a > b ? a : b;
}
inline Floats absolute(Floats x) {
    return std::bit_cast<Floats>(std::bit_cast<Ints>(x) & 0x7fffffff);
}
inline Floats square_root(Floats x) {
    for (int lane = 0; lane < width; ++lane) x[lane] = std::sqrt(x[lane]);
    return x;
}
inline std::uint32_t lane_bits(Ints mask) {
    std::uint32_t bits = 0;
    for (int lane = 0; lane < width; ++lane) bits |= (mask[lane] != 0 ? 1U : 0U) << lane;
    return bits;
}
inline bool any(Ints mask) {
    return lane_bits(mask) != 0;
}

inline constexpr float rounding_shift = 12582912.0f;  // 1.5·2²³: what is added to it loses its fraction

/// The magnitudes that ggml's nearest_int rounds; beyond, it takes some of the bits for a number.
inline constexpr float largest_rounded = 4194303.0f;

/// ggml's nearest_int whatever the number is.
inline Ints nearest_int(Floats x) {
    return (std::bit_cast<Ints>(x + rounding_shift) & 0x007fffff) - 0x00400000;
}
/// The same as a float, for magnitudes up to largest_rounded.
inline Floats nearest_whole(Floats x) {
    return (x + rounding_shift) - rounding_shift;
}
inline Ints is_rounded(Floats x) {
    return absolute(x) <= largest_rounded;
}
inline Ints is_ordinary(Floats x) {
    return absolute(x) < 1e30f;
}

/// The jobs of a kernel; lanes without a job of their own do the last one's work again.
class Batch {
  public:
    explicit Batch(std::span<const BlockJob> jobs) {
        for (int lane = 0; lane < width; ++lane) {
            const auto& job = jobs[std::min<std::size_t>(static_cast<std::size_t>(lane), jobs.size() - 1)];
            weights_[lane] = job.weights;
            importance_[lane] = job.importance;
            out_[lane] = job.out;
            mean_square_[lane] = job.mean_square;
        }
    }

    bool has_importance() const { return importance_[0] != nullptr; }
    Floats mean_square() const { return mean_square_; }
    void load_weights(int first, int count, Floats* to) const { load(weights_, first, count, to); }
    void load_importance(int first, int count, Floats* to) const { load(importance_, first, count, to); }

    /// `count` bytes, a multiple of 4, from `offset` of each lane's block on: byte(i) gives the i-th, all of 0 … 255.
    template <typename Byte>
    void store_bytes(int offset, int count, const Byte& byte) const {
        for (int i = 0; i < count; i += 4) {
            const Ints word = byte(i) | byte(i + 1) << 8 | byte(i + 2) << 16 | byte(i + 3) << 24;
            for (int lane = 0; lane < width; ++lane) {
                const std::int32_t value = word[lane];
                std::memcpy(out_[lane] + offset + i, &value, sizeof value);
            }
        }
    }
    /// Writes the numbers as halves to `offset`; the result is what a reader gets.
    Floats store_halves(int offset, Floats x) const {
        Floats read;
        for (int lane = 0; lane < width; ++lane) {
            const ggml_fp16_t half = ggml_fp32_to_fp16(x[lane]);
            std::memcpy(out_[lane] + offset, &half, sizeof half);
            read[lane] = ggml_fp16_to_fp32(half);
        }
        return read;
    }
    void store_word(int offset, Ints x, std::size_t n_bytes) const {
        for (int lane = 0; lane < width; ++lane) {
            const std::int32_t value = x[lane];
            std::memcpy(out_[lane] + offset, &value, n_bytes);
        }
    }

  private:
    static void load(const float* const* from, int first, int count, Floats* to) {
        for (int i = 0; i < count; ++i)
            for (int lane = 0; lane < width; ++lane) to[i][lane] = from[lane][first + i];
    }

    const float* weights_[width];
    const float* importance_[width];
    std::byte* out_[width];
    Floats mean_square_;
};

}  // namespace cerebellum::lanes
