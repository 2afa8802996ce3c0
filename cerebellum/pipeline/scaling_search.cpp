#include "cerebellum/pipeline/scaling_search.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <span>

#include "cerebellum/core/error.h"
#include "cerebellum/core/stats.h"
#include "cerebellum/quantize/quantize_tensor.h"
#include "cerebellum/quantize/scale_rows.h"
#include "cerebellum/replay/change_probe.h"
#include "cerebellum/replay/scalable_channels.h"

namespace cerebellum {

namespace {

constexpr std::array powers = {0.25, 0.5, 0.75, 1.0};
constexpr double largest_exponent = 8.0;

/// log2 of the channels' root mean squares, less their mean; empty where nothing is known of them.
std::vector<double> log_sizes(const Imatrix& imatrix, const ScalableChannels& place) {
    const auto n = static_cast<std::size_t>(place.n_channels);
    for (const auto& reader : place.readers) {
        const auto found = imatrix.entries.find(reader);
        if (found == imatrix.entries.end()) continue;
        std::vector<double> sums(n);
        for (std::size_t i = 0; i < found->second.in_sum2.size(); ++i)
            sums[i % n] += static_cast<double>(found->second.in_sum2[i]);
        double least = 0.0;
        for (const double sum : sums)
            if (sum > 0.0 && (least == 0.0 || sum < least)) least = sum;
        if (least == 0.0) return {};
        double mean = 0.0;
        for (auto& sum : sums) mean += (sum = 0.5 * std::log2(std::max(sum, least))) / static_cast<double>(n);
        for (auto& sum : sums) sum -= mean;
        return sums;
    }
    return {};
}

std::vector<std::int8_t> exponents_of(std::span<const double> log_sizes, double power) {
    std::vector<std::int8_t> exponents;
    for (const double size : log_sizes)
        exponents.push_back(
            static_cast<std::int8_t>(std::clamp(std::round(power * size), -largest_exponent, largest_exponent)));
    return exponents;
}

class Search {
  public:
    Search(Session& session, Progress& progress)
        : session_(session), engine_(session.engine()), imatrix_(session.imatrix()), progress_(progress) {
        windows_ = session.prepare(session.measured_windows());
    }

    ScalingSearch run() {
        const auto& topology = engine_.topology();
        const auto places = find_scalable_channels(topology);
        std::vector<LiveState> states(windows_.size());
        int at = 0;
        progress_.begin("searching scales", static_cast<double>(places.size()));
        double done = 0.0;
        for (const auto& layer : topology.layers()) {
            advance(at, layer.begin, states);
            auto at_end = states;
            advance(layer.begin, layer.end, at_end);
            for (const auto& place : places) {
                if (place.first < layer.begin || place.last >= layer.end) continue;
                progress_.check();
                progress_.advance(++done, place.producer);
                if (const auto sizes = log_sizes(imatrix_, place); !sizes.empty())
                    search(layer, place, sizes, states, at_end);
            }
            at = layer.end;
            states = std::move(at_end);
        }
        progress_.end();
        return std::move(result_);
    }

  private:
    /// log of the change of the block's output, by window.
    using Changes = std::vector<double>;

    void advance(int begin, int end, std::vector<LiveState>& states) {
        if (begin >= end) return;
        const auto slice = engine_.slice(begin, end);
        for (std::size_t w = 0; w < windows_.size(); ++w) {
            slice->run(windows_[w].inputs, states[w]);
            states[w] = slice->live_out(states[w]);
        }
    }

    /// The types that the readers are quantized in, which all of them can have.
    std::vector<ggml_type> types_of(const ScalableChannels& place) const {
        std::vector<ggml_type> common;
        for (std::size_t r = 0; r < place.readers.size(); ++r) {
            const auto* tensor = session_.source().find(place.readers[r]);
            const auto types = admissible_types(*tensor, session_.options().types,
                                                imatrix_.entries.contains(place.readers[r]));
            if (r == 0)
                common = types;
            else
                std::erase_if(common, [&](ggml_type type) { return std::ranges::find(types, type) == types.end(); });
        }
        return choose_anchors(common);
    }

    std::vector<std::byte> scaled(const std::string& name, const TensorScaling& scaling) const {
        const auto* tensor = session_.source().find(name);
        const auto data = session_.source().data(*tensor);
        std::vector<std::byte> bytes(data.begin(), data.end());
        scale_rows(*tensor, scaling, 0, bytes);
        return bytes;
    }

    Changes measure(const LayerSpan& layer, const ChannelScaling& scaling, ggml_type type,
                    const std::vector<LiveState>& states, const std::vector<LiveState>& at_end) {
        const auto by_tensor = scaling_by_tensor({&scaling, 1});
        const auto moments = session_.moments();
        FeedbackRounder rounder(scaled_moments(moments, by_tensor), session_.threads());
        std::map<std::string, std::vector<std::byte>> data;
        Slice::Options options;
        for (const auto& [name, what] : by_tensor) {
            const auto* tensor = session_.source().find(name);
            auto& bytes = data[name] = scaled(name, what);
            auto stored = tensor->type;
            if (!what.inputs.empty()) {
                auto weights = quantization_weights(&imatrix_, *tensor);
                scale_importance(what.inputs, weights);
                auto quantized = quantize_tensor(*tensor, bytes, type, weights, session_.threads());
                if (session_.rounding() != RoundingChoice::ggml && session_.rounds_with_feedback(*tensor, type))
                    rounder.improve_rows(*tensor, bytes, type, 0, quantized);
                bytes = std::move(quantized);
                stored = type;
            }
            options.substitutes[name] = {stored, bytes};
        }
        ChangeProbe probe(engine_.topology());
        options.tail = [&](ggml_context* context, const Slice::Clone& clone) {
            return probe.append(layer.end, context, clone);
        };
        const auto slice = engine_.slice(layer.begin, layer.end, options);
        Changes changes;
        for (std::size_t w = 0; w < windows_.size(); ++w) {
            slice->run(windows_[w].inputs, states[w], probe.inputs(at_end[w]));
            changes.push_back(std::log(probe.relative_energy(*slice, burn_in(engine_.n_tokens()))));
        }
        return changes;
    }

    void search(const LayerSpan& layer, const ScalableChannels& place, std::span<const double> sizes,
                const std::vector<LiveState>& states, const std::vector<LiveState>& at_end) {
        const auto types = types_of(place);
        if (types.empty()) return;
        ScalingFinding finding{place.producer, place.readers};
        ChannelScaling scaling{place.producer, place.offsets, place.readers, {}};
        std::vector<Changes> unscaled;
        scaling.exponents.assign(sizes.size(), 0);
        for (const auto type : types) unscaled.push_back(measure(layer, scaling, type, states, at_end));
        ChannelScaling best;
        double best_ratio = 0.0;
        std::vector<double> best_rest;
        for (const double power : powers) {
            scaling.exponents = exponents_of(sizes, power);
            if (std::ranges::all_of(scaling.exponents, [](std::int8_t e) { return e == 0; })) continue;
            std::vector<double> ratios(windows_.size());  // logarithms, mean over types
            for (std::size_t t = 0; t < types.size(); ++t) {
                const auto changes = measure(layer, scaling, types[t], states, at_end);
                for (std::size_t w = 0; w < ratios.size(); ++w)
                    ratios[w] += (changes[w] - unscaled[t][w]) / static_cast<double>(types.size());
            }
            // Windows are chosen and judged on alternately.
            std::vector<double> choosing, judging;
            for (std::size_t w = 0; w < ratios.size(); ++w) (w % 2 == 0 ? choosing : judging).push_back(ratios[w]);
            const double ratio = mean(choosing);
            if (!(ratio < best_ratio)) continue;
            best_ratio = ratio;
            best = scaling;
            best_rest = judging;
            finding.power = power;
        }
        if (finding.power > 0.0) {
            const std::vector<double> ones(best_rest.size(), 1.0);
            const auto judged = clustered_mean(best_rest, ones);
            finding.chosen_ratio = std::exp(best_ratio);
            finding.judged_ratio = std::exp(judged.mean);
            finding.judged_error = judged.error;
            if (judged.mean + judged.error < 0.0)
                result_.scalings.push_back(std::move(best));
            else
                finding.power = 0.0;
        }
        result_.findings.push_back(std::move(finding));
    }

    static double mean(std::span<const double> values) {
        double sum = 0.0;
        for (const double value : values) sum += value;
        return sum / static_cast<double>(values.size());
    }

    Session& session_;
    ReplayEngine& engine_;
    const Imatrix& imatrix_;
    Progress& progress_;
    std::vector<Window> windows_;
    ScalingSearch result_;
};

}  // namespace

ScalingSearch search_scaling(Session& session, Progress& progress) {
    if (!session.replays())
        throw UsageError("scales are searched by replaying the model, which was not possible or not wanted");
    if (session.measured_windows().size() < 4)
        throw UsageError("scales are searched and judged on four windows at least; raise --tokens or lower --ctx");
    return Search(session, progress).run();
}

}  // namespace cerebellum
