#pragma once

#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cerebellum/journal/journal.h"
#include "cerebellum/predict/damage.h"

namespace cerebellum {

/// What an allocation keeps small.
enum class Objective {
    kld,   ///< Kullback-Leibler divergence from the source
    nll,   ///< negative log-likelihood of the text, and so perplexity
    top1,  ///< positions whose likeliest token is another than the source's
};
std::optional<Objective> parse_objective(std::string_view name);
std::string_view objective_name(Objective objective);

/// Share of each domain in what is counted; by label, adding up to 1. Empty: windows count as they are.
using Profile = std::map<std::string, double>;

/// A profile from what a user writes: "" for none, "balanced" for equal shares, the name of a domain for 0.7 of it and
/// the rest spread evenly over the others, or shares of one's own, as "code=0.55,math=0.3,chat=0.15", which are scaled
/// to add up to 1. Throws UsageError, naming the domains that there are, where it makes no sense for them.
Profile parse_profile(const std::string& text, std::span<const std::string> domains);

/// How often each of some windows counts, so that their domains have the profile's shares; 1 on average. Domains are
/// the windows' labels. All 1 without a profile.
std::vector<double> window_weights(const Profile& profile, std::span<const std::string> domains);

/// Sums over windows, each counted so many times; windows that do not count at all are left out.
void weigh(std::vector<double>& sums, std::span<const double> weights);

/// The measurements with every window counted so many times: all sums and counts are scaled, so that means and errors
/// computed from them are those of the profile. `domains` are the labels of all windows that were measured on, in the
/// order in which they are taken: a row of n windows saw the first n of them. Throws Error where a row has more.
std::vector<Measurement> weigh(std::vector<Measurement> measurements, const Profile& profile,
                               std::span<const std::string> domains);

/// What each tensor costs in each type under an objective, additive over tensors.
///
/// kld: predict_damage. The others are costed at so much per nat of KLD: a tensor's rate comes from its full
/// measurements and is drawn to the mean of all tensors the more, the less certain it is (empirical Bayes,
/// between-tensor variance by DerSimonian and Laird, Controlled Clin. Trials 7 (1986) 177, lowered by two standard
/// deviations of their statistic). So a figure that is mostly noise, as a tensor's ΔNLL often is, cannot make a type
/// look better than it is. nll: nats per token. top1: the square of the share of changed positions, since flips grow as
/// the root of the KLD: squares add up, shares do not.
std::map<std::string, std::vector<Damage>> predict_cost(std::span<const Measurement> measurements, Objective objective);

}  // namespace cerebellum
