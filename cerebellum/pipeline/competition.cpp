#include "cerebellum/pipeline/competition.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include "cerebellum/core/quant_type.h"
#include "cerebellum/pipeline/mix_scores.h"
#include "cerebellum/pipeline/race.h"
#include "cerebellum/pipeline/undecided.h"
#include "cerebellum/predict/curve.h"
#include "cerebellum/quantize/feedback_rounder.h"

namespace cerebellum {

namespace {

constexpr TextPart judged_parts[] = {TextPart::selection, TextPart::test};

/// Of mixes in the order of their sizes the largest that fits and the smallest that does not.
void keep_nearest(std::vector<Contender>& others) {
    const auto fits = [](const Contender& other) { return other.fits; };
    const auto last = std::ranges::find_if(others.rbegin(), others.rend(), fits);
    if (last != others.rend()) others.erase(others.begin(), last.base() - 1);
}

class Competition {
  public:
    Competition(Session& session, OwnRecipes& own, const CompetitionOptions& options, Progress& progress)
        : session_(session), own_(own), options_(options), progress_(progress) {
        all_ = options.all || options.aim.objective != Objective::kld;
    }

    std::vector<Contender> run() {
        stock_ = find_contenders(session_, own_.budget_bytes);
        uniform_ = std::ranges::any_of(stock_, [](const Contender& c) { return c.kind == Contender::Kind::pure; });
        if (options_.nearest_only && !uniform_) keep_nearest(stock_);
        if (uniform_)
            progress_.info(fmt::format("no preset fits; {} uniform mixes do",
                                       std::ranges::count(stock_, Contender::Kind::pure, &Contender::kind)));
        if (options_.aim.objective == Objective::kld) predict();
        measure(first());
        for (auto next = wanted(); !next.empty(); next = wanted()) {
            if (uniform_)
                race(next);
            else
                measure(next);
        }
        if (options_.all) measure(others());
        const auto n_left = std::ranges::count_if(
            stock_, [&](const Contender& mix) { return mix.fits && !mix.replayed() && !beaten_.contains(&mix); });
        if (n_left > 0)
            progress_.info(
                fmt::format("{} of {} stock mixes are not replayed: they cannot win by what is predicted "
                            "of them (--compare all replays all)",
                            n_left, std::ranges::count(stock_, true, &Contender::fits)));
        // Those that did not get to the end of a race.
        std::erase_if(stock_, [](const Contender& c) { return c.kind == Contender::Kind::pure && !c.replayed(); });
        return std::move(stock_);
    }

  private:
    using Group = std::vector<Contender*>;

    void predict() {
        const Aim in_kld{Objective::kld, options_.aim.profile, options_.aim.rounding};
        const auto measurements = weighed_measurements(session_.journal(), in_kld);
        const MixPredictor predictor(measurements, own_.calibration);
        for (auto& mix : stock_) mix.predicted = predictor.predict(changed_types(session_.source(), mix.types));
    }

    /// What is measured in any case: ours, and the stock mixes that are nearest to being the best known. And presets
    /// that nothing is known of, so that there is something to show.
    Group first() {
        Group group;
        for (auto& version : own_.versions) group.push_back(&version);
        Group fitting;
        for (auto& mix : stock_)
            if (mix.fits) fitting.push_back(&mix);
        if (fitting.empty()) return group;
        if (!uniform_) {
            for (auto* mix : fitting)
                if (all_ || mix == fitting.back() || !mix->predicted) group.push_back(mix);
            return group;
        }
        // A lower bound is no reason to think that a mix is good.
        std::erase_if(fitting,
                      [&](const Contender* mix) { return all_ || !mix->predicted || mix->predicted->at_least; });
        std::ranges::stable_sort(fitting, {}, [](const Contender* mix) { return mix->predicted->kld.mean; });
        fitting.resize(std::min(fitting.size(), race_finalists));
        group.insert(group.end(), fitting.begin(), fitting.end());
        return group;
    }

    /// What is over the budget, to show it.
    Group others() {
        Group group;
        for (auto& mix : stock_)
            if (!mix.fits) group.push_back(&mix);
        return group;
    }

    void measure(const Group& group) {
        if (!group.empty()) replay_scores(session_, group, judged_parts, options_.aim, progress_);
    }

    bool may_win(const Contender& mix) const {
        return mix.fits && !beaten_.contains(&mix) && (all_ || options_.may_be_delivered(mix));
    }

    /// The stock mixes that still have to be measured.
    Group wanted() {
        Group mixes;
        std::vector<Entrant> entrants;
        const auto enter = [&](Contender& contender, bool wins) {
            Entrant entrant;
            entrant.may_win = wins;
            if (contender.predicted && !all_) {
                entrant.predicted = contender.predicted->kld;
                entrant.at_least = contender.predicted->at_least;
            }
            if (contender.replayed() && !is_usable(contender.selection))
                entrant = {{}, false, {}, false};  // it has no figures, and tells nothing of predictions
            else if (contender.replayed())
                entrant.measured = mean_cost(contender.selection, options_.aim.objective);
            mixes.push_back(&contender);
            entrants.push_back(std::move(entrant));
        };
        for (auto& version : own_.versions) enter(version, true);
        // Earlier versions are much the same mix: they say nothing new of predictions.
        if (const auto predicted = own_.prediction_of(own_.final().types); predicted && !all_)
            entrants.back().predicted = predicted->calibrated;
        for (auto& mix : stock_) enter(mix, may_win(mix));
        Group next;
        for (const auto i : undecided(entrants)) next.push_back(mixes[i]);
        return next;
    }

    /// How many of the selection's first windows it takes until every domain has been seen.
    std::size_t windows_of_all_domains() {
        const auto domains = domains_of(session_, TextPart::selection);
        const std::set<std::string> all(domains.begin(), domains.end());
        std::set<std::string> seen;
        std::size_t windows = 0;
        while (seen.size() < all.size()) seen.insert(domains[windows++]);
        return std::max<std::size_t>(windows, 1);
    }

    /// The finalists are measured; the others are beaten.
    void race(const Group& entrants) {
        const auto n_windows = windows_of(session_, TextPart::selection).size();
        run_race(entrants.size(), n_windows, windows_of_all_domains(), race_finalists,
                 [&](std::span<const std::size_t> who, std::size_t windows) {
                     Group group;
                     for (const auto i : who) group.push_back(entrants[i]);
                     const auto costs = windows == n_windows ? finals(group) : heat(group, windows);
                     progress_.info(
                         fmt::format("{} uniform mixes compared on {} of {} windows", who.size(), windows, n_windows));
                     return costs;
                 });
        for (const auto* entrant : entrants)
            if (!entrant->replayed()) beaten_.insert(entrant);
    }

    std::vector<double> heat(const Group& group, std::size_t windows) {
        std::vector<TypeMap> mixes;
        for (const auto* mix : group) mixes.push_back(mix->types);
        std::vector<double> costs;
        for (const auto& scores :
             measure_scores(session_, mixes, TextPart::selection, "contender", options_.aim, progress_, windows))
            costs.push_back(mean_cost(scores, options_.aim.objective).mean);
        return costs;
    }

    std::vector<double> finals(const Group& group) {
        measure(group);
        std::vector<double> costs;
        for (const auto* mix : group) costs.push_back(selection_cost(*mix, options_.aim.objective));
        return costs;
    }

    /// As many uniform mixes as get to the end of a race, or are measured without one.
    static constexpr std::size_t race_finalists = 3;

    Session& session_;
    OwnRecipes& own_;
    const CompetitionOptions& options_;
    Progress& progress_;
    bool all_ = false;
    bool uniform_ = false;
    std::vector<Contender> stock_;
    std::set<const Contender*> beaten_;
};

}  // namespace

MixPredictor::MixPredictor(std::span<const Measurement> measurements, Calibration calibration)
    : calibration_(std::move(calibration)) {
    std::vector<Measurement> plain;
    for (const auto& m : measurements)
        if (const auto type = parse_encoding(m.type); type && type->rounding == Rounding::ggml) plain.push_back(m);
    for (const auto& [tensor, curve] : fit_curves(plain))
        for (const auto& point : curve.points) damages_[tensor][point.type] = {point.kld, point.damage.error};
}

const Estimate* MixPredictor::measured(const std::string& tensor, const Encoding& type) const {
    const auto known = damages_.find(tensor);
    if (known == damages_.end()) return nullptr;
    const auto damage = known->second.find(type);
    return damage == known->second.end() ? nullptr : &damage->second;
}

const Estimate* MixPredictor::at_least(const std::string& tensor, const Encoding& type) const {
    constexpr double surely_better = 1.25;
    const auto known = damages_.find(tensor);
    // A source may lie on the grid of a type without a codebook, which then does no damage at all.
    if (known == damages_.end() || takes_feedback(type.type)) return nullptr;
    const Estimate* least = nullptr;
    std::pair<double, double> nearest;  // bits, and of equally many the least damage
    for (const auto& [other, damage] : known->second) {
        const std::pair found(bits_per_weight(other.type), damage.mean);
        if (found.first < surely_better * bits_per_weight(type.type) || (least != nullptr && found >= nearest))
            continue;
        least = &damage;
        nearest = found;
    }
    return least;
}

std::optional<MixPrediction> MixPredictor::predict(const TypeMap& changed) const {
    MixPrediction prediction;
    double sum = 0.0, variance = 0.0;
    for (const auto& [name, type] : changed) {
        const auto* damage = measured(name, type);
        if (damage == nullptr) {
            prediction.at_least = true;
            damage = at_least(name, type);
        }
        if (damage == nullptr) continue;
        sum += damage->mean;
        variance += damage->error * damage->error;
    }
    if (!(sum > 0.0)) return std::nullopt;
    prediction.kld = calibration_.predict(sum);
    prediction.kld.error = std::hypot(prediction.kld.error, prediction.kld.mean * std::sqrt(variance) / sum);
    if (!std::isfinite(prediction.kld.error)) return std::nullopt;
    return prediction;
}

std::vector<Contender> compete(Session& session, OwnRecipes& own, const CompetitionOptions& options,
                               Progress& progress) {
    return Competition(session, own, options, progress).run();
}

}  // namespace cerebellum
