#include "cerebellum/sweep/costs.h"

#include <algorithm>
#include <cmath>

#include "cerebellum/core/quant_type.h"

namespace cerebellum {

double Rates::quantizing(const Encoding& type, double weights, double columns) const {
    double seconds = quantize_default_s;
    double nearest = INFINITY;
    for (const auto& [known, rate] : quantize_s) {
        if (known.rounding != Rounding::ggml) continue;
        const double distance =
            known.type == type.type ? -1.0 : std::fabs(bits_per_weight(known.type) - bits_per_weight(type.type));
        if (distance >= nearest) continue;
        nearest = distance;
        seconds = rate;
    }
    if (type.rounding == Rounding::feedback) seconds += feedback_s * columns;
    return seconds * weights;
}

void CostLedger::expect(const Kind& kind, double estimate_s) {
    accounts_[kind].left_s += estimate_s;
}

void CostLedger::did(const Kind& kind, double estimate_s, double actual_s) {
    auto& account = accounts_[kind];
    account.left_s = std::max(0.0, account.left_s - estimate_s);
    account.estimated_s += estimate_s;
    account.actual_s += actual_s;
}

/// How many times as long as estimated the rest will take. An estimate counts as much as so many seconds of work that
/// went just as estimated, or as a little of all that there is to do, where that is less.
double CostLedger::correction(const Kind& kind, const Account& account) const {
    const auto ratio_with = [](double estimated_s, double actual_s, double trust_s) {
        return (actual_s + trust_s) / (estimated_s + trust_s);
    };
    constexpr double trust_s = 0.5, trust_share = 0.01;
    const double own_trust = std::min(trust_s, trust_share * (account.left_s + account.estimated_s)) + 1e-9;
    if (kind.work != Work::quantize) return ratio_with(account.estimated_s, account.actual_s, own_trust);
    // What all types have in common (another load of the machine) is learned from all.
    Account all;
    for (const auto& [other, seen] : accounts_) {
        if (other.work != Work::quantize) continue;
        all.estimated_s += seen.estimated_s;
        all.actual_s += seen.actual_s;
        all.left_s += seen.left_s;
    }
    const double common = ratio_with(all.estimated_s, all.actual_s,
                                     std::min(trust_s, trust_share * (all.left_s + all.estimated_s)) + 1e-9);
    return (account.actual_s + own_trust * common) / (account.estimated_s + own_trust);
}

double CostLedger::left_of(bool quantizing) const {
    double seconds = 0.0;
    for (const auto& [kind, account] : accounts_)
        if ((kind.work == Work::quantize) == quantizing) seconds += account.left_s * correction(kind, account);
    return seconds;
}

double CostLedger::left_s() const {
    return overlaps_ ? std::max(left_of(true), left_of(false)) : left_of(true) + left_of(false);
}

void SweepCosts::expect_change(const SweepMap::Place& place, const Encoding& type, std::size_t windows,
                               std::size_t full, double quantized_weights) {
    using Work = CostLedger::Work;
    quantized_weights_ += quantized_weights;
    ledger_.expect({Work::quantize, type}, rates_.quantizing(type, quantized_weights, place.columns));
    const auto& ranges = map_->ranges();
    if (place.range < ranges.size()) {
        const int end = ranges[place.range].end;
        expect_replay(Work::change, place.use->first, end, windows);
        expect_replay(Work::carry, end, head_cut_, full);
    }
    expect_replay(Work::score, head_cut_, n_nodes_, full);
}

void SweepCosts::quantized(const SweepMap::Place& place, const Encoding& type, double weights, double actual_s) {
    ledger_.did({CostLedger::Work::quantize, type}, rates_.quantizing(type, weights, place.columns), actual_s);
}

void SweepCosts::replayed(CostLedger::Work work, int begin, int end, std::size_t runs, double actual_s) {
    // A range without products (an embedding that is looked up) takes some time, but says nothing of those that have.
    const double estimate_s = replaying(begin, end, runs);
    const bool says_nothing = begin >= end || map_->flops(begin, end) <= 0.0;
    ledger_.did({work, {}}, estimate_s, says_nothing ? estimate_s : actual_s);
}

double SweepCosts::share_done(double elapsed_s) const {
    const double whole = elapsed_s + left_s();
    return whole > 0.0 ? elapsed_s / whole : 1.0;
}

double SweepCosts::replaying(int begin, int end, std::size_t runs) const {
    if (begin >= end) return 0.0;
    return map_->cost(begin, end) * static_cast<double>(runs) * (begin >= head_cut_ ? rates_.head_s : rates_.replay_s);
}

void SweepCosts::expect_replay(CostLedger::Work work, int begin, int end, std::size_t runs) {
    ledger_.expect({work, {}}, replaying(begin, end, runs));
    replay_flops_ += begin < end ? map_->flops(begin, end) * static_cast<double>(runs) : 0.0;
}

}  // namespace cerebellum
