#include "cerebellum/predict/classes.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "cerebellum/core/encoding.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/core/visible_text.h"

namespace cerebellum {

namespace {

ggml_type type_of(const Measurement& m) {
    const auto type = parse_encoding(m.type);
    if (!type) throw Error(fmt::format("the figures of {} name an unknown type: {}", m.tensor, m.type));
    return type->type;
}

/// The row of each tensor that it is judged by.
std::map<std::string, const Measurement*> crushed(std::span<const Measurement> measurements, double bits) {
    const auto distance = [&](const Measurement& m) { return std::fabs(std::log(bits_per_weight(type_of(m)) / bits)); };
    std::map<std::string, const Measurement*> rows;
    for (const auto& m : measurements) {
        if (m.tier != Tier::full || m.delta_nll.empty()) continue;
        auto& row = rows[m.tensor];
        if (row == nullptr || distance(m) < distance(*row)) row = &m;
    }
    return rows;
}

struct Excess {
    Estimate value, share, excess;
    std::vector<double> by_window;
};

/// A quantity of one tensor, what would be its share of the whole model's, and the difference, window by window.
Excess excess_over_share(std::span<const double> values, std::span<const double> whole, double share,
                         std::span<const double> counts) {
    std::vector<double> fair, by_window;
    for (std::size_t w = 0; w < whole.size(); ++w) {
        fair.push_back(share * whole[w]);
        by_window.push_back((values[w] - fair[w]) / counts[w]);
    }
    return {clustered_mean(values, counts), clustered_mean(fair, counts), paired_difference(values, fair, counts),
            std::move(by_window)};
}

/// p-values of one side: shown in both quantities (an intersection-union test: Berger, 1982), by the t test and without
/// its assumption of normality.
std::vector<double> shown_in_both(std::span<const Excess> kld, std::span<const Excess> nll, double sign) {
    std::vector<double> p;
    std::vector<std::vector<double>> kld_rows, nll_rows;
    const auto signed_row = [&](const Excess& excess) {
        auto row = excess.by_window;
        for (auto& value : row) value *= sign;
        return row;
    };
    const auto one_sided = [&](const Excess& excess) {
        return sign > 0.0 ? p_greater(excess.excess) : p_less(excess.excess);
    };
    for (std::size_t i = 0; i < kld.size(); ++i) {
        p.push_back(std::max(one_sided(kld[i]), one_sided(nll[i])));
        kld_rows.push_back(signed_row(kld[i]));
        nll_rows.push_back(signed_row(nll[i]));
    }
    p = adjust_holm(p);
    const auto kld_p = adjust_by_sign_flips(kld_rows), nll_p = adjust_by_sign_flips(nll_rows);
    for (std::size_t i = 0; i < p.size(); ++i) p[i] = std::max({p[i], kld_p[i], nll_p[i]});
    return p;
}

}  // namespace

std::string_view sensitivity_name(Sensitivity sensitivity) {
    switch (sensitivity) {
        case Sensitivity::sacred:
            return "sacred";
        case Sensitivity::sensitive:
            return "sensitive";
        case Sensitivity::safe:
            return "safe";
        case Sensitivity::demotable:
            return "demotable";
    }
    return "";
}

BytesSaved bytes_saved_of(std::span<const TensorInfo> tensors) {
    std::map<std::string, TensorInfo> by_name;
    for (const auto& tensor : tensors) by_name[tensor.name] = tensor;
    return [by_name = std::move(by_name)](const std::string& name, ggml_type type) {
        const auto found = by_name.find(name);
        if (found == by_name.end())
            throw Error(fmt::format("the journal has figures of {}, which its model does not have; measure again",
                                    visible(name)));
        const auto& tensor = found->second;
        return static_cast<double>(tensor.size_bytes) -
               static_cast<double>(type_size_bytes(type, tensor.row_length(), tensor.n_rows()));
    };
}

std::map<std::string, Classification> classify(std::span<const Measurement> measurements, const BytesSaved& bytes_saved,
                                               const ClassOptions& options) {
    const auto rows = crushed(measurements, options.crushed_bits);
    std::map<std::string, Classification> classes;
    if (rows.empty()) return classes;
    auto windows = rows.begin()->second->windows();
    for (const auto& [name, row] : rows) windows = std::min(windows, row->windows());
    std::vector<double> whole_kld(windows), whole_nll(windows);
    double whole_bytes = 0.0;
    for (const auto& [name, row] : rows) {
        for (std::size_t w = 0; w < windows; ++w) {
            whole_kld[w] += row->kld[w];
            whole_nll[w] += row->delta_nll[w];
        }
        auto& tensor = classes[name];
        tensor.type = row->type;
        tensor.windows = windows;
        tensor.bytes_saved = bytes_saved(name, type_of(*row));
        whole_bytes += tensor.bytes_saved;
    }
    std::vector<Excess> kld, nll;
    std::vector<double> below, above;
    for (auto& [name, tensor] : classes) {
        const auto& row = *rows.at(name);
        const auto first = [&](const std::vector<double>& all) { return std::span(all).first(windows); };
        const double share = tensor.bytes_saved / whole_bytes;
        kld.push_back(excess_over_share(first(row.kld), whole_kld, share, first(row.counts)));
        nll.push_back(excess_over_share(first(row.delta_nll), whole_nll, share, first(row.counts)));
        tensor.kld = kld.back().value;
        tensor.kld_share = kld.back().share;
        tensor.kld_excess = kld.back().excess;
        tensor.delta_nll = nll.back().value;
        tensor.delta_nll_share = nll.back().share;
        tensor.delta_nll_excess = nll.back().excess;
        above.push_back(p_greater(kld.back().excess));
        below.push_back(p_less(kld.back().excess));
    }
    const auto sacred = shown_in_both(kld, nll, 1.0), demotable = shown_in_both(kld, nll, -1.0);
    above = adjust_benjamini_hochberg(above);
    below = adjust_benjamini_hochberg(below);
    std::size_t i = 0;
    for (auto& [name, tensor] : classes) {
        tensor.p_sacred = sacred[i];
        tensor.p_demotable = demotable[i];
        tensor.q_above = above[i];
        tensor.q_safe = below[i];
        if (tensor.p_sacred <= options.level)
            tensor.sensitivity = Sensitivity::sacred;
        else if (tensor.p_demotable <= options.level)
            tensor.sensitivity = Sensitivity::demotable;
        else if (tensor.q_safe <= options.level)
            tensor.sensitivity = Sensitivity::safe;
        ++i;
    }
    return classes;
}

}  // namespace cerebellum
