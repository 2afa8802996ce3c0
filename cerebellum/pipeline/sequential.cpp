#include "cerebellum/pipeline/sequential.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>

#include "cerebellum/core/quant_type.h"
#include "cerebellum/core/stats.h"
#include "cerebellum/pipeline/allocation.h"

namespace cerebellum {

namespace {

/// Windows of a pair that the design has asked for so far.
struct Extent {
    std::size_t fast = 0;
    std::size_t full = 0;  // of anchors
};
using State = std::map<std::string, std::map<Encoding, Extent>>;

bool is_anchor(const TensorPlan& tensor, const Encoding& type) {
    return std::ranges::find(tensor.anchors, type) != tensor.anchors.end();
}

State first_state(const SequentialDesign& design, std::size_t windows) {
    State state;
    for (const auto& tensor : design.plan)
        for (const auto type : tensor.types)
            state[tensor.name][type] = {windows, is_anchor(tensor, type) ? windows : 0};
    return state;
}

/// The plan that brings the journal up to a state: types of the same extent together.
std::vector<TensorPlan> plan_of(const SequentialDesign& design, const State& state) {
    std::vector<TensorPlan> plan;
    for (const auto& tensor : design.plan) {
        std::map<std::pair<std::size_t, std::size_t>, TensorPlan> entries;
        for (const auto type : tensor.types) {
            const auto& extent = state.at(tensor.name).at(type);
            auto& entry = entries[{extent.fast, extent.full}];
            entry.name = tensor.name;
            entry.windows = extent.fast;
            entry.full_windows = extent.full;
            entry.types.push_back(type);
            if (is_anchor(tensor, type)) entry.anchors.push_back(type);
        }
        for (auto& [windows, entry] : entries) plan.push_back(std::move(entry));
    }
    return plan;
}

/// What the journal would hold had nothing been measured beyond the state.
class Seen {
  public:
    Seen(const SequentialDesign& design, const State& state) {
        auto all = design.figures();
        for (const auto& m : all) is_local_[m.tensor] = is_local_[m.tensor] || m.tier == Tier::fast;
        for (auto& m : all) {
            const auto tensor = std::ranges::find(design.plan, m.tensor, &TensorPlan::name);
            const auto type = parse_encoding(m.type);
            if (tensor == design.plan.end() || !type || !state.at(m.tensor).contains(*type)) continue;
            const auto& extent = state.at(m.tensor).at(*type);
            const bool as_anchor = m.tier == Tier::full && is_local_[m.tensor] && is_anchor(*tensor, *type);
            truncate(m, as_anchor ? extent.full : extent.fast);
            rows_.push_back(std::move(m));
        }
    }
    const std::vector<Measurement>& rows() const { return rows_; }
    bool is_local(const std::string& tensor) const {
        const auto found = is_local_.find(tensor);
        return found != is_local_.end() && found->second;
    }

  private:
    static void truncate(Measurement& m, std::size_t windows) {
        for (auto* sums : {&m.counts, &m.kld, &m.delta_nll, &m.top1_agree, &m.local_energy, &m.local_counts})
            sums->resize(std::min(sums->size(), windows));
    }

    std::vector<Measurement> rows_;
    std::map<std::string, bool> is_local_;
};

/// The price of a byte at which the cheapest choices together just fit.
double price_of_a_byte(const AllocationProblem& problem, std::uint64_t budget_bytes) {
    const auto bytes_at = [&](double price) {
        std::uint64_t bytes = problem.fixed_bytes;
        for (const auto& tensor : problem.tensors)
            bytes += std::ranges::min(tensor.choices, {}, [&](const TypeChoice& choice) {
                         return choice.cost + price * static_cast<double>(choice.bytes);
                     }).bytes;
        return bytes;
    };
    double low = 0.0, high = 1e-15;
    while (bytes_at(high) > budget_bytes && high < 1e15) high *= 10.0;
    for (int i = 0; i < 100; ++i) {
        const double middle = 0.5 * (low + high);
        (bytes_at(middle) > budget_bytes ? low : high) = middle;
    }
    return high;
}

/// Another type that a tensor might have instead of the one that is best at the price.
struct Rival {
    std::size_t tensor = 0;
    Encoding type;
    double gap = 0.0;    // that it costs more, bytes priced
    double scale = 0.0;  // sum of what makes up the gap
    double windows = 0.0;
    double variance = 0.0;       // of the gap in one window
    double gain_variance = 0.0;  // of the tensor's gain, relative, in one window
    double gain_windows = 0.0;
    double gain_lever = 0.0;  // how the gap answers to the gain's relative error
    double loss = 0.0;
    bool by_gain = false;  // more of its error is the gain's than the pair's own
};

/// The part of a variance that all pairs have in common stands in for what few windows cannot tell (Smyth, 2004).
constexpr double prior_dof = 4.0;
double moderated(double variance, double windows, double pooled) {
    return (prior_dof * pooled + (windows - 1.0) * variance) / (prior_dof + windows - 1.0);
}

double sample_variance(std::span<const double> values) {
    const auto estimate = clustered_mean(values, std::vector<double>(values.size(), 1.0));
    const auto n = static_cast<double>(values.size());
    return values.size() < 2 ? 0.0 : n * estimate.error * estimate.error;
}

/// Which choices the errors of the figures leave open at one budget.
class OpenChoices {
  public:
    OpenChoices(const Seen& seen, const AllocationProblem& problem, std::uint64_t budget_bytes) : problem_(problem) {
        for (const auto& m : seen.rows()) (m.tier == Tier::fast ? fast_ : full_)[{m.tensor, m.type}] = &m;
        price_ = price_of_a_byte(problem_, budget_bytes);
        for (const auto& tensor : problem_.tensors)
            best_.push_back(
                *std::ranges::min_element(tensor.choices, {}, [&](const TypeChoice& c) { return cost(c); }));
        for (const auto& choice : best_) damage_ += choice.cost;
        find_levels();
        find_rivals();
        judge();
    }

    const AllocationProblem& problem() const { return problem_; }
    const Encoding& best(std::size_t tensor) const { return best_[tensor].type; }
    const std::vector<Rival>& rivals() const { return rivals_; }
    double damage() const { return damage_; }
    /// Σ over tensors of the greatest expected loss, as a share of the damage.
    double relative_loss() const {
        std::vector<double> losses(problem_.tensors.size());
        for (const auto& rival : rivals_) losses[rival.tensor] = std::max(losses[rival.tensor], rival.loss);
        double sum = 0.0;
        for (const double loss : losses) sum += loss;
        return damage_ > 0.0 ? sum / damage_ : 0.0;
    }
    /// A tensor's part of what may be lost.
    double allowed(double tolerance) const {
        return tolerance * damage_ / static_cast<double>(problem_.tensors.size());
    }

  private:
    double cost(const TypeChoice& choice) const { return choice.cost + price_ * static_cast<double>(choice.bytes); }

    /// A choice's damage window by window; empty for the source's own type.
    std::vector<double> by_window(const std::string& tensor, const TypeChoice& choice) const {
        const std::pair key{tensor, type_name(choice.type)};
        std::vector<double> values;
        const auto fast = fast_.find(key), full = full_.find(key);
        if (fast != fast_.end()) {
            const auto& row = *fast->second;
            const double mean = clustered_mean(row.local_energy, row.local_counts).mean;
            for (std::size_t w = 0; w < row.windows(); ++w)
                values.push_back(mean > 0.0 ? choice.cost * row.local_energy[w] / row.local_counts[w] / mean : 0.0);
        } else if (full != full_.end()) {
            const auto& row = *full->second;
            for (std::size_t w = 0; w < row.windows(); ++w) values.push_back(row.kld[w] / row.counts[w]);
        }
        return values;
    }

    /// How hard each window is: the damage of the best choices there against what it is on average. A window that is
    /// hard for all types of all tensors would raise the price of a byte with the damage and changes no choice.
    void find_levels() {
        std::vector<double> expected;
        for (std::size_t t = 0; t < best_.size(); ++t) {
            const auto values = by_window(problem_.tensors[t].name, best_[t]);
            levels_.resize(std::max(levels_.size(), values.size()));
            expected.resize(levels_.size());
            for (std::size_t w = 0; w < values.size(); ++w) {
                levels_[w] += values[w];
                expected[w] += best_[t].cost;
            }
        }
        for (std::size_t w = 0; w < levels_.size(); ++w)
            levels_[w] = expected[w] > 0.0 && levels_[w] > 0.0 ? levels_[w] / expected[w] : 1.0;
    }
    double level(std::size_t window) const { return window < levels_.size() ? levels_[window] : 1.0; }

    void find_rivals() {
        for (std::size_t t = 0; t < best_.size(); ++t) {
            const auto& tensor = problem_.tensors[t];
            const auto& best = best_[t];
            const auto of_best = by_window(tensor.name, best);
            const auto [gain_variance, gain_windows] = gain_error(tensor.name);
            for (const auto& choice : tensor.choices) {
                if (choice.type == best.type) continue;
                const auto values = by_window(tensor.name, choice);
                // The source's own type has no figures and no error.
                const auto n = values.empty()    ? of_best.size()
                               : of_best.empty() ? values.size()
                                                 : std::min(values.size(), of_best.size());
                const double bytes = static_cast<double>(choice.bytes) - static_cast<double>(best.bytes);
                std::vector<double> gaps;
                for (std::size_t w = 0; w < n; ++w)
                    gaps.push_back(((values.empty() ? 0.0 : values[w]) - (of_best.empty() ? 0.0 : of_best[w])) /
                                       level(w) +
                                   price_ * bytes);
                Rival rival;
                rival.tensor = t;
                rival.type = choice.type;
                rival.gap = cost(choice) - cost(best);
                rival.scale = choice.cost + best.cost + price_ * std::fabs(bytes);
                rival.windows = static_cast<double>(n);
                rival.variance = sample_variance(gaps);
                rival.gain_variance = gain_variance;
                rival.gain_windows = gain_windows;
                // Within a rounding both answer to the same gain.
                rival.gain_lever = choice.type.rounding == best.type.rounding ? std::fabs(choice.cost - best.cost)
                                                                              : std::hypot(choice.cost, best.cost);
                if (rival.scale > 0.0 && n > 0) rivals_.push_back(rival);
            }
        }
    }

    /// Relative variance of a tensor's gain in one window, the mean of its anchors', and the windows it stands on.
    std::pair<double, double> gain_error(const std::string& tensor) const {
        double variance = 0.0, anchors = 0.0, windows = 0.0;
        for (const auto& [key, row] : full_) {
            if (key.first != tensor || row->local_energy.empty()) continue;
            const auto gain = clustered_mean(row->kld, row->local_energy);
            windows = static_cast<double>(row->windows());
            if (!(gain.mean > 0.0) || !std::isfinite(gain.error)) continue;
            variance += windows * std::pow(gain.error / gain.mean, 2);
            anchors += 1.0;
        }
        return {anchors > 0.0 ? variance / anchors : 0.0, windows};
    }

    void judge() {
        double pooled = 0.0, pooled_gain = 0.0, with_gain = 0.0;
        for (const auto& rival : rivals_) {
            pooled += rival.variance / (rival.scale * rival.scale);
            if (rival.gain_windows > 0.0) pooled_gain += rival.gain_variance, with_gain += 1.0;
        }
        if (!rivals_.empty()) pooled /= static_cast<double>(rivals_.size());
        if (with_gain > 0.0) pooled_gain /= with_gain;
        for (auto& rival : rivals_) {
            const double own =
                moderated(rival.variance, rival.windows, pooled * rival.scale * rival.scale) / rival.windows;
            const double of_gain = rival.gain_windows > 0.0
                                       ? rival.gain_lever * rival.gain_lever *
                                             moderated(rival.gain_variance, rival.gain_windows, pooled_gain) /
                                             rival.gain_windows
                                       : 0.0;
            rival.by_gain = of_gain > own;
            const double windows = rival.by_gain ? rival.gain_windows : rival.windows;
            rival.loss = expected_loss({rival.gap, std::sqrt(own + of_gain), prior_dof + windows - 1.0});
        }
    }

    const AllocationProblem& problem_;
    std::map<std::pair<std::string, std::string>, const Measurement*> fast_, full_;
    double price_ = 0.0;
    double damage_ = 0.0;
    std::vector<TypeChoice> best_;  // by tensor
    std::vector<double> levels_;    // by window
    std::vector<Rival> rivals_;
};

/// Asks for twice the windows of what a choice hangs on; whether anything is left to ask for.
bool extend(State& state, const SequentialDesign& design, const OpenChoices& open, double tolerance) {
    bool changed = false;
    const auto more = [&](std::size_t& windows, std::size_t seen) {
        const auto wanted = std::min(2 * seen, design.windows);
        if (wanted <= windows) return;
        windows = wanted;
        changed = true;
    };
    const State before = state;
    for (const auto& rival : open.rivals()) {
        if (rival.loss <= open.allowed(tolerance)) continue;
        const auto& name = open.problem().tensors[rival.tensor].name;
        const auto tensor = std::ranges::find(design.plan, name, &TensorPlan::name);
        if (tensor == design.plan.end()) continue;
        auto& extents = state.at(name);
        const auto& known = before.at(name);
        if (rival.by_gain) {
            for (const auto type : tensor->anchors) {
                more(extents.at(type).full, known.at(type).full);
                extents.at(type).fast = std::max(extents.at(type).fast, extents.at(type).full);
            }
            continue;
        }
        for (const auto type : {rival.type, open.best(rival.tensor)})
            if (const auto extent = extents.find(type); extent != extents.end())
                more(extent->second.fast, known.at(type).fast);
    }
    return changed;
}

/// Tokens of all pairs and tiers of a state, and of the fixed design.
std::pair<double, double> tokens_of(const SequentialDesign& design, const State& state, const Seen& seen) {
    double windows = 0.0, fixed = 0.0;
    for (const auto& tensor : design.plan) {
        const bool local = seen.is_local(tensor.name);
        for (const auto type : tensor.types) {
            const auto& extent = state.at(tensor.name).at(type);
            windows += static_cast<double>(local ? extent.fast + extent.full : extent.fast);
            fixed += static_cast<double>(tensor.fast_windows(design.windows));
            if (local && is_anchor(tensor, type)) fixed += static_cast<double>(tensor.anchor_windows(design.windows));
        }
    }
    return {windows * design.tokens_per_window, fixed * design.tokens_per_window};
}

}  // namespace

SequentialReport measure_sequentially(const SequentialDesign& design, const SequentialOptions& options,
                                      Progress& progress) {
    SequentialReport report;
    auto state = first_state(design, std::min(options.first_windows, design.windows));
    for (bool more = true; more;) {
        more = false;
        report.sweep.unmeasured.clear();  // every round names them again
        add(report.sweep, design.measure(plan_of(design, state)));
        ++report.rounds;
        const Seen seen(design, state);
        std::tie(report.tokens, report.fixed_tokens) = tokens_of(design, state, seen);
        report.expected_loss.clear();
        const auto problem = design.problem(seen.rows());
        auto next = state;
        for (const auto budget : options.budgets_bytes) {
            const OpenChoices open(seen, problem, budget);
            report.expected_loss.push_back(open.relative_loss());
            if (open.relative_loss() > options.tolerance) more |= extend(next, design, open, options.tolerance);
        }
        progress.detail(fmt::format(
            "round {}: {:.0f} tokens, expected loss at most {:.2f} % of the recipe's damage", report.rounds,
            report.tokens, report.expected_loss.empty() ? 0.0 : 100.0 * std::ranges::max(report.expected_loss)));
        state = std::move(next);
    }
    return report;
}

std::string describe(const SequentialReport& report) {
    return fmt::format(
        "{} rounds stand on {:.0f} tokens, {:.0f} % of the {:.0f} of measuring everything on all windows; exact "
        "figures "
        "would lower the recipe's damage by {:.1f} % at most on average",
        report.rounds, report.tokens, 100.0 * report.tokens / report.fixed_tokens, report.fixed_tokens,
        report.expected_loss.empty() ? 0.0 : 100.0 * std::ranges::max(report.expected_loss));
}

SequentialReport measure_sequentially(Session& session, const SequentialOptions& options, Progress& progress) {
    const auto plan = session.measurable_plan();
    const auto imatrix = imatrix_info(session.imatrix(), session.imatrix_name());
    SequentialDesign design;
    design.plan = plan;
    design.windows = session.measured_windows().size();
    design.tokens_per_window = session.context();
    design.measure = [&](std::span<const TensorPlan> wanted) { return session.measure(wanted); };
    design.figures = [&] { return session.journal().measurements(); };
    design.problem = [&](std::span<const Measurement> measurements) {
        return make_problem(session.source(), measurements, imatrix, Objective::kld, session.rounding());
    };
    return measure_sequentially(design, options, progress);
}

}  // namespace cerebellum
