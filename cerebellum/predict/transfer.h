#pragma once

#include <ggml.h>

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "cerebellum/predict/damage_table.h"
#include "cerebellum/predict/foreign_type.h"

namespace cerebellum {

/// Relative squared rounding error Σ(x − x̂)² / Σx² of normally distributed weights in a type, by ggml's own quantizer
/// with equal importances. 0 for F32.
double measure_rounding_error(ggml_type type);
/// The same, measured when first asked for, and kept; not thread-safe. The types of one and two bits, for which ggml
/// sets up tables for 1 to 8 s, are constants, which a test compares with what is measured.
double rounding_error(ggml_type type);
/// The same for a type that ggml may not have: log error interpolated linearly in bits per weight between the types
/// that it has.
double rounding_error(const ForeignType& type);

/// What one tensor loses per unit of rounding error, as a function of that error; the rule by which a figure in one
/// type is carried over to others.
///
/// Rounding a tensor with relative error D moves the logits by something of size √D, so its divergence from the
/// original is s·D, and so is, to the first order that does not vanish, its loss of likelihood. With a baseline that is
/// rounded itself, by D₀: the likelihood lost from there to D is s·(D − D₀); the divergence *between* the two, whose
/// errors are independent, is s·(D + D₀). So s follows from one figure; from several, s is interpolated linearly in
/// log D, and constant outside of them. Figures below zero are noise and count as zero.
class Sensitivity {
  public:
    struct Point {
        double log_error = 0.0;
        double sensitivity = 0.0;
    };
    /// Points in any order, at least one; several of the same error are averaged.
    explicit Sensitivity(std::vector<Point> points);
    /// Damage, in nats per token, of this rounding error instead of that of the baseline.
    double damage(double error, double baseline_error) const;
    double at(double error) const;

  private:
    std::vector<Point> points_;
};

/// The sensitivity of each tensor of the table that a figure of use is there of. `baseline_types` has the baseline's
/// types; a tensor that it does not name is in high precision there. Figures of types for ternary weights, and figures
/// in the baseline's own type, are of no use. `smallest_bits`, where not null, receives the bits per weight of the
/// smallest type in use of each tensor: nothing is known below it.
std::map<std::string, Sensitivity> sensitivities(const DamageTable& table,
                                                 const std::map<std::string, ggml_type>& baseline_types,
                                                 std::map<std::string, double>* smallest_bits = nullptr);

/// One figure per block, from some blocks' figures: the mean of each block that has any, linear between two such
/// blocks, constant outside of them. Empty where there are none.
class BlockMeans {
  public:
    void add(int block, double value);
    bool empty() const { return sums_.empty(); }
    double at(int block) const;

  private:
    std::map<int, std::pair<double, int>> sums_;
};

}  // namespace cerebellum
