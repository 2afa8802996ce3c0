#pragma once

#include <ggml.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace cerebellum {

/// Rounds n_rows rows of row_length floats, whole blocks of `type`, to ggml_row_size(type, row_length) bytes each.
/// `importance`: row_length weights of the columns, or null.
using ReferenceQuantizer = void (*)(ggml_type type, const float* rows, std::byte* out, std::int64_t n_rows,
                                    std::int64_t row_length, const float* importance);

/// ggml_quantize_chunk.
void quantize_with_ggml(ggml_type type, const float* rows, std::byte* out, std::int64_t n_rows, std::int64_t row_length,
                        const float* importance);

/// Makes the bytes of another quantizer many times faster, with one block in each SIMD lane (lane_blocks.h). The sums
/// of ggml's quantizers depend on the order of their terms, so that a compiler cannot spread one block over the lanes.
///
/// It takes nothing on trust: before the first block of a type it rounds some thousands of weights both ways, and
/// where one byte differs that type stays with the other quantizer for good. That is so with a ggml whose compiler was
/// free to fuse multiplications and additions; cmake/ggml_rounding.cmake keeps it from that. Threads may share it.
class LaneQuantizer {
  public:
    explicit LaneQuantizer(ReferenceQuantizer reference = quantize_with_ggml);
    ~LaneQuantizer();

    /// As the reference, byte for byte; by the reference where uses_lanes is false or a number is not finite.
    void quantize(ggml_type type, const float* rows, std::byte* out, std::int64_t n_rows, std::int64_t row_length,
                  const float* importance) const;

    /// Whether the type has been found to come out the same. Takes some milliseconds the first time, for a type with a
    /// codebook seconds: ggml builds its tables then, if it has not before.
    bool uses_lanes(ggml_type type, bool with_importance) const;

  private:
    struct Verdicts;
    ReferenceQuantizer reference_;
    std::unique_ptr<Verdicts> verdicts_;
};

/// The program's own, with ggml as its reference.
const LaneQuantizer& lane_quantizer();

/// The types that LaneQuantizer knows; some only with importance.
std::vector<ggml_type> lane_types();
bool has_lanes(ggml_type type, bool with_importance);

}  // namespace cerebellum
