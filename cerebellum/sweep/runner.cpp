#include "cerebellum/sweep/runner.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <future>
#include <iterator>
#include <map>
#include <memory>
#include <numeric>
#include <thread>
#include <utility>

#include "cerebellum/core/error.h"
#include "cerebellum/core/figure_error.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/core/stats.h"
#include "cerebellum/replay/change_probe.h"
#include "cerebellum/sweep/extent.h"
#include "cerebellum/sweep/figure_check.h"
#include "cerebellum/sweep/quantize_ahead.h"
#include "cerebellum/sweep/second_look.h"
#include "cerebellum/sweep/sweep_map.h"
#include "cerebellum/sweep/text_rows.h"

namespace cerebellum {

namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

using States = std::vector<LiveState>;  // one per window

void add_score(const WindowScore& score, Measurement& measurement) {
    measurement.counts.push_back(score.count);
    measurement.kld.push_back(score.kld);
    measurement.delta_nll.push_back(score.nll - score.reference_nll);
    measurement.top1_agree.push_back(score.same_top);
}

/// A change that has been replayed as far as some cut, on its way to the head.
struct Variant {
    Measurement measurement;
    Encoding type;
    std::vector<std::size_t> windows;    // which ones
    States states;                       // one for each of these
    std::vector<std::byte> weight;       // the changed weight, where it is read again further on
    std::span<const std::int64_t> rows;  // that it has, where it has not all
    std::size_t held_bytes = 0;          // memory of states and weight

    /// With no fast figures to measure: those are there.
    Remeasure::Pair pair() const {
        if (windows.empty()) return {measurement.tensor, type, {}, {}};
        return {measurement.tensor, type, {}, {windows.front(), windows.back() + 1}};
    }
    Substitutions substitutes() const { return {{measurement.tensor, {type.type, weight, rows}}}; }
};

/// A tensor's type and what is wanted of it.
struct Change {
    Encoding type;
    Extent fast, full;
    bool is_slow = false;  // to quantize
};

}  // namespace

/// The source's live states that outlast a sweep, of the first windows.
struct SourceStates {
    States at_head;
    /// At the begins of the ranges that were measured last: the next plan begins in one of them, or behind.
    std::map<std::size_t, States> at_range;
    bool kept = false;                     // for another sweep
    std::vector<double> mass;              // of every token: its probability, summed over all scored positions
    std::unique_ptr<SharedStates> shared;  // all states of all windows, instead of at_range
};

namespace {

class Sweep {
  public:
    Sweep(ReplayEngine& engine, std::span<const Window> windows, std::span<const TensorPlan> plan,
          const Quantizer& quantize, const SweepOptions& options, FigureStore& figures, Progress& progress,
          SourceStates& source, const Rates& rates)
        : engine_(engine),
          topology_(engine.topology()),
          map_(topology_),
          ranges_(map_.ranges()),
          plan_(plan),
          all_windows_(windows),
          windows_(windows),
          quantize_(quantize),
          options_(options),
          figures_(figures),
          progress_(progress),
          source_(source),
          second_look_(engine, map_, windows, source.at_head, quantize, figures, progress),
          costs_(map_, rates, topology_.head_cut(), topology_.n_nodes(), !engine.is_host()) {
        plain_.resize(ranges_.size());
        work_.resize(ranges_.size() + 1);
        for (const auto& tensor : plan) sort_in(tensor);
        windows_ = windows_.first(needed_windows_);
        if (!has_work()) return;
        costs_.expect_source(0, topology_.head_cut(), windows_.size());
        for (std::size_t r = 0; has_work_from(r); ++r) {
            costs_.expect_source(ranges_[r].begin, ranges_[r].end, windows_.size());
            int last = ranges_[r].begin;
            for (const auto& work : work_[r]) last = std::max(last, work.use->first);
            costs_.expect_source(ranges_[r].begin, last, windows_.size());
        }
        estimate_.quantized_weights = costs_.quantized_weights();
        estimate_.replay_flops = costs_.replay_flops();
        estimate_.seconds = costs_.left_s();
    }

    /// What there is to do, as it looks before anything is done.
    SweepEstimate estimate() const {
        auto result = estimate_;
        result.resumed = summary_.resumed;
        return result;
    }

    SweepSummary run() {
        try {
            measure();
        } catch (const FigureError& error) {
            throw device_is_gone(error);  // what is one pair's fault is caught where it is measured
        }
        summary_.unusable = second_look_.unusable();
        return summary_;
    }

    void measure() {
        if (has_work()) {
            started_ = Clock::now();
            progress_.begin("measuring", 1.0);
            prepare_baseline();
            check_baseline();
            choose_text_rows();
            list_jobs();
            measure_head();
            auto [next, baseline] = first_states();
            while (next < ranges_.size()) next = run_wave(next, baseline);
            ahead_.reset();
            progress_.end();
        }
        for (const auto& tensor : plan_) second_look_.replace_anchors(tensor);
    }

    /// This process's windows, where there are neighbours.
    void share() {
        if (!source_.shared) return;
        std::vector<std::size_t> mine;
        for (std::size_t w = 0; w < all_windows_.size(); ++w)
            if (source_.shared->is_mine(w) && !source_.shared->is_ready(w)) mine.push_back(w);
        share_states_of(mine);
    }

  private:
    struct Work {
        const TensorPlan* plan = nullptr;
        SweepMap::Place place;
        const WeightUse* use = nullptr;
        bool local = false;  // read in one block only, whose output shows the change
        bool shows = false;  // as is known from earlier measurements
        double share = 1.0;  // of the weights that are quantized where not all are
        std::vector<Change> changes;
        /// Rows that stand for all, where not all are changed: a sample, or, outside of the blocks, what the text
        /// needs.
        std::vector<std::int64_t> rows;
        bool is_anchor(const Encoding& type) const {
            return std::ranges::find(plan->anchors, type) != plan->anchors.end();
        }
        /// Whether a change is measured on a sample of the rows.
        bool samples(const Change& change) const {
            return local && !rows.empty() && change.is_slow && change.full.empty() && !is_anchor(change.type);
        }
    };

    /// One change of one tensor to be replayed, in the order in which they are.
    struct Job {
        enum class What { whole, sampled_anchor, sampled };
        const Work* work = nullptr;
        Change change;
        What what = What::whole;
        /// That are changed; empty: all.
        std::span<const std::int64_t> rows() const {
            return what != What::whole || !work->local ? std::span<const std::int64_t>(work->rows)
                                                       : std::span<const std::int64_t>();
        }
    };

    /// What the journal does not hold yet of the first `wanted` windows.
    Extent missing(const std::string& tensor, const Encoding& type, Tier tier, std::size_t wanted) const {
        const auto known = figures_.find(tensor, type_name(type), tier);
        return {known ? known->windows() : 0, wanted};
    }

    bool known_to_show(const std::string& tensor, const Encoding& type) const {
        const auto known = figures_.find(tensor, type_name(type), Tier::fast);
        return known && std::ranges::any_of(known->local_energy, [](double energy) { return energy > 0.0; });
    }

    void sort_in(const TensorPlan& plan) {
        const auto place = map_.place_of(plan.name);
        if (!place) {
            summary_.unmeasured.push_back(plan.name);
            return;
        }
        Work work;
        work.plan = &plan;
        work.place = *place;
        work.use = place->use;
        work.local = place->local;
        if (work.local) work.rows = sampled_rows_of(plan.name, *place);
        work.share = expected_share(work);
        const auto fast_windows = plan.fast_windows(windows_.size());
        for (const auto type : plan.types) {
            if (figures_.find_unusable(plan.name, type_name(type))) continue;
            const auto wanted = [&](Tier tier, std::size_t n) {
                const auto extent = missing(plan.name, type, tier, n);
                if (extent.empty())
                    ++summary_.resumed;
                else
                    needed_windows_ = std::max(needed_windows_, extent.end);
                return extent;
            };
            Change change;
            change.type = type;
            change.is_slow = !options_.is_slow || options_.is_slow(type);
            if (work.local) {
                change.fast = wanted(Tier::fast, fast_windows);
                work.shows = work.shows || known_to_show(plan.name, type);
            }
            if (!work.local)
                change.full = wanted(Tier::full, fast_windows);
            else if (std::ranges::find(plan.anchors, type) != plan.anchors.end())
                change.full = wanted(Tier::full, plan.anchor_windows(windows_.size()));
            if (change.fast.empty() && change.full.empty()) continue;
            expect(work, change);
            work.changes.push_back(change);
        }
        if (work.changes.empty()) return;
        std::vector<Job> jobs;
        add_jobs(work, jobs);
        for (const auto& job : jobs)
            if (job.what == Job::What::sampled_anchor)
                costs_.expect_change(work.place, job.change.type, job.change.fast.size(), 0, weights_of(job));
        if (!work.local && predicts(plan.name)) needed_windows_ = all_windows_.size();
        work_[place->range].push_back(std::move(work));
    }

    /// Empty where the whole matrix is changed.
    std::vector<std::int64_t> sampled_rows_of(const std::string& tensor, const SweepMap::Place& place) const {
        if (!options_.quantize_rows || !Slice::can_change_rows(topology_, tensor) || place.use->nodes.size() != 1)
            return {};
        const auto node = static_cast<std::size_t>(place.use->first);
        const auto& product = topology_.graph().tensors[node];
        if (product.op == GGML_OP_GET_ROWS) return {};
        return sample_rows(tensor, product.shape[0], rows_for(product.shape[0]));
    }

    /// Whether the tensor is an output matrix whose rows the source's predictions choose.
    bool predicts(const std::string& tensor) const {
        return options_.quantize_rows && reads_text_by_rows(topology_, tensor) &&
               topology_.weights().at(tensor).last >= topology_.head_cut();
    }

    /// Outside of the blocks: the rows that the text looks up, or that may be predicted.
    void choose_text_rows() {
        if (!options_.quantize_rows) return;
        for (auto& works : work_)
            for (auto& work : works) {
                const auto& name = work.plan->name;
                if (work.local || !reads_text_by_rows(topology_, name)) continue;
                std::span<const double> mass;
                if (predicts(name)) {
                    if (source_.mass.empty()) {
                        source_.mass.resize(static_cast<std::size_t>(engine_.model().n_vocab()));
                        for (std::size_t w = 0; w < all_windows_.size(); ++w)
                            engine_.add_predictions(all_windows_[w], source_.at_head[w], source_.mass);
                    }
                    mass = source_.mass;
                }
                work.rows = text_rows(topology_, name, all_windows_, mass, options_.neglected_mass);
            }
        engine_.finish_scoring();
    }

    /// All jobs in the order in which they are done: those of the head, then of one range after the other, in the order
    /// of first use. What is sampled comes behind the anchors that it is scaled by.
    void list_jobs() {
        jobs_.resize(work_.size());
        std::vector<const Job*> order;
        for (std::size_t i = 0; i < work_.size(); ++i) {
            const auto r = i == 0 ? ranges_.size() : i - 1;
            auto& jobs = jobs_[r];
            for (const auto& work : work_[r]) add_jobs(work, jobs);
            std::ranges::stable_sort(jobs, {}, [](const Job& job) { return job.work->use->first; });
            for (const auto& job : jobs) order.push_back(&job);
        }
        constexpr std::size_t ahead_bytes = std::size_t{512} << 20;
        // Where the CPU computes itself, threads of both would only be in each other's way.
        const auto count = order.size();
        ahead_ = std::make_unique<QuantizeAhead>(
            count,
            [this, order = std::move(order)](std::size_t i) {
                return quantized(order[i]->work->plan->name, order[i]->change.type, order[i]->rows());
            },
            !engine_.is_host(), ahead_bytes);
    }

    static void add_jobs(const Work& work, std::vector<Job>& jobs) {
        std::vector<Job> sampled;
        std::map<Rounding, Extent> needed;  // of the anchors
        for (const auto& change : work.changes) {
            if (!work.samples(change)) {
                jobs.push_back({&work, change, Job::What::whole});
                continue;
            }
            sampled.push_back({&work, change, Job::What::sampled});
            auto& extent = needed.try_emplace(change.type.rounding, change.fast).first->second;
            extent = {std::min(extent.begin, change.fast.begin), std::max(extent.end, change.fast.end)};
        }
        for (const auto& anchor : work.plan->anchors)
            if (const auto extent = needed.find(anchor.rounding); extent != needed.end())
                jobs.push_back({&work, {anchor, extent->second, {}, false}, Job::What::sampled_anchor});
        std::ranges::move(sampled, std::back_inserter(jobs));
    }

    void expect(const Work& work, const Change& change) {
        estimate_.fast += change.fast.empty() ? 0 : 1;
        estimate_.full += change.full.empty() ? 0 : 1;
        std::size_t windows = 0;
        for (std::size_t w = 0; w < all_windows_.size(); ++w)
            windows += change.fast.has(w) || change.full.has(w) ? 1 : 0;
        const auto what = work.samples(change) ? Job::What::sampled : Job::What::whole;
        costs_.expect_change(work.place, change.type, windows, change.full.size(), weights_of({&work, change, what}));
    }

    /// Of a tensor's rows, the share that is quantized where not all are. Which rows a text needs is not known before
    /// the source has been replayed: then a guess.
    double expected_share(const Work& work) const {
        const auto& name = work.plan->name;
        const auto& reader = topology_.graph().tensors[static_cast<std::size_t>(work.use->first)];
        const auto n_rows =
            static_cast<double>(topology_.graph().tensors[static_cast<std::size_t>(reader.sources[0])].shape[1]);
        if (work.local) return static_cast<double>(work.rows.size()) / n_rows;
        if (!options_.quantize_rows || !reads_text_by_rows(topology_, name)) return 1.0;
        const auto tokens = static_cast<double>(all_windows_.size()) * engine_.n_tokens();
        constexpr double looked_up = 0.5, predicted = 4.0;
        const double share = tokens / n_rows * (predicts(name) ? predicted : looked_up);
        return share > 0.5 ? 1.0 : share;
    }

    static double weights_of(const Job& job) {
        const bool is_whole = job.work->local && job.what == Job::What::whole;
        return job.work->place.weights * (is_whole ? 1.0 : job.work->share);
    }

    bool has_work() const { return has_work_from(0) || !work_.back().empty(); }
    bool has_work_from(std::size_t range) const {
        return std::any_of(work_.begin() + static_cast<std::ptrdiff_t>(range), work_.end() - 1,
                           [](const auto& works) { return !works.empty(); });
    }

    /// `expected_runs`: that the costs know of, where these are not all.
    void account(CostLedger::Work work, int begin, int end, std::size_t runs, double seconds,
                 std::optional<std::size_t> expected_runs = std::nullopt) {
        summary_.replay_flops += map_.flops(begin, end) * static_cast<double>(runs);
        summary_.replay_s += seconds;
        costs_.replayed(work, begin, end, expected_runs.value_or(runs), seconds);
    }
    void account_quantizing(const Job& job, double seconds) {
        summary_.quantize_s += seconds;
        costs_.quantized(job.work->place, job.change.type, weights_of(job), seconds);
    }

    void done(std::string_view what) {
        progress_.advance(costs_.share_done(seconds_since(started_)), fmt::format("{}{}", what, worst_));
        progress_.check();
    }

    /// The range as it is in the source. Kept where all weights are resident.
    Slice& plain(std::size_t range) {
        if (!plain_[range]) plain_[range] = engine_.slice(ranges_[range].begin, ranges_[range].end);
        return *plain_[range];
    }
    void release(std::size_t range) {
        if (!engine_.memory_plan().resident) plain_[range].reset();
    }

    /// Takes the source's states of the first windows through a range, from the one with number `first` on.
    void advance(Slice& slice, const SweepRange& nodes, States& states, std::size_t first = 0) {
        const auto start = Clock::now();
        for (std::size_t w = first; w < windows_.size(); ++w) {
            progress_.check();
            slice.run(windows_[w].inputs, states[w]);
            states[w] = slice.live_out(states[w]);
        }
        engine_.wait();
        account(CostLedger::Work::source, nodes.begin, nodes.end, windows_.size() - first, seconds_since(start));
        done("the source");
    }
    void advance(const SweepRange& nodes, States& states) {
        if (nodes.begin < nodes.end) advance(*engine_.slice(nodes.begin, nodes.end), nodes, states);
    }

    /// The source's live state at the head, which every score is made against.
    void prepare_baseline() {
        auto& states = source_.at_head;
        const auto known = states.size();
        if (known >= windows_.size()) return;
        if (source_.shared) {
            prepare_shared_states();
            return;
        }
        states.resize(windows_.size());
        for (std::size_t r = 0; r < ranges_.size(); ++r) {
            advance(plain(r), ranges_[r], states, known);
            release(r);
        }
    }

    /// Every full figure stands on these states.
    void check_baseline() {
        if (engine_.is_judge()) return;
        for (const auto& state : source_.at_head)
            if (!is_finite(topology_, state))
                throw Error(
                    fmt::format("the source's own states on {} are no finite numbers; run the same command again, "
                                "or use another --device and --journal",
                                engine_.device_names()));
    }

    /// Of all windows: replays this process's share of them and waits for the others'. What its neighbours do not bring
    /// in good time it replays as well, since they may be gone.
    void prepare_shared_states() {
        auto& shared = *source_.shared;
        const auto start = Clock::now();
        share();
        const double patience_s = 60.0 + 5.0 * seconds_since(start);
        const auto is_late = [&](std::size_t w) { return !shared.is_ready(w); };
        const auto waiting = Clock::now();
        std::vector<std::size_t> late(all_windows_.size());
        std::iota(late.begin(), late.end(), std::size_t{0});
        while (std::erase_if(late, std::not_fn(is_late)), !late.empty() && seconds_since(waiting) < patience_s) {
            progress_.check();
            std::this_thread::sleep_for(std::chrono::milliseconds(2));
        }
        share_states_of(late);
        for (std::size_t w = 0; w < all_windows_.size(); ++w)
            source_.at_head.push_back(shared.get(w, ranges_.size(), engine_.device().values()));
    }

    void share_states_of(const std::vector<std::size_t>& windows) {
        if (windows.empty()) return;
        const auto start = Clock::now();
        States states(windows.size());
        for (std::size_t r = 0; r < ranges_.size(); ++r) {
            for (std::size_t i = 0; i < windows.size(); ++i) {
                progress_.check();
                source_.shared->put(windows[i], r, states[i]);
                plain(r).run(all_windows_[windows[i]].inputs, states[i]);
                states[i] = plain(r).live_out(states[i]);
            }
            release(r);
        }
        for (std::size_t i = 0; i < windows.size(); ++i) {
            source_.shared->put(windows[i], ranges_.size(), states[i]);
            source_.shared->set_ready(windows[i]);
        }
        account(CostLedger::Work::source, 0, topology_.head_cut(), windows.size(), seconds_since(start));
    }

    States shared_states_at(std::size_t range) {
        States states;
        for (std::size_t w = 0; w < windows_.size(); ++w)
            states.push_back(source_.shared->get(w, range, engine_.device().values()));
        return states;
    }

    /// The last known states of the source in front of all that is to be measured, and where they are.
    std::pair<std::size_t, States> first_states() {
        std::size_t first = 0;
        while (first < ranges_.size() && work_[first].empty()) ++first;
        if (first == ranges_.size()) return {first, {}};
        if (source_.shared) return {first, shared_states_at(first)};
        for (auto known = source_.at_range.upper_bound(first); known != source_.at_range.begin();) {
            --known;
            if (known->second.size() < windows_.size()) continue;
            States states(known->second.begin(), known->second.begin() + static_cast<std::ptrdiff_t>(windows_.size()));
            return {known->first, std::move(states)};
        }
        return {0, States(windows_.size())};
    }

    void keep_states(std::size_t range, const States& states) {
        if (!source_.kept || source_.shared) return;
        source_.at_range[range] = states;
        constexpr std::size_t at_most = 2;
        while (source_.at_range.size() > at_most)
            source_.at_range.erase(range == source_.at_range.begin()->first ? std::prev(source_.at_range.end())
                                                                            : source_.at_range.begin());
    }

    Quantized quantized(const std::string& tensor, const Encoding& type,
                        std::span<const std::int64_t> rows = {}) const {
        const auto start = Clock::now();
        Quantized result;
        result.bytes = rows.empty() ? quantize_(tensor, type) : options_.quantize_rows(tensor, type, rows);
        result.seconds = seconds_since(start);
        return result;
    }

    static Measurement blank(const std::string& tensor, const Encoding& type, Tier tier) {
        Measurement measurement;
        measurement.tensor = tensor;
        measurement.type = type_name(type);
        measurement.tier = tier;
        return measurement;
    }

    /// Records what was measured, added to what is known of earlier windows.
    void keep(const Measurement& measured) {
        summary_.tokens += static_cast<double>(measured.windows()) * static_cast<double>(engine_.n_tokens());
        auto known = figures_.find(measured.tensor, measured.type, measured.tier);
        if (known)
            extend(*known, measured);
        else
            known = measured;
        figures_.record(*known);
        if (known->tier != Tier::full) return;
        const double kld = clustered_mean(known->kld, known->counts).mean;
        if (kld <= worst_kld_) return;
        worst_kld_ = kld;
        worst_ = fmt::format("; worst so far: {:.1e}, {} {}", kld, known->tensor, known->type);
    }

    static Variant new_variant(const Work& work, const Encoding& type) {
        Variant variant;
        variant.measurement = blank(work.plan->name, type, Tier::full);
        variant.type = type;
        return variant;
    }

    /// Tensors that only the head reads: nothing in front of it has to be replayed.
    void measure_head() {
        std::vector<Variant> variants;
        std::size_t bytes = 0;
        for (const auto& job : jobs_.back()) {
            const auto& change = job.change;
            Quantized data;
            if (!attempt(pair_of(*job.work, change), [&] { data = take_quantized(); })) continue;
            account_quantizing(job, data.seconds);
            auto variant = new_variant(*job.work, change.type);
            for (std::size_t w = change.full.begin; w < change.full.end; ++w) {
                variant.windows.push_back(w);
                variant.states.push_back(source_.at_head[w]);
            }
            variant.weight = std::move(data.bytes);
            variant.rows = job.rows();
            variant.measurement.wall_s = data.seconds;
            bytes += variant.weight.size();
            variants.push_back(std::move(variant));
            if (bytes >= head_group_bytes) {
                score(variants);
                bytes = 0;
            }
            done(fmt::format("{} {}", job.work->plan->name, type_name(change.type)));
        }
        score(variants);
        look_again(ranges_.size(), ranges_.size() + 1);
    }

    static Remeasure::Pair pair_of(const Work& work, const Change& change) {
        return {work.plan->name, change.type, change.fast, change.full};
    }

    /// Does a step of a pair's measuring. Where it fails for this pair alone it is measured again later, and false.
    template <typename Step>
    bool attempt(const Remeasure::Pair& pair, Step&& step) {
        try {
            step();
            return true;
        } catch (const FigureError& error) {
            engine_.wait();
            second_look_.set_aside(pair, error.what());
            return false;
        }
    }

    /// Settles what is not believed of the tensors that were measured in some ranges.
    void look_again(std::size_t begin, std::size_t end) {
        // What is put right may show that its neighbours are not.
        for (bool doubts = true; doubts;) {
            second_look_.resolve();
            doubts = false;
            for (std::size_t r = begin; r < end; ++r)
                for (const auto& work : work_[r])
                    for (const auto tier : {Tier::fast, Tier::full})
                        doubts |= second_look_.compare_types(*work.plan, tier);
        }
    }

    /// Measures one range after the other from `first` on, until as many variants are on their way to the head as
    /// memory allows, and takes these to the head, so that each time a range's weights are at hand they serve all.
    /// `baseline` is the source's state at the first range's begin, and afterwards at the begin of the range returned.
    std::size_t run_wave(std::size_t first, States& baseline) {
        std::vector<Variant> wave;
        bool open = true;  // measuring, not only carrying
        std::size_t next = ranges_.size();
        for (std::size_t r = first; r < ranges_.size(); ++r) {
            if (open && !has_work_from(r)) {
                open = false;
                next = ranges_.size();
            }
            if (!open && wave.empty()) break;
            auto& range = plain(r);
            std::vector<Variant> entering;
            if (open) {
                if (!work_[r].empty()) keep_states(r, baseline);
                States at_end = source_.shared ? shared_states_at(r + 1) : baseline;
                if (!source_.shared) advance(range, ranges_[r], at_end);
                measure_range(r, std::move(baseline), at_end, entering);
                second_look_.check_device();
                baseline = std::move(at_end);
            }
            carry(range, ranges_[r], wave);
            release(r);
            std::ranges::move(entering, std::back_inserter(wave));
            if (open && is_full(wave)) {
                open = false;
                next = r + 1;
            }
        }
        score(wave);
        look_again(first, next);
        return next;
    }

    bool is_full(const std::vector<Variant>& wave) const {
        // Small waves where nothing is gained by large ones: a measurement is kept when its wave is through.
        constexpr std::size_t ample = 24;
        std::size_t bytes = 0;
        for (const auto& variant : wave) bytes += variant.held_bytes;
        return bytes >= engine_.memory_plan().wave_bytes || (engine_.memory_plan().resident && wave.size() >= ample);
    }

    /// Takes the variants through a range of nodes; those that fail there leave the wave.
    void carry(Slice& plain, const SweepRange& nodes, std::vector<Variant>& wave) {
        std::vector<Variant> carried;
        for (auto& variant : wave)
            if (attempt(variant.pair(), [&] { carry(plain, nodes, variant); })) carried.push_back(std::move(variant));
        wave = std::move(carried);
        const auto start = Clock::now();
        engine_.wait();
        account(CostLedger::Work::carry, nodes.begin, nodes.end, 0, seconds_since(start));
    }

    void carry(Slice& plain, const SweepRange& nodes, Variant& variant) {
        const auto start = Clock::now();
        std::unique_ptr<Slice> changed;
        if (!variant.weight.empty() &&
            topology_.weights().at(variant.measurement.tensor).read_within(nodes.begin, nodes.end)) {
            Slice::Options options;
            options.substitutes = variant.substitutes();
            changed = engine_.slice(nodes.begin, nodes.end, options);
        }
        auto& slice = changed ? *changed : plain;
        for (std::size_t i = 0; i < variant.windows.size(); ++i) {
            slice.run(windows_[variant.windows[i]].inputs, variant.states[i]);
            variant.states[i] = slice.live_out(variant.states[i]);
        }
        account(CostLedger::Work::carry, nodes.begin, nodes.end, variant.windows.size(), seconds_since(start));
        variant.measurement.wall_s += seconds_since(start);
        done(variant.measurement.tensor);
    }

    /// The next job's. Waiting for it is what a device does meanwhile.
    Quantized take_quantized() {
        const auto start = Clock::now();
        auto data = ahead_->take();
        if (!engine_.is_host()) summary_.waiting_s += seconds_since(start);
        return data;
    }

    /// Measures all changes of weights that are first read in a range. `states` is the source's at its begin.
    void measure_range(std::size_t r, States states, const States& at_end, std::vector<Variant>& entering) {
        const auto& jobs = jobs_[r];
        // Every tensor is replayed from its own first use, with the source's live state there.
        int at = ranges_[r].begin;
        bool shows = false;
        scaling_ = {};
        States with_product;  // the same states with what a product gives in the source
        std::unique_ptr<Trial> running;
        const auto finish_running = [&] {
            if (running) shows |= finish(*std::exchange(running, nullptr), entering);
        };
        for (std::size_t j = 0; j < jobs.size(); ++j) {
            const auto& job = jobs[j];
            const auto& work = *job.work;
            advance({at, work.use->first}, states);
            at = work.use->first;
            // What takes longer is waited for first, so that the time of each is known.
            if (running && !ahead_->is_ready()) finish_running();
            shows |= !attempt(pair_of(work, job.change), [&] {
                // A device goes on with the last change while it is given the weight of this one.
                auto trial = make_trial(r, job, take_quantized());
                finish_running();
                if (job.what != Job::What::whole && with_product.empty()) with_product = with_products(work, states);
                replay(*trial, job.what == Job::What::whole ? states : with_product, at_end);
                running = std::move(trial);
            });
            const bool last = j + 1 == jobs.size() || jobs[j + 1].work != job.work;
            if (last || engine_.is_host() || !engine_.memory_plan().resident) finish_running();
            if (!last) continue;
            if (work.local && !shows && !work.shows) measure_all_in_full(r, work, states, at_end, entering);
            shows = false;
            scaling_ = {};
            with_product.clear();
        }
    }

    /// A change that reaches the head by another way than the block's output is measured in full.
    void measure_all_in_full(std::size_t r, const Work& work, const States& states, const States& at_end,
                             std::vector<Variant>& entering) {
        for (const auto type : work.plan->types) {
            const auto planned = std::ranges::find(work.changes, type, &Change::type);
            if (planned != work.changes.end() && !planned->full.empty()) continue;
            Job in_full;
            in_full.work = &work;
            in_full.change.type = type;
            in_full.change.full =
                missing(work.plan->name, type, Tier::full, work.plan->anchor_windows(windows_.size()));
            if (in_full.change.full.empty()) continue;
            attempt(pair_of(work, in_full.change), [&] {
                expect(work, in_full.change);
                auto data = quantized(work.plan->name, type);
                auto whole = make_trial(r, in_full, std::move(data));
                replay(*whole, states, at_end);
                finish(*whole, entering);
            });
        }
    }

    /// States in front of a weight's product, and with them what it gives.
    States with_products(const Work& work, const States& states) {
        const auto start = Clock::now();
        const int node = work.use->first;
        const auto product = engine_.slice(node, node + 1);
        States result = states;
        for (std::size_t w = 0; w < windows_.size(); ++w) {
            progress_.check();
            product->run(windows_[w].inputs, states[w]);
            result[w].values[node] = product->live_out(states[w]).values.at(node);
        }
        engine_.wait();
        account(CostLedger::Work::source, node, node + 1, windows_.size(), seconds_since(start), 0);
        return result;
    }

    /// One change on its way to the end of a range, in full also as a variant on its way to the head.
    struct Trial {
        const Work* work = nullptr;
        Change change;
        Job::What what = Job::What::whole;
        SweepRange nodes;
        Quantized data;
        ChangeProbe probe;
        std::unique_ptr<Slice> slice;
        Variant variant;
        std::vector<std::size_t> windows;
        std::vector<std::vector<Value>> tails;  // by window, of local changes
        double seconds = 0.0;
    };

    std::unique_ptr<Trial> make_trial(std::size_t r, const Job& job, Quantized data) {
        const auto start = Clock::now();
        const auto& work = *job.work;
        const auto& change = job.change;
        account_quantizing(job, data.seconds);
        auto trial = std::make_unique<Trial>(Trial{&work,
                                                   change,
                                                   job.what,
                                                   {work.use->first, ranges_[r].end},
                                                   std::move(data),
                                                   ChangeProbe(topology_),
                                                   nullptr,
                                                   new_variant(work, change.type),
                                                   {},
                                                   {},
                                                   0.0});
        Slice::Options options;
        options.substitutes = {{work.plan->name, {change.type.type, trial->data.bytes, job.rows()}}};
        options.unchanged_rows_given = job.what != Job::What::whole;
        trial->variant.rows = job.rows();
        if (work.local)
            options.tail = [&trial = *trial](ggml_context* context, const Slice::Clone& clone) {
                return trial.probe.append(trial.nodes.end, context, clone);
            };
        trial->slice = engine_.slice(trial->nodes.begin, trial->nodes.end, options);
        trial->seconds = seconds_since(start);
        return trial;
    }

    /// Replays a trial; a device may still be at it when this returns.
    void replay(Trial& trial, const States& at_first_use, const States& at_end) {
        const auto start = Clock::now();
        for (std::size_t w = 0; w < windows_.size(); ++w) {
            const bool goes_on = trial.change.full.has(w);
            if (!trial.change.fast.has(w) && !goes_on) continue;
            progress_.check();
            trial.slice->run(windows_[w].inputs, at_first_use[w], trial.probe.inputs(at_end[w]));
            trial.windows.push_back(w);
            if (trial.work->local) trial.tails.push_back(trial.slice->keep_tail());
            if (!goes_on) continue;
            trial.variant.windows.push_back(w);
            trial.variant.states.push_back(trial.slice->live_out(at_first_use[w]));
            trial.variant.held_bytes += size_bytes(trial.variant.states.back());
        }
        trial.seconds += seconds_since(start);
    }

    /// Records what a trial gave. Returns whether the change shows in the range's output.
    bool finish(Trial& trial, std::vector<Variant>& entering) {
        const auto start = Clock::now();
        const auto& work = *trial.work;
        const auto& change = trial.change;
        auto& variant = trial.variant;
        Measurement fast = blank(work.plan->name, change.type, Tier::fast);
        const int first = burn_in(engine_.n_tokens());
        bool shows = !work.local;
        for (std::size_t i = 0; i < trial.tails.size(); ++i) {
            const double energy = trial.probe.relative_energy(trial.tails[i], first);
            const auto count = static_cast<double>(engine_.n_tokens() - 1 - first);
            shows |= energy > 0.0;
            if (change.fast.has(trial.windows[i])) {
                fast.local_energy.push_back(to_whole(trial, trial.windows[i], energy));
                fast.local_counts.push_back(count);
            }
            if (change.full.has(trial.windows[i])) {
                variant.measurement.local_energy.push_back(energy);
                variant.measurement.local_counts.push_back(count);
            }
        }
        trial.slice.reset();
        trial.seconds += seconds_since(start);
        account(CostLedger::Work::change, trial.nodes.begin, trial.nodes.end, trial.windows.size(), trial.seconds);
        fast.wall_s = variant.measurement.wall_s = trial.data.seconds + trial.seconds;
        // What of the full figure is there is the energy on its windows.
        auto wrong = why_wrong(fast);
        if (wrong.empty()) wrong = why_wrong(variant.measurement);
        if (!wrong.empty()) {
            second_look_.set_aside(pair_of(work, change), wrong);
            shows = true;
        } else if (!change.fast.empty() && trial.what != Job::What::sampled_anchor) {
            keep(fast);
            ++summary_.fast_measured;
            // A sample's figure is not what measuring the whole once more would give.
            if (trial.what == Job::What::whole) second_look_.note(pair_of(work, change));
        }
        if (!change.full.empty() && wrong.empty()) {
            if (work.use->last >= trial.nodes.end) {
                variant.weight = std::move(trial.data.bytes);
                variant.held_bytes += variant.weight.size();
            }
            entering.push_back(std::move(variant));
        }
        done(fmt::format("{} {}", work.plan->name, type_name(change.type)));
        return shows;
    }

    /// The energy of a change of all rows. Of anchors it is noted what all rows and what the sampled ones do.
    double to_whole(const Trial& trial, std::size_t window, double energy) {
        const auto& work = *trial.work;
        const auto& type = trial.change.type;
        switch (trial.what) {
            case Job::What::whole:
                if (work.is_anchor(type)) scaling_.add_whole(type, window, energy);
                return energy;
            case Job::What::sampled_anchor: {
                scaling_.add_sampled(type, window, energy);
                // Measured whole by an earlier run, or a moment ago.
                const auto known = figures_.find(work.plan->name, type_name(type), Tier::fast);
                if (known && window < known->windows()) scaling_.add_whole(type, window, known->local_energy[window]);
                return energy;
            }
            case Job::What::sampled:
                break;
        }
        const auto n_rows = topology_.graph().tensors[static_cast<std::size_t>(work.use->first)].shape[0];
        return scaling_.to_whole(type, window, energy,
                                 static_cast<double>(n_rows) / static_cast<double>(work.rows.size()));
    }

    /// Scores variants that have arrived at the head and records them. Scoring many against one computation of the
    /// reference's logits saves most of the reference's cost.
    void score(std::vector<Variant>& variants) {
        for (std::size_t begin = 0; begin < variants.size();) {
            // Changed heads lie in memory together, so there must not be too many of them.
            std::size_t end = begin, bytes = 0;
            while (end < variants.size() && bytes < head_group_bytes) bytes += variants[end++].weight.size();
            score_or_set_aside(std::span(variants).subspan(begin, end - begin));
            begin = end;
        }
        engine_.finish_scoring();
        variants.clear();
    }

    /// Where scoring several together fails, it is found out whose fault it is.
    void score_or_set_aside(std::span<Variant> variants) {
        try {
            score(variants);
        } catch (const FigureError& error) {
            engine_.wait();
            for (auto& variant : variants) second_look_.set_aside(variant.pair(), error.what());
        }
    }

    void score(std::span<Variant> variants) {
        const auto start = Clock::now();
        const int head_cut = topology_.head_cut();
        std::vector<std::unique_ptr<ReplayEngine::Head>> changed(variants.size());
        for (std::size_t v = 0; v < variants.size(); ++v)
            if (!variants[v].weight.empty() && topology_.weights().at(variants[v].measurement.tensor).last >= head_cut)
                changed[v] = engine_.make_head(variants[v].substitutes());
        std::size_t heads = 0, scored = 0;
        for (std::size_t w = 0; w < windows_.size(); ++w) {
            bool referenced = false;
            std::vector<std::pair<std::size_t, ReplayEngine::PendingScore>> pending;
            for (std::size_t v = 0; v < variants.size(); ++v) {
                auto& variant = variants[v];
                const auto found = std::ranges::find(variant.windows, w);
                if (found == variant.windows.end()) continue;
                progress_.check();
                if (!std::exchange(referenced, true)) {
                    engine_.set_reference(windows_[w], source_.at_head[w]);
                    ++heads;
                }
                const auto& state = variant.states[static_cast<std::size_t>(found - variant.windows.begin())];
                auto& head = changed[v] ? *changed[v] : engine_.plain_head();
                pending.emplace_back(v, engine_.begin_score(head, windows_[w], state));
                ++heads;
                ++scored;
            }
            for (const auto& [v, score] : pending) add_score(engine_.finish_score(score), variants[v].measurement);
        }
        account(CostLedger::Work::score, head_cut, topology_.n_nodes(), heads, seconds_since(start), scored);
        const double seconds = seconds_since(start) / static_cast<double>(variants.size());
        for (auto& variant : variants) {
            variant.measurement.wall_s += seconds;
            if (auto wrong = why_wrong(variant.measurement); !wrong.empty()) {
                second_look_.set_aside(variant.pair(), std::move(wrong));
                continue;
            }
            keep(variant.measurement);
            ++summary_.full_measured;
        }
        done(variants.front().measurement.tensor);
    }

    static constexpr std::size_t head_group_bytes = std::size_t{64} << 20;

    ReplayEngine& engine_;
    const Topology& topology_;
    const SweepMap map_;
    const std::vector<SweepRange>& ranges_;
    std::span<const TensorPlan> plan_;
    std::span<const Window> all_windows_;
    std::span<const Window> windows_;
    const Quantizer& quantize_;
    const SweepOptions& options_;
    FigureStore& figures_;
    Progress& progress_;
    SourceStates& source_;
    SecondLook second_look_;
    std::vector<std::unique_ptr<Slice>> plain_;  // by range, made when first asked for
    std::vector<std::vector<Work>> work_;        // by the range that first reads the tensor; the last one is the head's
    std::vector<std::vector<Job>> jobs_;         // likewise
    RowScaling scaling_;                         // of the tensor being measured
    std::size_t needed_windows_ = 0;             // the first so many of those given
    SweepCosts costs_;
    SweepEstimate estimate_;
    Clock::time_point started_;
    double worst_kld_ = 0.0;  // of the full figures recorded in this run
    std::string worst_;       // as progress shows it
    SweepSummary summary_;
    std::unique_ptr<QuantizeAhead> ahead_;  // reads what stands above
};

}  // namespace

SweepSummary run_sweep(ReplayEngine& engine, std::span<const Window> windows, std::span<const TensorPlan> plan,
                       const Quantizer& quantize, Journal& journal, Progress& progress, const SweepOptions& options,
                       const Rates& rates) {
    JournalFigures figures(journal);
    SourceStates states;
    return Sweep(engine, windows, plan, quantize, options, figures, progress, states, rates).run();
}

SweepEstimate estimate_sweep(ReplayEngine& engine, std::size_t n_windows, std::span<const TensorPlan> plan,
                             FigureStore& figures, const SweepOptions& options, const Rates& rates) {
    NoProgress progress;
    SourceStates states;
    const Quantizer none;
    const std::vector<Window> windows(n_windows);
    return Sweep(engine, windows, plan, none, options, figures, progress, states, rates).estimate();
}

void add(SweepSummary& sum, const SweepSummary& part) {
    sum.fast_measured += part.fast_measured;
    sum.full_measured += part.full_measured;
    sum.resumed += part.resumed;
    sum.unusable += part.unusable;
    sum.tokens += part.tokens;
    sum.unmeasured.insert(sum.unmeasured.end(), part.unmeasured.begin(), part.unmeasured.end());
    sum.replay_flops += part.replay_flops;
    sum.replay_s += part.replay_s;
    sum.quantize_s += part.quantize_s;
    sum.waiting_s += part.waiting_s;
}

SweepWorker::SweepWorker(ReplayEngine& engine, std::span<const Window> windows, Quantizer quantize,
                         const Neighbours& neighbours, SweepOptions options)
    : engine_(&engine),
      windows_(windows),
      quantize_(std::move(quantize)),
      options_(std::move(options)),
      states_(std::make_unique<SourceStates>()) {
    states_->kept = true;
    states_->shared = SharedStates::open(neighbours, engine.topology(), SweepMap(engine.topology()), windows.size());
}

SweepWorker::~SweepWorker() = default;

void SweepWorker::share_states(Progress& progress) {
    HeldFigures none;
    Sweep(*engine_, windows_, {}, quantize_, options_, none, progress, *states_, {}).share();
}

SweepSummary SweepWorker::measure(std::span<const TensorPlan> plan, FigureStore& figures, Progress& progress) {
    return Sweep(*engine_, windows_, plan, quantize_, options_, figures, progress, *states_, {}).run();
}

}  // namespace cerebellum
