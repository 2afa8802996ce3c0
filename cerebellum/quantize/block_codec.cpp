#include "cerebellum/quantize/block_codec.h"

#include <algorithm>
#include <cassert>
#include <cstring>

namespace cerebellum {

namespace {

using Byte = std::uint8_t;

float read_half(const Byte* from) {
    ggml_fp16_t half = 0;
    std::memcpy(&half, from, sizeof half);
    return ggml_fp16_to_fp32(half);
}

void write_half(Byte* to, float value) {
    const ggml_fp16_t half = ggml_fp32_to_fp16(value);
    std::memcpy(to, &half, sizeof half);
}

/// Replaces the bits of `mask` by those of `value`.
void set_bits(Byte& byte, unsigned mask, unsigned value) {
    byte = static_cast<Byte>((byte & ~mask) | (value & mask));
}

std::int16_t whole(unsigned value) {
    return static_cast<std::int16_t>(value);
}

template <int count>
constexpr std::array<float, count> consecutive(int first) {
    std::array<float, count> levels{};
    for (int i = 0; i < count; ++i) levels[static_cast<std::size_t>(i)] = static_cast<float>(first + i);
    return levels;
}

constexpr auto levels_q2 = consecutive<4>(0);
constexpr auto levels_q3 = consecutive<8>(-4);
constexpr auto levels_q4 = consecutive<16>(0);
constexpr auto levels_q4_0 = consecutive<16>(-8);
constexpr auto levels_q5 = consecutive<32>(0);
constexpr auto levels_q5_0 = consecutive<32>(-16);
constexpr auto levels_q6 = consecutive<64>(-32);
constexpr auto levels_q8 = consecutive<255>(-127);

/// ggml's non-linear levels, asked of its dequantizer.
const std::array<float, 16>& levels_iq4() {
    static const auto levels = [] {
        std::array<Byte, 18> block{};
        write_half(block.data(), 1.0f);
        for (unsigned i = 0; i < 16; ++i) block[2 + i] = static_cast<Byte>(i);
        std::array<float, 32> weights{};
        ggml_get_type_traits(GGML_TYPE_IQ4_NL)->to_float(block.data(), weights.data(), 32);
        std::array<float, 16> result{};
        std::copy_n(weights.begin(), 16, result.begin());
        return result;
    }();
    return levels;
}

// Blocks of 32: half bytes, the first sixteen weights in the low ones; a fifth bit in a word of its own.

template <int at>
void read_nibbles(const Byte* block, Byte* codes) {
    for (int i = 0; i < 16; ++i) {
        codes[i] = block[at + i] & 15;
        codes[i + 16] = block[at + i] >> 4;
    }
}

template <int at>
void write_nibbles(Byte* block, const Byte* codes) {
    for (int i = 0; i < 16; ++i) block[at + i] = static_cast<Byte>((codes[i] & 15) | codes[i + 16] << 4);
}

template <int high, int low>
void read_five_bits(const Byte* block, Byte* codes) {
    read_nibbles<low>(block, codes);
    for (int i = 0; i < 32; ++i) codes[i] = static_cast<Byte>(codes[i] | (block[high + i / 8] >> i % 8 & 1) << 4);
}

template <int high, int low>
void write_five_bits(Byte* block, const Byte* codes) {
    std::fill_n(block + high, 4, Byte{0});
    for (int i = 0; i < 32; ++i)
        block[high + i / 8] = static_cast<Byte>(block[high + i / 8] | (codes[i] >> 4) << i % 8);
    write_nibbles<low>(block, codes);
}

BlockScales read_d(const Byte* block) {
    BlockScales scales;
    scales.d = read_half(block);
    scales.scale[0] = 1;
    return scales;
}

void write_d(Byte* block, const BlockScales& scales) {
    write_half(block, scales.d);
}

BlockScales read_d_and_m(const Byte* block) {
    auto scales = read_d(block);
    scales.dmin = -read_half(block + 2);
    scales.min[0] = 1;
    return scales;
}

void write_d_and_m(Byte* block, const BlockScales& scales) {
    write_half(block, scales.d);
    write_half(block + 2, -scales.dmin);
}

void read_bytes_q8_0(const Byte* block, Byte* codes) {
    // -128, which ggml's quantizer never writes, would be no code of ours.
    for (int i = 0; i < 32; ++i)
        codes[i] = static_cast<Byte>(std::max(-127, int{static_cast<std::int8_t>(block[2 + i])}) + 127);
}

void write_bytes_q8_0(Byte* block, const Byte* codes) {
    for (int i = 0; i < 32; ++i) block[2 + i] = static_cast<Byte>(codes[i] - 127);
}

// Q2_K: 16 scale/min nibbles, 64 bytes of 2 bits, d, dmin. Q3_K: 32 bytes of high bits, 64 bytes of 2 bits, 12 bytes of
// scales, d.

template <int at>
void read_two_bits(const Byte* block, Byte* codes) {
    for (int i = 0; i < 256; ++i) codes[i] = block[at + i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3;
}

template <int at>
void write_two_bits(Byte* block, const Byte* codes) {
    for (int i = 0; i < 256; ++i) {
        const int shift = i % 128 / 32 * 2;
        set_bits(block[at + i / 128 * 32 + i % 32], 3u << shift, unsigned{codes[i]} << shift);
    }
}

BlockScales read_scales_q2(const Byte* block) {
    BlockScales scales;
    scales.d = read_half(block + 80);
    scales.dmin = read_half(block + 82);
    for (std::size_t g = 0; g < 16; ++g) {
        scales.scale[g] = block[g] & 15;
        scales.min[g] = block[g] >> 4;
    }
    return scales;
}

void write_scales_q2(Byte* block, const BlockScales& scales) {
    for (std::size_t g = 0; g < 16; ++g) block[g] = static_cast<Byte>(scales.scale[g] | scales.min[g] << 4);
    write_half(block + 80, scales.d);
    write_half(block + 82, scales.dmin);
}

void read_codes_q3(const Byte* block, Byte* codes) {
    read_two_bits<32>(block, codes);
    for (int i = 0; i < 256; ++i) codes[i] = static_cast<Byte>(codes[i] | (block[i % 32] >> i / 32 & 1) << 2);
}

void write_codes_q3(Byte* block, const Byte* codes) {
    std::array<Byte, 256> low{};
    for (std::size_t i = 0; i < 256; ++i) {
        low[i] = codes[i] & 3;
        set_bits(block[i % 32], 1u << i / 32, unsigned{codes[i]} >> 2 << i / 32);
    }
    write_two_bits<32>(block, low.data());
}

BlockScales read_scales_q3(const Byte* block) {
    const Byte* packed = block + 96;
    BlockScales scales;
    scales.d = read_half(block + 108);
    for (unsigned g = 0; g < 16; ++g) {
        const unsigned low = g < 8 ? packed[g] & 15u : packed[g - 8] >> 4u;
        const unsigned high = packed[8 + g % 4] >> g / 4 * 2 & 3u;
        scales.scale[g] = static_cast<std::int16_t>(static_cast<int>(low | high << 4) - 32);
    }
    return scales;
}

void write_scales_q3(Byte* block, const BlockScales& scales) {
    Byte* packed = block + 96;
    write_half(block + 108, scales.d);
    for (unsigned g = 0; g < 16; ++g) {
        const auto value = static_cast<unsigned>(scales.scale[g] + 32);
        set_bits(packed[g % 8], g < 8 ? 0x0fu : 0xf0u, g < 8 ? value : value << 4);
        set_bits(packed[8 + g % 4], 3u << g / 4 * 2, value >> 4 << g / 4 * 2);
    }
}

// Q4_K and Q5_K: d, dmin, 12 bytes with eight 6-bit scales and mins; then the codes, Q5_K's fifth bits first.

BlockScales read_scales_q4(const Byte* block) {
    const Byte* packed = block + 4;
    BlockScales scales;
    scales.d = read_half(block);
    scales.dmin = read_half(block + 2);
    for (unsigned g = 0; g < 8; ++g) {
        scales.scale[g] = g < 4 ? whole(packed[g] & 63u) : whole((packed[g + 4] & 15u) | (packed[g - 4] >> 6u) << 4u);
        scales.min[g] = g < 4 ? whole(packed[g + 4] & 63u) : whole(packed[g + 4] >> 4u | (packed[g] >> 6u) << 4u);
    }
    return scales;
}

void write_scales_q4(Byte* block, const BlockScales& scales) {
    Byte* packed = block + 4;
    write_half(block, scales.d);
    write_half(block + 2, scales.dmin);
    for (unsigned g = 0; g < 8; ++g) {
        const auto scale = static_cast<unsigned>(scales.scale[g]);
        const auto min = static_cast<unsigned>(scales.min[g]);
        if (g < 4) {
            set_bits(packed[g], 63u, scale);
            set_bits(packed[g + 4], 63u, min);
        } else {
            packed[g + 4] = static_cast<Byte>((scale & 15u) | (min & 15u) << 4);
            set_bits(packed[g - 4], 0xc0u, scale >> 4 << 6);
            set_bits(packed[g], 0xc0u, min >> 4 << 6);
        }
    }
}

template <int at>
void read_nibbles_k(const Byte* block, Byte* codes) {
    for (int i = 0; i < 256; ++i) codes[i] = block[at + i / 64 * 32 + i % 32] >> i % 64 / 32 * 4 & 15;
}

template <int at>
void write_nibbles_k(Byte* block, const Byte* codes) {
    for (int i = 0; i < 256; ++i) {
        const int shift = i % 64 / 32 * 4;
        set_bits(block[at + i / 64 * 32 + i % 32], 15u << shift, unsigned{codes[i]} << shift);
    }
}

void read_codes_q5(const Byte* block, Byte* codes) {
    read_nibbles_k<48>(block, codes);
    for (int i = 0; i < 256; ++i) codes[i] = static_cast<Byte>(codes[i] | (block[16 + i % 32] >> i / 32 & 1) << 4);
}

void write_codes_q5(Byte* block, const Byte* codes) {
    write_nibbles_k<48>(block, codes);
    for (int i = 0; i < 256; ++i) set_bits(block[16 + i % 32], 1u << i / 32, unsigned{codes[i]} >> 4 << i / 32);
}

// Q6_K: 128 bytes of low half bytes, 64 bytes of high bits, 16 signed scales, d.

void read_codes_q6(const Byte* block, Byte* codes) {
    for (int i = 0; i < 256; ++i) {
        const int half = i / 128, quarter = i % 128 / 32, at = i % 32;
        const int low = block[half * 64 + quarter % 2 * 32 + at] >> quarter / 2 * 4 & 15;
        const int high = block[128 + half * 32 + at] >> quarter * 2 & 3;
        codes[i] = static_cast<Byte>(low | high << 4);
    }
}

void write_codes_q6(Byte* block, const Byte* codes) {
    for (int i = 0; i < 256; ++i) {
        const int half = i / 128, quarter = i % 128 / 32, at = i % 32;
        const int low_shift = quarter / 2 * 4, high_shift = quarter * 2;
        set_bits(block[half * 64 + quarter % 2 * 32 + at], 15u << low_shift, (codes[i] & 15u) << low_shift);
        set_bits(block[128 + half * 32 + at], 3u << high_shift, unsigned{codes[i]} >> 4 << high_shift);
    }
}

BlockScales read_scales_q6(const Byte* block) {
    BlockScales scales;
    scales.d = read_half(block + 208);
    for (std::size_t g = 0; g < 16; ++g) scales.scale[g] = static_cast<std::int8_t>(block[192 + g]);
    return scales;
}

void write_scales_q6(Byte* block, const BlockScales& scales) {
    for (std::size_t g = 0; g < 16; ++g) block[192 + g] = static_cast<Byte>(scales.scale[g]);
    write_half(block + 208, scales.d);
}

// IQ4_XS: d, two high bits of each scale, four low bits of each, half bytes in groups of 32.

void read_codes_iq4_xs(const Byte* block, Byte* codes) {
    for (int g = 0; g < 8; ++g) read_nibbles<8>(block + g * 16, codes + g * 32);
}

void write_codes_iq4_xs(Byte* block, const Byte* codes) {
    for (int g = 0; g < 8; ++g) write_nibbles<8>(block + g * 16, codes + g * 32);
}

BlockScales read_scales_iq4_xs(const Byte* block) {
    BlockScales scales;
    scales.d = read_half(block);
    for (unsigned g = 0; g < 8; ++g) {
        const unsigned low = block[4 + g / 2] >> g % 2 * 4 & 15u;
        const unsigned high = block[2 + g / 4] >> g % 4 * 2 & 3u;
        scales.scale[g] = static_cast<std::int16_t>(static_cast<int>(low | high << 4) - 32);
    }
    return scales;
}

void write_scales_iq4_xs(Byte* block, const BlockScales& scales) {
    write_half(block, scales.d);
    for (unsigned g = 0; g < 8; ++g) {
        const auto value = static_cast<unsigned>(scales.scale[g] + 32);
        set_bits(block[4 + g / 2], 15u << g % 2 * 4, value << g % 2 * 4);
        set_bits(block[2 + g / 4], 3u << g % 4 * 2, value >> 4 << g % 4 * 2);
    }
}

BlockCodec block_of_32(ggml_type type, std::span<const float> levels, bool has_min) {
    BlockCodec codec;
    codec.type = type;
    codec.block_size = codec.group_size = 32;
    codec.levels = levels;
    codec.uniform = type != GGML_TYPE_IQ4_NL;
    codec.has_dmin = has_min;
    if (has_min) codec.min_least = codec.min_most = 1;
    codec.read_scales = has_min ? read_d_and_m : read_d;
    codec.write_scales = has_min ? write_d_and_m : write_d;
    return codec;
}

BlockCodec block_of_256(ggml_type type, int group_size, std::span<const float> levels, int scale_least, int scale_most,
                        int min_most) {
    BlockCodec codec;
    codec.type = type;
    codec.block_size = 256;
    codec.group_size = group_size;
    codec.levels = levels;
    codec.uniform = type != GGML_TYPE_IQ4_XS;
    codec.scale_least = scale_least;
    codec.scale_most = scale_most;
    codec.min_most = min_most;
    codec.has_dmin = min_most > 0;
    return codec;
}

std::array<BlockCodec, 12> make_codecs() {
    auto q4_0 = block_of_32(GGML_TYPE_Q4_0, levels_q4_0, false);
    q4_0.read_codes = read_nibbles<2>;
    q4_0.write_codes = write_nibbles<2>;
    auto q4_1 = block_of_32(GGML_TYPE_Q4_1, levels_q4, true);
    q4_1.read_codes = read_nibbles<4>;
    q4_1.write_codes = write_nibbles<4>;
    auto q5_0 = block_of_32(GGML_TYPE_Q5_0, levels_q5_0, false);
    q5_0.read_codes = read_five_bits<2, 6>;
    q5_0.write_codes = write_five_bits<2, 6>;
    auto q5_1 = block_of_32(GGML_TYPE_Q5_1, levels_q5, true);
    q5_1.read_codes = read_five_bits<4, 8>;
    q5_1.write_codes = write_five_bits<4, 8>;
    auto q8_0 = block_of_32(GGML_TYPE_Q8_0, levels_q8, false);
    q8_0.read_codes = read_bytes_q8_0;
    q8_0.write_codes = write_bytes_q8_0;
    auto iq4_nl = block_of_32(GGML_TYPE_IQ4_NL, levels_iq4(), false);
    iq4_nl.read_codes = read_nibbles<2>;
    iq4_nl.write_codes = write_nibbles<2>;

    auto q2_k = block_of_256(GGML_TYPE_Q2_K, 16, levels_q2, 0, 15, 15);
    q2_k.read_codes = read_two_bits<16>;
    q2_k.write_codes = write_two_bits<16>;
    q2_k.read_scales = read_scales_q2;
    q2_k.write_scales = write_scales_q2;
    auto q3_k = block_of_256(GGML_TYPE_Q3_K, 16, levels_q3, -32, 31, 0);
    q3_k.read_codes = read_codes_q3;
    q3_k.write_codes = write_codes_q3;
    q3_k.read_scales = read_scales_q3;
    q3_k.write_scales = write_scales_q3;
    auto q4_k = block_of_256(GGML_TYPE_Q4_K, 32, levels_q4, 0, 63, 63);
    q4_k.read_codes = read_nibbles_k<16>;
    q4_k.write_codes = write_nibbles_k<16>;
    q4_k.read_scales = read_scales_q4;
    q4_k.write_scales = write_scales_q4;
    auto q5_k = block_of_256(GGML_TYPE_Q5_K, 32, levels_q5, 0, 63, 63);
    q5_k.read_codes = read_codes_q5;
    q5_k.write_codes = write_codes_q5;
    q5_k.read_scales = read_scales_q4;
    q5_k.write_scales = write_scales_q4;
    auto q6_k = block_of_256(GGML_TYPE_Q6_K, 16, levels_q6, -128, 127, 0);
    q6_k.read_codes = read_codes_q6;
    q6_k.write_codes = write_codes_q6;
    q6_k.read_scales = read_scales_q6;
    q6_k.write_scales = write_scales_q6;
    auto iq4_xs = block_of_256(GGML_TYPE_IQ4_XS, 32, levels_iq4(), -32, 31, 0);
    iq4_xs.read_codes = read_codes_iq4_xs;
    iq4_xs.write_codes = write_codes_iq4_xs;
    iq4_xs.read_scales = read_scales_iq4_xs;
    iq4_xs.write_scales = write_scales_iq4_xs;
    return {q4_0, q4_1, q5_0, q5_1, q8_0, iq4_nl, q2_k, q3_k, q4_k, q5_k, q6_k, iq4_xs};
}

}  // namespace

const BlockCodec* find_codec(ggml_type type) {
    static const auto codecs = make_codecs();
    const auto found = std::ranges::find(codecs, type, &BlockCodec::type);
    if (found == codecs.end()) return nullptr;
    assert(found->block_size == ggml_blck_size(type));
    return &*found;
}

}  // namespace cerebellum
