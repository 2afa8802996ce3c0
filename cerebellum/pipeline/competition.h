#pragma once

#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "cerebellum/core/encoding.h"
#include "cerebellum/core/stats.h"
#include "cerebellum/journal/journal.h"
#include "cerebellum/pipeline/aim.h"
#include "cerebellum/pipeline/contenders.h"
#include "cerebellum/pipeline/own_recipes.h"
#include "cerebellum/pipeline/session.h"
#include "cerebellum/predict/calibration.h"

namespace cerebellum {

/// Predicts the damage of any mix in ggml's own rounding: the sum of its single damages, calibrated by whole recipes.
class MixPredictor {
  public:
    /// `measurements` of single tensors; those with feedback are left out.
    MixPredictor(std::span<const Measurement> measurements, Calibration calibration);

    /// `changed`: the tensors that differ from the source. A type without a figure counts as much as one that is surely
    /// better (see at_least), or as no damage, so that the prediction is a lower bound. The error, nats per token, has
    /// the calibration's parts and that of the sum, to which single figures contribute independently. Empty where no
    /// whole recipe was measured, or no figure is of use.
    std::optional<MixPrediction> predict(const TypeMap& changed) const;

  private:
    const Estimate* measured(const std::string& tensor, const Encoding& type) const;
    /// What a codebook's type that was not measured does to a tensor at least: what the smallest type does that takes
    /// more bits by a fourth. (A better grid makes up for a tenth or so: IQ2_S against Q2_K.) Null where none does.
    const Estimate* at_least(const std::string& tensor, const Encoding& type) const;

    std::map<std::string, std::map<Encoding, Estimate>> damages_;
    Calibration calibration_;
};

struct CompetitionOptions {
    Aim aim;
    bool all = false;           // measure every stock mix, whatever is predicted of it
    bool nearest_only = false;  // of presets only those next to the size, on either side
    std::function<bool(const Contender& stock)> may_be_delivered;  // of those that fit
};

/// Measures our versions, and of the stock mixes those that may turn out to be the best that may be delivered, on the
/// selection and the test text in one pass.
///
/// Ours and the nearest preset of at most the size (of uniform mixes the three that are predicted to be best) are
/// measured first; then what undecided() asks for, again and again until it asks for nothing. Of uniform mixes those
/// that it asks for run a race on the selection text: all on a few of its windows, the best third on twice as many, and
/// so on. Predictions are in KLD: for another objective everything that fits is measured.
///
/// Returns the stock mixes to show, by size: all of find_contenders() but uniform mixes that did not get to the end of
/// a race; those without scores are predicted only, the one over the budget, where nothing predicts it, not even that.
std::vector<Contender> compete(Session& session, OwnRecipes& own, const CompetitionOptions& options,
                               Progress& progress);

}  // namespace cerebellum
