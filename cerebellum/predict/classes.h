#pragma once

#include <ggml.h>

#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>

#include "cerebellum/core/stats.h"
#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/journal/journal.h"

namespace cerebellum {

/// What is shown about a tensor when it is crushed, against its share: the damage that it would do if all bytes that
/// crushing saves in the whole model cost the same.
///
/// sacred: KLD and ΔNLL are both above its share, which the t test and the sign-flip test show. demotable: the same
/// below. safe: the KLD is below. sensitive: it is
/// not shown to be within its share, be it that it is above or that the windows do not tell.
enum class Sensitivity { sacred, sensitive, safe, demotable };

/// "sacred", ...
std::string_view sensitivity_name(Sensitivity sensitivity);

struct ClassOptions {
    /// Each tensor's type measured in full that is nearest to this many bits per weight, on a logarithmic scale, is
    /// what it is crushed to.
    double crushed_bits = 2.6;
    /// Of the tests: chance of one false "sacred" or more in the whole model, the same for "demotable", and expected
    /// share of false ones among the "safe".
    double level = 0.05;
};

/// A tensor's class and the evidence. All figures are nats per token, on the windows that every tensor's row has.
struct Classification {
    Sensitivity sensitivity = Sensitivity::sensitive;
    std::string type;  // crushed to
    std::size_t windows = 0;
    double bytes_saved = 0.0;
    Estimate kld, delta_nll;
    Estimate kld_share, delta_nll_share;    // of the tensor
    Estimate kld_excess, delta_nll_excess;  // over its share, paired
    /// Adjusted for the number of tensors: of being above in both, of being below in both (the greatest of Holm's and
    /// the sign flips' p-values), of the KLD being below, of its being above (Benjamini and Hochberg).
    double p_sacred = 1.0, p_demotable = 1.0, q_safe = 1.0, q_above = 1.0;
};

/// Bytes that a tensor has less in this type than in the source.
using BytesSaved = std::function<double(const std::string& tensor, ggml_type type)>;

/// The bytes saved of these tensors; throws std::out_of_range for others.
BytesSaved bytes_saved_of(std::span<const TensorInfo> tensors);

/// Classes of all tensors that have a full figure with ΔNLL; others are not in the result.
std::map<std::string, Classification> classify(std::span<const Measurement> measurements, const BytesSaved& bytes_saved,
                                               const ClassOptions& options = {});

}  // namespace cerebellum
