#pragma once

#include <ggml.h>
#if defined(__AVX__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>

#include "cerebellum/quantize/lane_blocks.h"

/// Vectors with one block in each lane, for the kernels of lane_blocks.h. Only for files compiled with
/// -ffp-contract=off: a fused multiplication and addition would round once where ggml rounds twice.
namespace cerebellum::lanes {

static_assert(std::endian::native == std::endian::little, "blocks are put together from 32-bit words");

#if defined(__AVX512F__)
inline constexpr int native_width = 16;
/// GCC 12 takes the intrinsics without a mask for uses of something uninitialized.
inline constexpr std::uint16_t all_lanes = 0xffff;
#elif defined(__AVX__)
inline constexpr int native_width = 8;
#else
inline constexpr int native_width = 4;
#endif
/// Two registers at a time: a sum waits for its last term, meanwhile the other register's is added.
inline constexpr int width = 2 * native_width;
static_assert(width <= max_lanes);

using NativeFloats [[gnu::vector_size(native_width * sizeof(float))]] = float;
using NativeInts [[gnu::vector_size(native_width * sizeof(float))]] = std::int32_t;

template <typename Native>
struct Lanes {
    Native low, high;

    Lanes() = default;
    // Register by register: the compiler's own would copy eight bytes at a time.
    Lanes(const Lanes& other) : low(other.low), high(other.high) {}
    Lanes& operator=(const Lanes& other) {
        low = other.low;
        high = other.high;
        return *this;
    }
    /// The same in all lanes.
    Lanes(std::remove_cvref_t<decltype(Native{}[0])> value) : low(Native{} + value), high(Native{} + value) {}
    auto operator[](int lane) const { return lane < native_width ? low[lane] : high[lane - native_width]; }
    void set(int lane, std::remove_cvref_t<decltype(Native{}[0])> value) {
        if (lane < native_width)
            low[lane] = value;
        else
            high[lane - native_width] = value;
    }
};
using Floats = Lanes<NativeFloats>;
/// Also the result of comparisons: all bits where it holds.
using Ints = Lanes<NativeInts>;

/// The operation on each register. Written out for two, as compilers keep a loop's variables in memory.
template <typename Result, typename Operation, typename... Operands>
[[gnu::always_inline]] inline Result each(const Operation& operation, const Operands&... operands) {
    Result result;
    result.low = operation(operands.low...);
    result.high = operation(operands.high...);
    return result;
}

inline Floats operator+(const Floats& a, const Floats& b) {
    return each<Floats>([](auto x, auto y) { return x + y; }, a, b);
}
inline Floats operator-(const Floats& a, const Floats& b) {
    return each<Floats>([](auto x, auto y) { return x - y; }, a, b);
}
inline Floats operator*(const Floats& a, const Floats& b) {
    return each<Floats>([](auto x, auto y) { return x * y; }, a, b);
}
inline Floats operator/(const Floats& a, const Floats& b) {
    return each<Floats>([](auto x, auto y) { return x / y; }, a, b);
}
inline Floats operator-(const Floats& a) {
    return each<Floats>([](auto x) { return -x; }, a);
}
inline Floats& operator+=(Floats& a, const Floats& b) {
    return a = a + b;
}
inline Floats& operator-=(Floats& a, const Floats& b) {
    return a = a - b;
}
inline Ints operator<(const Floats& a, const Floats& b) {
    return each<Ints>([](auto x, auto y) { return x < y; }, a, b);
}
inline Ints operator>(const Floats& a, const Floats& b) {
    return each<Ints>([](auto x, auto y) { return x > y; }, a, b);
}
inline Ints operator<=(const Floats& a, const Floats& b) {
    return each<Ints>([](auto x, auto y) { return x <= y; }, a, b);
}
inline Ints operator==(const Floats& a, const Floats& b) {
    return each<Ints>([](auto x, auto y) { return x == y; }, a, b);
}
inline Ints operator!=(const Floats& a, const Floats& b) {
    return each<Ints>([](auto x, auto y) { return x != y; }, a, b);
}
inline Ints operator+(const Ints& a, const Ints& b) {
    return each<Ints>([](auto x, auto y) { return x + y; }, a, b);
}
inline Ints operator-(const Ints& a, const Ints& b) {
    return each<Ints>([](auto x, auto y) { return x - y; }, a, b);
}
inline Ints operator&(const Ints& a, const Ints& b) {
    return each<Ints>([](auto x, auto y) { return x & y; }, a, b);
}
inline Ints operator|(const Ints& a, const Ints& b) {
    return each<Ints>([](auto x, auto y) { return x | y; }, a, b);
}
inline Ints operator~(const Ints& a) {
    return each<Ints>([](auto x) { return ~x; }, a);
}
inline Ints operator<<(const Ints& a, int bits) {
    return each<Ints>([bits](auto x) { return x << bits; }, a);
}
inline Ints operator>>(const Ints& a, int bits) {
    return each<Ints>([bits](auto x) { return x >> bits; }, a);
}
inline Ints& operator&=(Ints& a, const Ints& b) {
    return a = a & b;
}
inline Ints& operator|=(Ints& a, const Ints& b) {
    return a = a | b;
}
inline Ints operator!=(const Ints& a, const Ints& b) {
    return each<Ints>([](auto x, auto y) { return x != y; }, a, b);
}

template <typename Native>
Lanes<Native> select(const Ints& where, const Lanes<Native>& a, const Lanes<Native>& b) {
    return each<Lanes<Native>>([](auto mask, auto x, auto y) { return mask ? x : y; }, where, a, b);
}
/// a where it is smaller, else b, so that of zeros or with NaN it is b. That is what x86's instruction does; compilers
/// do not always see it.
inline Floats smaller(const Floats& a, const Floats& b) {
#if defined(__AVX512F__)
    return each<Floats>([](auto x, auto y) -> NativeFloats { return _mm512_maskz_min_ps(all_lanes, x, y); }, a, b);
#elif defined(__AVX__)
    return each<Floats>([](auto x, auto y) -> NativeFloats { return _mm256_min_ps(x, y); }, a, b);
#else
    return each<Floats>([](auto x, auto y) { return x < y ? x : y; }, a, b);
#endif
}
inline Floats larger(const Floats& a, const Floats& b) {
#if defined(__AVX512F__)
    return each<Floats>([](auto x, auto y) -> NativeFloats { return _mm512_maskz_max_ps(all_lanes, x, y); }, a, b);
#elif defined(__AVX__)
    return each<Floats>([](auto x, auto y) -> NativeFloats { return _mm256_max_ps(x, y); }, a, b);
#else
    return each<Floats>([](auto x, auto y) { return x > y ? x : y; }, a, b);
#endif
}
inline Ints smaller(const Ints& a, const Ints& b) {
    return each<Ints>([](auto x, auto y) { return x < y ? x : y; }, a, b);
}
inline Ints larger(const Ints& a, const Ints& b) {
    return each<Ints>([](auto x, auto y) { return x > y ? x : y; }, a, b);
}

inline Floats fill(float value) {
    return value;
}
inline Ints fill(std::int32_t value) {
    return value;
}
inline Floats to_floats(const Ints& x) {
    return each<Floats>([](auto a) { return __builtin_convertvector(a, NativeFloats); }, x);
}
/// Of whole numbers.
inline Ints to_ints(const Floats& x) {
    return each<Ints>([](auto a) { return __builtin_convertvector(a, NativeInts); }, x);
}
inline Floats absolute(const Floats& x) {
    return each<Floats>([](auto a) { return std::bit_cast<NativeFloats>(std::bit_cast<NativeInts>(a) & 0x7fffffff); },
                        x);
}
inline Floats square_root(const Floats& x) {
    return each<Floats>(
        [](auto a) {
            for (int lane = 0; lane < native_width; ++lane) a[lane] = std::sqrt(a[lane]);
            return a;
        },
        x);
}
inline std::uint32_t lane_bits(const Ints& mask) {
    std::uint32_t bits = 0;
    for (int lane = 0; lane < width; ++lane) bits |= (mask[lane] != 0 ? 1U : 0U) << lane;
    return bits;
}
inline bool any(const Ints& mask) {
    const NativeInts joined = mask.low | mask.high;
    std::int32_t bits = 0;
    for (int lane = 0; lane < native_width; ++lane) bits |= joined[lane];
    return bits != 0;
}

inline constexpr float rounding_shift = 12582912.0f;  // 1.5·2²³: what is added to it loses its fraction

/// The magnitudes that ggml's nearest_int rounds; beyond, it takes some of the bits for a number.
inline constexpr float largest_rounded = 4194303.0f;

/// ggml's nearest_int whatever the number is.
inline Ints nearest_int(const Floats& x) {
    return each<Ints>([](auto a) { return (std::bit_cast<NativeInts>(a + rounding_shift) & 0x007fffff) - 0x00400000; },
                      x);
}
/// The same as a float, for magnitudes up to largest_rounded.
inline Floats nearest_whole(const Floats& x) {
    return (x + rounding_shift) - rounding_shift;
}
inline Ints is_rounded(const Floats& x) {
    return absolute(x) <= largest_rounded;
}
inline Ints is_ordinary(const Floats& x) {
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
            mean_square_.set(lane, job.mean_square);
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
    Floats store_halves(int offset, const Floats& x) const {
        Floats read;
        for (int lane = 0; lane < width; ++lane) {
            const ggml_fp16_t half = ggml_fp32_to_fp16(x[lane]);
            std::memcpy(out_[lane] + offset, &half, sizeof half);
            read.set(lane, ggml_fp16_to_fp32(half));
        }
        return read;
    }
    void store_word(int offset, const Ints& x, std::size_t n_bytes) const {
        for (int lane = 0; lane < width; ++lane) {
            const std::int32_t value = x[lane];
            std::memcpy(out_[lane] + offset, &value, n_bytes);
        }
    }

  private:
    static void load(const float* const* from, int first, int count, Floats* to) {
        for (int i = 0; i < count; ++i)
            for (int lane = 0; lane < width; ++lane) to[i].set(lane, from[lane][first + i]);
    }

    const float* weights_[width];
    const float* importance_[width];
    std::byte* out_[width];
    Floats mean_square_;
};

}  // namespace cerebellum::lanes
