#pragma once

#include <ggml.h>

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "cerebellum/journal/journal.h"
#include "cerebellum/replay/slice.h"

namespace cerebellum {

/// Why what was measured cannot be so, whatever others say: a figure is no finite number, or a KLD is negative by more
/// than rounding. Empty where nothing is wrong. A phrase, as "is not a finite number".
std::string why_wrong(const Measurement& measured);

/// A tensor's figure in one type.
struct TypeFigure {
    double bits = 0.0;  // per weight
    double value = 0.0;
};

/// Which of a tensor's figures (of one kind: local energy, or KLD) stand out: more than 10⁴ times the nearest figure of
/// fewer bits and of more bits, or zero where neither of these is. At the ends the nearest two on the one side stand
/// for them; of two figures only that of more bits is judged, and one alone never. A type on whose grid the weights lie
/// makes its neighbours stand out, so this is a reason to look again and no proof.
std::vector<std::size_t> outliers(std::span<const TypeFigure> figures);

/// Whether two measurements of the same windows are the same but for what a device's arithmetic may differ from itself:
/// 1 % in each window's figures, 10⁻¹⁰ of local energy and 10⁻⁶ nats per position.
bool repeats(const Measurement& first, const Measurement& second);

/// Whether all numbers of a state are finite, as far as it consists of floats.
bool is_finite(const Topology& topology, const LiveState& state);

/// Whether a weight's bytes in another type stand for exactly the weight's own numbers. The weight's data is on the
/// host.
bool is_lossless(const ggml_tensor& weight, ggml_type type, std::span<const std::byte> bytes);

}  // namespace cerebellum
