#include "cerebellum/pipeline/scaling_search.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>

#include "cerebellum/core/error.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/core/stats.h"
#include "cerebellum/quantize/quantize_tensor.h"
#include "cerebellum/quantize/scale_rows.h"
#include "cerebellum/replay/change_probe.h"
#include "cerebellum/replay/scalable_channels.h"

namespace cerebellum {

namespace {

/// Of the channels' root mean squares, and of the columns'.
struct Powers {
    double channel, column;
};
constexpr std::array powers = {Powers{0.25, 0.0}, Powers{0.5, 0.0},   Powers{0.75, 0.0}, Powers{1.0, 0.0},
                               Powers{0.0, 0.5},  Powers{0.25, 0.25}, Powers{0.5, 0.5},  Powers{0.0, 1.0}};
constexpr double largest_exponent = 8.0;

/// log2 of the roots of sums, less their mean; what is zero counts as the least that is not. Empty where all are.
std::vector<double> log_sizes(std::vector<double> sums) {
    double least = 0.0;
    for (const double sum : sums)
        if (sum > 0.0 && (least == 0.0 || sum < least)) least = sum;
    if (least == 0.0) return {};
    double mean = 0.0;
    for (auto& sum : sums) mean += (sum = 0.5 * std::log2(std::max(sum, least))) / static_cast<double>(sums.size());
    for (auto& sum : sums) sum -= mean;
    return sums;
}

/// Of the channels; empty where nothing is known of them.
std::vector<double> channel_sizes(const Imatrix& imatrix, const ScalableChannels& place) {
    const auto n = static_cast<std::size_t>(place.n_channels);
    for (const auto& reader : place.readers) {
        const auto found = imatrix.entries.find(reader);
        if (found == imatrix.entries.end()) continue;
        std::vector<double> sums(n);
        for (std::size_t i = 0; i < found->second.in_sum2.size(); ++i)
            sums[i % n] += static_cast<double>(found->second.in_sum2[i]);
        return log_sizes(std::move(sums));
    }
    return {};
}

/// Of the readers' columns.
std::vector<double> column_sizes(const GgufFile& source, const ScalableChannels& place) {
    const auto n = static_cast<std::size_t>(place.n_channels);
    std::vector<double> sums(n);
    std::vector<float> row(n);
    for (const auto& reader : place.readers) {
        const auto& tensor = *source.find(reader);
        const auto data = source.data(tensor);
        const auto row_bytes = ggml_row_size(tensor.type, tensor.row_length());
        for (std::size_t at = 0; at + row_bytes <= data.size(); at += row_bytes) {
            dequantize_rows(tensor.type, data.subspan(at, row_bytes), row);
            for (std::size_t c = 0; c < n; ++c) sums[c] += static_cast<double>(row[c]) * static_cast<double>(row[c]);
        }
    }
    return log_sizes(std::move(sums));
}

std::vector<std::int8_t> exponents_of(std::span<const double> channels, std::span<const double> columns,
                                      const Powers& power) {
    std::vector<std::int8_t> exponents;
    for (std::size_t c = 0; c < channels.size(); ++c)
        exponents.push_back(static_cast<std::int8_t>(std::clamp(
            std::round(power.channel * channels[c] - power.column * columns[c]), -largest_exponent, largest_exponent)));
    return exponents;
}

class ScaleSearch {
  public:
    ScaleSearch(Session& session, Progress& progress)
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
                search(layer, place, states, at_end);
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
            const auto types =
                admissible_types(*tensor, session_.options().types, imatrix_.entries.contains(place.readers[r]));
            if (r == 0)
                common = types;
            else
                std::erase_if(common, [&](ggml_type type) { return std::ranges::find(types, type) == types.end(); });
        }
        return choose_anchors(common);
    }

    using Weights = std::map<std::string, std::vector<std::byte>>;  // bytes by tensor
    using Scalings = std::map<std::string, TensorScaling>;

    /// Every tensor that is scaled; none where one cannot be: F16 numbers may become too large.
    std::optional<Weights> scaled_weights(const Scalings& scalings) const {
        const auto& source = session_.source();
        Weights weights;
        try {
            for (const auto& [name, scaling] : scalings)
                weights[name] = scaled_data(source, *source.find(name), scaling);
        } catch (const Error&) {
            return std::nullopt;
        }
        return weights;
    }

    /// With the readers among the scaled weights quantized.
    Changes measure(const LayerSpan& layer, const Scalings& scalings, const Weights& scaled, ggml_type type,
                    const std::vector<LiveState>& states, const std::vector<LiveState>& at_end) {
        FeedbackRounder rounder(scaled_moments(session_.moments(), scalings), session_.threads());
        Weights quantized;
        Slice::Options options;
        for (const auto& [name, bytes] : scaled) {
            const auto& tensor = *session_.source().find(name);
            const auto& inputs = scalings.at(name).inputs;
            if (inputs.empty()) {
                options.substitutes[name] = {tensor.type, bytes};
                continue;
            }
            auto weights = quantization_weights(&imatrix_, tensor);
            scale_importance(inputs, weights);
            auto& rounded = quantized[name] = quantize_tensor(tensor, bytes, type, weights, session_.threads());
            if (session_.rounding() != RoundingChoice::ggml && session_.rounds_with_feedback(tensor, type))
                rounder.improve_rows(tensor, bytes, type, 0, rounded);
            options.substitutes[name] = {type, rounded};
        }
        ChangeProbe probe(engine_.topology());
        options.tail = [&](ggml_context* context, const Slice::Clone& clone) {
            return probe.append(layer.end, context, clone);
        };
        const auto slice = engine_.slice(layer.begin, layer.end, options);
        Changes changes;
        for (std::size_t w = 0; w < windows_.size(); ++w) {
            slice->run(windows_[w].inputs, states[w], probe.inputs(at_end[w]));
            changes.push_back(std::log(probe.relative_energy(slice->keep_tail(), burn_in(engine_.n_tokens()))));
        }
        return changes;
    }

    void search(const LayerSpan& layer, const ScalableChannels& place, const std::vector<LiveState>& states,
                const std::vector<LiveState>& at_end) {
        const auto types = types_of(place);
        const auto sizes = channel_sizes(imatrix_, place), columns = column_sizes(session_.source(), place);
        if (types.empty() || sizes.empty() || columns.empty()) return;
        ScalingFinding finding{.producer = place.producer, .readers = place.readers};
        ChannelScaling scaling{place.producer, place.offsets, place.readers, {}};
        // By type; empty where the scaling cannot be.
        const auto changes_of = [&](const ChannelScaling& tried) {
            const auto by_tensor = scaling_by_tensor({&tried, 1});
            std::vector<Changes> changes;
            if (const auto weights = scaled_weights(by_tensor))
                for (const auto type : types)
                    changes.push_back(measure(layer, by_tensor, *weights, type, states, at_end));
            return changes;
        };
        scaling.exponents.assign(sizes.size(), 0);
        const auto unscaled = changes_of(scaling);
        if (unscaled.empty()) return;
        ChannelScaling best;
        double best_ratio = 0.0;
        std::vector<double> best_rest;
        for (const auto& power : powers) {
            scaling.exponents = exponents_of(sizes, columns, power);
            if (std::ranges::all_of(scaling.exponents, [](std::int8_t e) { return e == 0; })) continue;
            const auto changes = changes_of(scaling);
            if (changes.empty()) continue;
            std::vector<double> ratios(windows_.size());  // logarithms, mean over types
            for (std::size_t t = 0; t < types.size(); ++t)
                for (std::size_t w = 0; w < ratios.size(); ++w)
                    ratios[w] += (changes[t][w] - unscaled[t][w]) / static_cast<double>(types.size());
            // Windows are chosen and judged on alternately.
            std::vector<double> choosing, judging;
            for (std::size_t w = 0; w < ratios.size(); ++w) (w % 2 == 0 ? choosing : judging).push_back(ratios[w]);
            const double ratio = average(choosing).mean;
            if (!(ratio < best_ratio)) continue;
            best_ratio = ratio;
            best = scaling;
            best_rest = judging;
            finding.channel_power = power.channel;
            finding.column_power = power.column;
        }
        if (!best.exponents.empty()) {
            const auto judged = average(best_rest);
            finding.chosen_ratio = std::exp(best_ratio);
            finding.judged_ratio = std::exp(judged.mean);
            finding.judged_error = judged.error;
            if (judged.mean + judged.error < 0.0)
                result_.scalings.push_back(std::move(best));
            else
                finding.channel_power = finding.column_power = 0.0;
        }
        result_.findings.push_back(std::move(finding));
    }

    /// Over windows.
    static Estimate average(const std::vector<double>& values) {
        return clustered_mean(values, std::vector<double>(values.size(), 1.0));
    }

    Session& session_;
    ReplayEngine& engine_;
    const Imatrix& imatrix_;
    Progress& progress_;
    std::vector<Window> windows_;
    ScalingSearch result_;
};

}  // namespace

nlohmann::json to_json(const ScalingSearch& search) {
    auto scalings = nlohmann::json::array(), findings = nlohmann::json::array();
    for (const auto& scaling : search.scalings) scalings.push_back(to_json(scaling));
    for (const auto& finding : search.findings)
        findings.push_back({{"producer", finding.producer},
                            {"readers", finding.readers},
                            {"channel_power", finding.channel_power},
                            {"column_power", finding.column_power},
                            {"chosen_ratio", finding.chosen_ratio},
                            {"judged_ratio", finding.judged_ratio},
                            {"judged_error", finding.judged_error}});
    return {{"scalings", std::move(scalings)}, {"findings", std::move(findings)}};
}

ScalingSearch scaling_search_from_json(std::string_view text) {
    ScalingSearch search;
    try {
        const auto document = parse_json(text, "the scales in the journal", limits_of_long_json);
        for (const auto& value : document.at("scalings")) search.scalings.push_back(channel_scaling_from_json(value));
        for (const auto& value : document.at("findings")) {
            auto& finding = search.findings.emplace_back();
            value.at("producer").get_to(finding.producer);
            value.at("readers").get_to(finding.readers);
            value.at("channel_power").get_to(finding.channel_power);
            value.at("column_power").get_to(finding.column_power);
            value.at("chosen_ratio").get_to(finding.chosen_ratio);
            value.at("judged_ratio").get_to(finding.judged_ratio);
            value.at("judged_error").get_to(finding.judged_error);
        }
    } catch (const nlohmann::json::exception& error) {
        throw Error(fmt::format("the scales in the journal are damaged: {}", json_problem(error)));
    }
    return search;
}

ScalingSearch search_scaling(Session& session, Progress& progress) {
    if (!session.replays())
        throw UsageError("scales are searched by replaying the model, which was not possible or not wanted");
    if (session.measured_windows().size() < 4)
        throw UsageError("scales are searched and judged on four windows at least; raise --tokens or lower --ctx");
    return ScaleSearch(session, progress).run();
}

}  // namespace cerebellum
