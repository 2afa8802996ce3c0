#include "cerebellum/predict/damage_table.h"

#include <fmt/format.h>

#include <utility>

#include "cerebellum/core/error.h"

namespace cerebellum {

namespace {

bool same_figure(double a, double b) {
    return a == b || (a != a && b != b);
}

}  // namespace

void check_names(const DamageTable& table, const std::function<bool(const std::string&)>& contains,
                 std::string_view model) {
    for (const auto& row : table.rows)
        if (!contains(row.tensor))
            throw Error(fmt::format("cannot use {}: {} is of the tensor {}, which {} does not have", table.origin,
                                    row.where, row.tensor, model));
}

void check_unique(const DamageTable& table) {
    std::map<std::pair<std::string, std::string>, const DamageRow*> seen;
    for (const auto& row : table.rows) {
        const auto [first, is_new] = seen.emplace(std::pair(row.tensor, row.type), &row);
        if (is_new) continue;
        const auto& other = *first->second;
        const bool same = same_figure(row.kld, other.kld) && same_figure(row.delta_nll, other.delta_nll);
        throw Error(fmt::format("cannot use {}: {} and {} are both of {} in {}{}; remove one", table.origin,
                                other.where, row.where, row.tensor, row.type,
                                same ? "" : " and contradict each other"));
    }
}

}  // namespace cerebellum
