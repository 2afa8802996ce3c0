#include <fmt/format.h>
#include <fnmatch.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <nlohmann/json.hpp>

#include "cerebellum/cli/commands.h"
#include "cerebellum/cli/options.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/pipeline/session.h"
#include "cerebellum/predict/classes.h"
#include "cerebellum/predict/curve.h"
#include "cerebellum/report/table.h"

namespace cerebellum::cli {

namespace {

struct Evidence {
    TensorInfo tensor;
    Curve curve;
    std::optional<Classification> classification;
    std::map<std::string, const Measurement*> fast, full;
    std::map<std::string, std::string> unusable;  // why, by type
};

nlohmann::json number(double value) {
    return std::isfinite(value) ? nlohmann::json(value) : nlohmann::json();
}

nlohmann::json to_json(const Estimate& estimate) {
    return {{"mean", number(estimate.mean)}, {"error", number(estimate.error)}, {"dof", number(estimate.dof)}};
}

std::size_t windows_of(const Evidence& evidence, const Damage& damage) {
    const auto& rows = damage.tier == Tier::full ? evidence.full : evidence.fast;
    return rows.at(damage.type)->windows();
}

nlohmann::json to_json(const Evidence& evidence) {
    nlohmann::json result = {
        {"tensor", evidence.tensor.name},
        {"source_type", type_name(evidence.tensor.type)},
        {"shape", std::vector<std::int64_t>(evidence.tensor.shape.begin(),
                                            evidence.tensor.shape.begin() + evidence.tensor.n_dims)}};
    auto& points = result["curve"] = nlohmann::json::array();
    for (const auto& point : evidence.curve.points) {
        nlohmann::json row = {{"type", point.damage.type},
                              {"bits", point.bits},
                              {"tier", tier_name(point.damage.tier)},
                              {"windows", windows_of(evidence, point.damage)},
                              {"kld", point.damage.kld},
                              {"kld_error", number(point.damage.error)},
                              {"curve_kld", point.kld},
                              {"band_95", {number(point.band.lower), number(point.band.upper)}},
                              {"on_curve", point.on_curve}};
        if (const auto m = evidence.full.find(point.damage.type); m != evidence.full.end()) {
            row["delta_nll"] = to_json(clustered_mean(m->second->delta_nll, m->second->counts));
            row["top1_agree"] = to_json(clustered_mean(m->second->top1_agree, m->second->counts));
        }
        points.push_back(std::move(row));
    }
    result["unusable"] = evidence.unusable;
    if (const auto& c = evidence.classification)
        result["class"] = {{"name", sensitivity_name(c->sensitivity)},
                           {"type", c->type},
                           {"windows", c->windows},
                           {"bytes_saved", c->bytes_saved},
                           {"kld", to_json(c->kld)},
                           {"kld_share", to_json(c->kld_share)},
                           {"kld_excess", to_json(c->kld_excess)},
                           {"delta_nll", to_json(c->delta_nll)},
                           {"delta_nll_share", to_json(c->delta_nll_share)},
                           {"delta_nll_excess", to_json(c->delta_nll_excess)},
                           {"p_sacred", c->p_sacred},
                           {"p_demotable", c->p_demotable},
                           {"q_safe", c->q_safe},
                           {"q_above", c->q_above}};
    return result;
}

std::string describe(const Estimate& estimate) {
    const auto interval = confidence_interval(estimate);
    return std::isfinite(interval.lower)
               ? fmt::format("{:.3e} [{:.3e}, {:.3e}]", estimate.mean, interval.lower, interval.upper)
               : fmt::format("{:.3e} [error not known]", estimate.mean);
}

std::string reason_of(const Classification& c) {
    switch (c.sensitivity) {
        case Sensitivity::sacred:
            return fmt::format("KLD and ΔNLL are above its share (p = {:.2g}, of one such error in the model)",
                               c.p_sacred);
        case Sensitivity::demotable:
            return fmt::format("KLD and ΔNLL are below its share (p = {:.2g}, of one such error in the model)",
                               c.p_demotable);
        case Sensitivity::safe:
            return fmt::format("KLD is below its share (q = {:.2g}, Benjamini-Hochberg)", c.q_safe);
        case Sensitivity::sensitive:
            break;
    }
    return c.q_above <= ClassOptions{}.level
               ? fmt::format(
                     "KLD is above its share (q = {:.2g}, Benjamini-Hochberg), which is not confirmed (p = {:.2g})",
                     c.q_above, c.p_sacred)
               : fmt::format(
                     "{} windows do not show on which side of its share it lies (q = {:.2g} above, {:.2g} below)",
                     c.windows, c.q_above, c.q_safe);
}

std::string describe(const Evidence& evidence) {
    std::string text = fmt::format("{}: {}, {} weights", evidence.tensor.name, type_name(evidence.tensor.type),
                                   evidence.tensor.n_weights());
    if (const auto& c = evidence.classification) {
        text += fmt::format(", {}\n  {}\n", sensitivity_name(c->sensitivity), reason_of(*c));
        text += fmt::format("  crushed to {}, on {} windows; mean and 95 % interval, nats per token:\n", c->type,
                            c->windows);
        text += fmt::format("    KLD   {}\n    share {}\n    ΔNLL  {}\n    share {}\n\n", describe(c->kld),
                            describe(c->kld_share), describe(c->delta_nll), describe(c->delta_nll_share));
    } else {
        text += "\n  no class: it has no full figure with ΔNLL\n\n";
    }
    std::vector<std::vector<std::string>> rows;
    for (const auto& point : evidence.curve.points)
        rows.push_back({point.damage.type, fmt::format("{:.2f}", point.bits), std::string(tier_name(point.damage.tier)),
                        std::to_string(windows_of(evidence, point.damage)),
                        with_error(fmt::format("{:.3e}", point.damage.kld), point.damage.error, "{:.1e}"),
                        point.on_curve ? fmt::format("{:.3e}", point.kld) : "above it",
                        fmt::format("{:.2e} to {:.2e}", point.band.lower, point.band.upper)});
    text += format_table({"type", "bits", "tier", "windows", "KLD", "curve", "95 %"}, rows);
    for (const auto& [type, why] : evidence.unusable) text += fmt::format("{} is left out: {}\n", type, why);
    return text;
}

std::vector<Evidence> gather(const Journal& journal, const std::vector<Measurement>& measurements,
                             const std::vector<std::string>& globs, double bits) {
    const auto tensors = tensors_from_journal(journal);
    std::map<std::string, const TensorInfo*> by_name;
    for (const auto& tensor : tensors) by_name[tensor.name] = &tensor;
    auto curves = fit_curves(measurements);
    for (const auto& [name, curve] : curves)
        if (!by_name.contains(name))
            throw Error(
                fmt::format("{} has figures of {}, which its model does not have", journal.path().string(), name));
    ClassOptions options;
    options.crushed_bits = bits;
    const auto classes = classify(measurements, bytes_saved_of(tensors), options);
    auto unusable = journal.unusable();
    std::ranges::move(journal.not_numbers(), std::back_inserter(unusable));
    std::map<std::string, Evidence> found;
    for (const auto& glob : globs) {
        bool matches = false;
        for (auto& [name, curve] : curves) {
            if (fnmatch(glob.c_str(), name.c_str(), 0) != 0) continue;
            matches = true;
            auto& evidence = found[name];
            evidence.tensor = *by_name.at(name);
            evidence.curve = curve;
            if (const auto known = classes.find(name); known != classes.end()) evidence.classification = known->second;
        }
        for (const auto& figure : unusable) {
            if (fnmatch(glob.c_str(), figure.tensor.c_str(), 0) != 0 || !by_name.contains(figure.tensor)) continue;
            matches = true;
            found[figure.tensor].tensor = *by_name.at(figure.tensor);
        }
        if (!matches)
            throw UsageError(fmt::format("{} has no figures of a tensor called '{}'; '*' shows all that it has",
                                         journal.path().string(), glob));
    }
    for (const auto& m : measurements)
        if (const auto evidence = found.find(m.tensor); evidence != found.end())
            (m.tier == Tier::full ? evidence->second.full : evidence->second.fast)[m.type] = &m;
    for (const auto& figure : unusable)
        if (const auto evidence = found.find(figure.tensor); evidence != found.end())
            evidence->second.unusable[figure.type] = figure.reason;
    std::vector<Evidence> result;
    for (auto& [name, evidence] : found) result.push_back(std::move(evidence));
    return result;
}

}  // namespace

Command add_explain(CLI::App& app) {
    struct Values {
        std::vector<std::string> tensors;
        std::string journal;
        double bits = ClassOptions{}.crushed_bits;
        bool json = false;
    };
    auto values = std::make_shared<Values>();
    auto* command = app.add_subcommand("explain", "Show what is known of a tensor: class, tests, curve, errors");
    command->footer(
        "Example:\n  cerebellum explain 'blk.*.attn_v.weight' --journal model.cerebellum.db\n\n"
        "A tensor is judged crushed to the type, of those measured in full, that is nearest to --bits, against its\n"
        "share: the damage that it would do if every byte that crushing saves in the whole model cost the same.\n"
        "  sacred     KLD and ΔNLL are shown to be above the share; at most a 5 % chance of one such error in the "
        "model\n"
        "  demotable  KLD and ΔNLL are shown to be below it, at the same level\n"
        "  safe       the KLD is shown to be below it; at most 5 % of these expected to be wrong\n"
        "  sensitive  none of these is shown\n"
        "With fewer than five windows nothing can be called sacred or demotable at this level.\n"
        "In the table, a type that is above the curve does more damage than another of no more bits.");
    command->add_option("tensor", values->tensors, "Name or glob, as 'blk.1?.ffn_*'; several are allowed")
        ->required()
        ->type_name("TENSOR");
    command->add_option("--journal", values->journal, "The journal with the measurements")
        ->required()
        ->type_name("FILE");
    command->add_option("--bits", values->bits, "Bits per weight of the type that tensors are judged crushed to")
        ->check(CLI::Range(0.5, 32.0))
        ->capture_default_str();
    command->add_flag("--json", values->json, "Print the result as JSON");
    return [values] {
        const auto journal = Journal::open_existing(values->journal);
        const auto measurements = journal.measurements();
        const auto found = gather(journal, measurements, values->tensors, values->bits);
        if (values->json) {
            auto list = nlohmann::json::array();
            for (const auto& evidence : found) list.push_back(to_json(evidence));
            fmt::print("{}\n", json_to_text(list, 1));
            return 0;
        }
        for (std::size_t i = 0; i < found.size(); ++i) fmt::print("{}{}", i == 0 ? "" : "\n", describe(found[i]));
        return 0;
    };
}

}  // namespace cerebellum::cli
