#pragma once

#include <map>
#include <span>
#include <string>
#include <vector>

#include "cerebellum/core/encoding.h"
#include "cerebellum/predict/damage.h"

namespace cerebellum {

/// One type on a tensor's rate–distortion curve.
struct CurvePoint {
    Damage damage;  // the figure before the fit
    Encoding type;
    double bits = 0.0;
    double kld = 0.0;      // fitted, nats per token; where the type is off the curve its own figure
    Interval band;         // 95 %, for each point by itself
    bool on_curve = true;  // no other type of no more bits does less damage
};

struct Curve {
    std::vector<CurvePoint> points;  // by rising bits; among equal bits the one on the curve comes first
};

/// Monotone curves of all tensors, by name.
///
/// Types differ in more than bits, so damage need not fall from each type to the next larger one (Q4_0 against IQ4_XS;
/// any type against the one whose grid the weights already sit on). A type is therefore off the curve where a type of
/// fewer bits does less damage by more than a standard error (paired, over windows), or a type of equal bits does less.
/// It keeps its own figure. The others are in order but for noise, and get the weighted least-squares fit that never
/// rises with the bits. Throws Error as predict_damage does, and for types that ggml does not know.
std::map<std::string, Curve> fit_curves(std::span<const Measurement> measurements);

}  // namespace cerebellum
