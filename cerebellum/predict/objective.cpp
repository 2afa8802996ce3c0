#include "cerebellum/predict/objective.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <set>
#include <utility>

#include "cerebellum/core/error.h"
#include "cerebellum/core/stats.h"

namespace cerebellum {

namespace {

constexpr double named_share = 0.7;  // of the domain that a profile is called after

Profile equal_shares(const std::set<std::string>& domains) {
    Profile profile;
    for (const auto& domain : domains) profile[domain] = 1.0 / static_cast<double>(domains.size());
    return profile;
}

Profile own_shares(const std::string& text, const std::set<std::string>& known) {
    Profile profile;
    double sum = 0.0;
    for (std::size_t begin = 0; begin <= text.size();) {
        const auto end = std::min(text.find(',', begin), text.size());
        const auto equals = text.find('=', begin);
        const auto word = text.substr(begin, end - begin);
        double share = 0.0;
        const auto* last = text.data() + end;
        if (equals >= end || std::from_chars(text.data() + equals + 1, last, share).ptr != last || !(share > 0.0) ||
            !std::isfinite(share))
            throw UsageError(fmt::format("--profile: '{}' is no share; write code=0.6,chat=0.4", word));
        const auto domain = text.substr(begin, equals - begin);
        if (!known.contains(domain))
            throw UsageError(
                fmt::format("--profile: no text is labelled '{}'; there are {}", domain, fmt::join(known, ", ")));
        if (!profile.emplace(domain, share).second) throw UsageError(fmt::format("--profile names '{}' twice", domain));
        sum += share;
        begin = end + 1;
    }
    for (auto& [domain, share] : profile) share /= sum;
    return profile;
}

/// A cost per nat of KLD with its standard error.
struct Rate {
    double value = 0.0;
    double variance = 0.0;
};

/// Of a quantity whose standard error was estimated from so many windows: that of Student's distribution.
double variance(double error, std::size_t n_windows) {
    const auto n = static_cast<double>(n_windows);
    return error * error * (n - 1.0) / std::max(1.0, n - 3.0);
}

std::optional<Rate> rate_of(const Measurement& m, Objective objective) {
    const auto kld = clustered_mean(m.kld, m.counts);
    if (!(kld.mean > 0.0)) return std::nullopt;
    if (objective == Objective::nll) {
        const auto ratio = clustered_mean(m.delta_nll, m.kld);
        return Rate{ratio.mean, variance(ratio.error, m.counts.size())};
    }
    const auto agree = clustered_mean(m.top1_agree, m.counts);
    const double flips = 1.0 - agree.mean;
    // The square of a noisy share is too large by its variance.
    const double square = flips * flips - agree.error * agree.error;
    const double error = (2.0 * flips + agree.error) * agree.error / kld.mean;
    return Rate{square / kld.mean, variance(error, m.counts.size())};
}

/// Precision-weighted mean of one tensor's rates.
Rate combine(const std::vector<Rate>& rates) {
    double weight = 0.0, sum = 0.0;
    for (const auto& rate : rates) {
        weight += 1.0 / rate.variance;
        sum += rate.value / rate.variance;
    }
    return {sum / weight, 1.0 / weight};
}

/// Each tensor's rate after it was drawn to the mean of all, and that mean.
std::map<std::string, Rate> shrink(const std::map<std::string, Rate>& rates, Rate& mean) {
    double w = 0.0, w2 = 0.0, wx = 0.0, q = 0.0;
    for (const auto& [tensor, rate] : rates) {
        const double weight = 1.0 / rate.variance;
        w += weight;
        w2 += weight * weight;
        wx += weight * rate.value;
    }
    for (const auto& [tensor, rate] : rates) q += std::pow(rate.value - wx / w, 2) / rate.variance;
    const auto degrees = static_cast<double>(rates.size()) - 1.0;
    // Tensors differ only where that is beyond doubt: two standard deviations of q.
    const double excess = q - degrees - 2.0 * std::sqrt(2.0 * std::max(0.0, degrees));
    const double between = degrees > 0.0 ? std::max(0.0, excess / (w - w2 / w)) : 0.0;
    double weight = 0.0, sum = 0.0;
    for (const auto& [tensor, rate] : rates) {
        weight += 1.0 / (rate.variance + between);
        sum += rate.value / (rate.variance + between);
    }
    mean = {sum / weight, 1.0 / weight + between};
    std::map<std::string, Rate> shrunk;
    for (const auto& [tensor, rate] : rates) {
        const double trust = between / (between + rate.variance);
        shrunk[tensor] = {mean.value + trust * (rate.value - mean.value),
                          trust * rate.variance + (1.0 - trust) * (1.0 - trust) / weight};
    }
    return shrunk;
}

}  // namespace

std::optional<Objective> parse_objective(std::string_view name) {
    for (const auto objective : {Objective::kld, Objective::nll, Objective::top1})
        if (name == objective_name(objective)) return objective;
    return std::nullopt;
}

std::string_view objective_name(Objective objective) {
    return objective == Objective::kld ? "kld" : objective == Objective::nll ? "nll" : "top1";
}

Profile parse_profile(const std::string& text, std::span<const std::string> domains) {
    if (text.empty()) return {};
    const std::set<std::string> known(domains.begin(), domains.end());
    if (known.empty())
        throw UsageError(fmt::format(
            "--profile {}: the text has no domains; label it when measuring, as --text code=FILE --text chat=FILE",
            text));
    if (text.find('=') != std::string::npos) return own_shares(text, known);
    if (text == "balanced") return equal_shares(known);
    if (!known.contains(text))
        throw UsageError(fmt::format("--profile {}: no text is labelled so; there are {}, and balanced", text,
                                     fmt::join(known, ", ")));
    if (known.size() == 1) return {{text, 1.0}};
    Profile profile;
    for (const auto& domain : known)
        profile[domain] = domain == text ? named_share : (1.0 - named_share) / static_cast<double>(known.size() - 1);
    return profile;
}

std::vector<double> window_weights(const Profile& profile, std::span<const std::string> domains) {
    std::vector<double> weights(domains.size(), 1.0);
    if (profile.empty()) return weights;
    std::map<std::string, double> windows;
    for (const auto& domain : domains) windows[domain] += 1.0;
    double sum = 0.0;
    for (std::size_t w = 0; w < weights.size(); ++w) {
        const auto share = profile.find(domains[w]);
        weights[w] = share == profile.end() ? 0.0 : share->second / windows[domains[w]];
        sum += weights[w];
    }
    for (auto& weight : weights) weight *= static_cast<double>(weights.size()) / sum;
    return weights;
}

void weigh(std::vector<double>& sums, std::span<const double> weights) {
    if (sums.size() < weights.size())
        throw Error(
            fmt::format("the journal has figures of {} windows where its text has {}; measure again in another "
                        "journal",
                        sums.size(), weights.size()));
    std::vector<double> counted;
    for (std::size_t w = 0; w < weights.size(); ++w)
        if (weights[w] > 0.0) counted.push_back(weights[w] * sums.at(w));
    sums = std::move(counted);
}

std::vector<Measurement> weigh(std::vector<Measurement> measurements, const Profile& profile,
                               std::span<const std::string> domains) {
    if (profile.empty()) return measurements;
    std::map<std::size_t, std::vector<double>> known;  // by the number of entries
    for (auto& m : measurements) {
        const auto n = m.counts.empty() ? m.local_counts.size() : m.counts.size();
        auto& weights = known[n];
        if (weights.empty()) {
            if (n > domains.size())
                throw Error(
                    fmt::format("the journal has {} windows of {} where {} have a domain; measure again in "
                                "another journal",
                                n, m.tensor, domains.size()));
            weights = window_weights(profile, domains.first(n));
        }
        for (auto* sums : {&m.counts, &m.kld, &m.delta_nll, &m.top1_agree, &m.local_energy, &m.local_counts})
            if (!sums->empty()) weigh(*sums, weights);
    }
    return measurements;
}

std::map<std::string, std::vector<Damage>> predict_cost(std::span<const Measurement> measurements,
                                                        Objective objective) {
    auto costs = predict_damage(measurements);
    if (objective == Objective::kld) return costs;
    std::map<std::string, std::vector<Rate>> rates;
    double cost = 0.0, kld = 0.0;
    for (const auto& m : measurements) {
        if (m.tier != Tier::full) continue;
        const auto rate = rate_of(m, objective);
        if (!rate) continue;
        const double weight = clustered_mean(m.kld, m.counts).mean;
        cost += rate->value * weight;
        kld += weight;
        if (std::isfinite(rate->variance) && rate->variance > 0.0) rates[m.tensor].push_back(*rate);
    }
    if (kld <= 0.0) return costs;
    Rate mean{cost / kld, 0.0};  // all that can be said from a single window
    std::map<std::string, Rate> of_tensor;
    for (const auto& [tensor, several] : rates) of_tensor[tensor] = combine(several);
    if (!of_tensor.empty()) of_tensor = shrink(of_tensor, mean);
    for (auto& [tensor, damages] : costs) {
        const auto own = of_tensor.find(tensor);
        const auto& rate = own == of_tensor.end() ? mean : own->second;
        for (auto& damage : damages) {
            damage.error = std::hypot(rate.value * damage.error, std::sqrt(rate.variance) * damage.kld);
            damage.kld *= rate.value;
        }
    }
    return costs;
}

}  // namespace cerebellum
