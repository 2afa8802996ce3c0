#pragma once

#include <ggml.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace cerebellum {

inline constexpr int max_block_size = 256;
inline constexpr int max_groups = 16;

/// The scales of one block. A weight of group g is d·scale[g] · level − dmin·min[g].
struct BlockScales {
    float d = 0.0f;     // representable as F16
    float dmin = 0.0f;  // likewise; 0 where the type has no mins
    std::array<std::int16_t, max_groups> scale{};
    std::array<std::int16_t, max_groups> min{};

    float group_scale(int group) const { return d * static_cast<float>(scale[static_cast<std::size_t>(group)]); }
    float group_offset(int group) const { return -(dmin * static_cast<float>(min[static_cast<std::size_t>(group)])); }
};

/// Reads and writes the blocks of one of ggml's types, whose weights are levels times a scale per group: the layouts of
/// ggml-common.h, which ggml does not install. What is read is what ggml's dequantizer makes of the block, bit for bit.
struct BlockCodec {
    ggml_type type = GGML_TYPE_COUNT;
    int block_size = 0;
    int group_size = 0;
    std::span<const float> levels;  // by code, ascending
    bool uniform = false;           // levels are consecutive whole numbers
    /// Range of the whole numbers scale and min; equal ends where they are no stored numbers but constants.
    int scale_least = 1, scale_most = 1;
    int min_least = 0, min_most = 0;
    bool has_dmin = false;

    int n_groups() const { return block_size / group_size; }

    void (*read_codes)(const std::uint8_t* block, std::uint8_t* codes) = nullptr;
    /// Leaves the scales alone.
    void (*write_codes)(std::uint8_t* block, const std::uint8_t* codes) = nullptr;
    BlockScales (*read_scales)(const std::uint8_t* block) = nullptr;
    /// Leaves the codes alone.
    void (*write_scales)(std::uint8_t* block, const BlockScales& scales) = nullptr;
};

/// The codec of a type; null where its weights are no levels with scales (the IQ types with codebooks), or where it
/// stores more than 8 bits.
const BlockCodec* find_codec(ggml_type type);

}  // namespace cerebellum
