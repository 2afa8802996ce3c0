#include "cerebellum/allocate/constraints.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <functional>
#include <map>
#include <numeric>
#include <set>

#include "cerebellum/core/error.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/core/tensor_name.h"

namespace cerebellum {

namespace {

using Kind = Constraint::Kind;
using List = std::vector<const Constraint*>;

/// Which tensors of a block are coupled by a name: those with the same key; none where it is empty.
std::string coupling_key(const std::string& coupling, const std::string& tensor) {
    const auto block = block_of(tensor);
    if (!block) return "";
    const std::string role = role_of(tensor);
    const auto in_block = [&](std::string_view rest) { return fmt::format("{} {}", *block, rest); };
    if (coupling == "qkv") return role == "attn_q" || role == "attn_k" || role == "attn_v" ? in_block("") : "";
    const auto part_behind = [&](std::string_view prefix) -> std::optional<std::string> {
        if (!role.starts_with(prefix)) return std::nullopt;
        const auto rest = role.substr(prefix.size());
        // "", "_exps", "_shexp", …; ".3" of the third expert in older files; not "_inp" of the router.
        const bool plain = rest.empty() || rest.starts_with('.') || rest.find("exp") != std::string::npos;
        return plain ? std::optional(rest) : std::nullopt;
    };
    if (coupling == "gate-up") {
        for (const char* prefix : {"ffn_gate", "ffn_up"})
            if (const auto rest = part_behind(prefix); rest && !rest->starts_with("_up")) return in_block(*rest);
        return "";
    }
    for (const char* prefix : {"ffn_gate", "ffn_up", "ffn_down"})
        if (const auto rest = part_behind(prefix); rest && (rest->starts_with('.') || rest->ends_with("exps")))
            return in_block("");
    return "";
}

int block_count(const AllocationProblem& problem) {
    int count = 0;
    for (const auto& tensor : problem.tensors) count = std::max(count, block_of(tensor.name).value_or(-1) + 1);
    return count;
}

/// Whether it is about this tensor alone (couplings are not about any tensor alone).
bool concerns(const Constraint& constraint, const std::string& tensor, int n_blocks) {
    switch (constraint.kind) {
        case Kind::pin:
        case Kind::floor:
        case Kind::ceiling:
            return matches_tensor(constraint.glob, tensor);
        case Kind::protect: {
            const auto block = block_of(tensor);
            return block && (*block < constraint.first || *block >= n_blocks - constraint.last);
        }
        case Kind::only_types:
            return true;
        case Kind::couple:
            return false;
    }
    return false;
}

bool allows(const Constraint& constraint, ggml_type type) {
    switch (constraint.kind) {
        case Kind::pin:
            return type == constraint.type;
        case Kind::floor:
        case Kind::protect:
            return bits_per_weight(type) >= bits_per_weight(constraint.type);
        case Kind::ceiling:
            return bits_per_weight(type) <= bits_per_weight(constraint.type);
        case Kind::only_types:
            return std::ranges::find(constraint.types, type) != constraint.types.end();
        case Kind::couple:
            return true;
    }
    return true;
}

/// Sets of tensors that these couplings tie together, larger than one.
std::vector<std::vector<std::size_t>> couplings_of(const AllocationProblem& problem, const List& constraints) {
    std::vector<std::size_t> parent(problem.tensors.size());
    std::iota(parent.begin(), parent.end(), std::size_t{0});
    const auto root = [&](std::size_t i) {
        while (parent[i] != i) i = parent[i] = parent[parent[i]];
        return i;
    };
    const auto join = [&](std::size_t a, std::size_t b) {
        parent[std::max(root(a), root(b))] = std::min(root(a), root(b));
    };
    for (const auto& members : problem.coupled)
        for (const auto member : members) join(members.front(), member);
    for (const auto* constraint : constraints) {
        if (constraint->kind != Kind::couple) continue;
        std::map<std::string, std::size_t> first;
        for (std::size_t i = 0; i < problem.tensors.size(); ++i)
            if (const auto key = coupling_key(constraint->coupling, problem.tensors[i].name); !key.empty())
                join(first.emplace(key, i).first->second, i);
    }
    std::map<std::size_t, std::vector<std::size_t>> members;
    for (std::size_t i = 0; i < problem.tensors.size(); ++i) members[root(i)].push_back(i);
    std::vector<std::vector<std::size_t>> result;
    for (auto& [first, list] : members)
        if (list.size() > 1) result.push_back(std::move(list));
    return result;
}

/// The problem under these constraints; tensors may be left without choices.
AllocationProblem filtered(const AllocationProblem& problem, const List& constraints, int n_blocks) {
    AllocationProblem result = problem;
    for (auto& tensor : result.tensors)
        for (const auto* constraint : constraints)
            if (concerns(*constraint, tensor.name, n_blocks))
                std::erase_if(tensor.choices,
                              [&](const TypeChoice& choice) { return !allows(*constraint, choice.type.type); });
    result.coupled = couplings_of(problem, constraints);
    return result;
}

/// The first group that no common type is left for; empty where there is none such.
std::vector<std::size_t> group_without_type(const AllocationProblem& problem) {
    for (std::size_t i = 0; i < problem.tensors.size(); ++i)
        if (problem.tensors[i].choices.empty()) return {i};
    for (const auto& group : problem.coupled) {
        const auto in_all = [&](const TypeChoice& choice) {
            return std::ranges::all_of(group, [&](std::size_t index) {
                const auto& choices = problem.tensors[index].choices;
                return std::ranges::find(choices, choice.type, &TypeChoice::type) != choices.end();
            });
        };
        if (std::ranges::none_of(problem.tensors[group.front()].choices, in_all)) return group;
    }
    return {};
}

/// Of constraints that cannot be met together, some that still cannot, and can if any one of them is left out.
List smallest_conflict(List constraints, const std::function<bool(const List&)>& can_be_met) {
    for (std::size_t i = 0; i < constraints.size();) {
        List without = constraints;
        without.erase(without.begin() + static_cast<std::ptrdiff_t>(i));
        if (can_be_met(without))
            ++i;
        else
            constraints = std::move(without);
    }
    return constraints;
}

std::string conflict_text(const List& constraints) {
    std::vector<std::string> texts;
    texts.reserve(constraints.size());
    for (const auto* constraint : constraints) texts.push_back(constraint->text);
    return fmt::format("{}", fmt::join(texts, " and "));
}

std::string types_of(const TensorChoices& tensor) {
    std::vector<std::string> names;
    names.reserve(tensor.choices.size());
    for (const auto& choice : tensor.choices) names.push_back(type_name(choice.type));
    return fmt::format("{}", fmt::join(names, ", "));
}

[[noreturn]] void refuse_types(const AllocationProblem& problem, const List& constraints, int n_blocks) {
    const auto met = [&](const List& some) { return group_without_type(filtered(problem, some, n_blocks)).empty(); };
    const auto conflict = smallest_conflict(constraints, met);
    const auto group = group_without_type(filtered(problem, conflict, n_blocks));
    const auto& tensor = problem.tensors[group.front()];
    if (conflict.size() == 1)
        throw Error(
            fmt::format("{} leaves no type for {}, which can be {} (what its rows admit and was measured); name "
                        "one of these, or measure more with 'cerebellum ablate'",
                        conflict.front()->text, tensor.name, types_of(tensor)));
    throw Error(fmt::format("{} leave no type for {} (which can be {}); drop or change one of them",
                            conflict_text(conflict), tensor.name, types_of(tensor)));
}

void check_matches(const AllocationProblem& problem, const Constraint& constraint, int n_blocks) {
    if (constraint.kind == Kind::couple) {
        if (couplings_of({.tensors = problem.tensors}, {&constraint}).empty())
            throw Error(
                fmt::format("{} concerns nothing: no block has two measured tensors of that kind", constraint.text));
        return;
    }
    if (std::ranges::none_of(problem.tensors,
                             [&](const auto& tensor) { return concerns(constraint, tensor.name, n_blocks); }))
        throw Error(
            fmt::format("{} matches no tensor that was measured; 'cerebellum inspect' lists the names, for "
                        "example {}",
                        constraint.text, problem.tensors.empty() ? "none" : problem.tensors.front().name));
}

List list_of(const Constraints& constraints) {
    List list;
    for (const auto& constraint : constraints.all) list.push_back(&constraint);
    return list;
}

ggml_type known_type(std::string_view option, std::string_view text, std::string_view name) {
    const auto type = parse_type(name);
    if (!type) throw UsageError(fmt::format("{} {}: ggml has no type '{}'", option, text, name));
    return *type;
}

}  // namespace

Constraint parse_rule(Constraint::Kind kind, std::string_view option, std::string_view text) {
    const auto sign = text.rfind('=');
    if (sign == std::string_view::npos || sign == 0)
        throw UsageError(
            fmt::format("{} {} is no rule; write tensors=type, as {} 'blk.*.attn_v=q6_K'", option, text, option));
    Constraint result;
    result.kind = kind;
    result.text = fmt::format("{} {}", option, text);
    result.glob = std::string(text.substr(0, sign));
    result.type = known_type(option, text, text.substr(sign + 1));
    return result;
}

Constraint parse_coupling(std::string_view option, std::string_view text) {
    if (text != "qkv" && text != "gate-up" && text != "experts")
        throw UsageError(fmt::format("{} {}: it can be qkv, gate-up or experts", option, text));
    Constraint result;
    result.kind = Kind::couple;
    result.text = fmt::format("{} {}", option, text);
    result.coupling = std::string(text);
    return result;
}

Constraint parse_protection(std::string_view option, std::string_view text) {
    Constraint result;
    result.kind = Kind::protect;
    result.text = fmt::format("{} {}", option, text);
    result.type = GGML_TYPE_Q6_K;
    const auto refuse = [&] {
        throw UsageError(fmt::format("{} {}: write it as first=2,last=1 or first=2,last=1,type=q6_K", option, text));
    };
    for (std::size_t begin = 0; begin <= text.size();) {
        const auto item = text.substr(begin, text.find(',', begin) - begin);
        begin += item.size() + 1;
        const auto sign = item.find('=');
        const auto key = item.substr(0, sign);
        const auto value = sign == std::string_view::npos ? std::string_view() : item.substr(sign + 1);
        if (key == "type") {
            result.type = known_type(option, text, value);
            continue;
        }
        int count = 0;
        const auto [end, problem] = std::from_chars(value.data(), value.data() + value.size(), count);
        if ((key != "first" && key != "last") || problem != std::errc() || end != value.data() + value.size() ||
            count < 0)
            refuse();
        (key == "first" ? result.first : result.last) = count;
    }
    if (result.first + result.last == 0) refuse();
    return result;
}

Constraint only_these_types(std::string_view text, std::vector<ggml_type> types) {
    Constraint result;
    result.kind = Kind::only_types;
    result.text = std::string(text);
    result.types = std::move(types);
    return result;
}

AllocationProblem constrained_for_any_size(const AllocationProblem& problem, const Constraints& constraints) {
    const int n_blocks = block_count(problem);
    const List list = list_of(constraints);
    for (const auto* constraint : list) check_matches(problem, *constraint, n_blocks);
    auto result = filtered(problem, list, n_blocks);
    if (!group_without_type(result).empty()) refuse_types(problem, list, n_blocks);
    result.max_types = constraints.max_types;
    return result;
}

bool is_allowed(const AllocationProblem& problem, const TypeMap& types) {
    std::set<ggml_type> used;
    const auto type_of = [&](std::size_t index) {
        const auto found = types.find(problem.tensors[index].name);
        return found == types.end() ? GGML_TYPE_COUNT : found->second.type;
    };
    for (std::size_t i = 0; i < problem.tensors.size(); ++i) {
        const auto& choices = problem.tensors[i].choices;
        if (std::ranges::none_of(choices, [&](const TypeChoice& c) { return c.type.type == type_of(i); })) return false;
        used.insert(type_of(i));
    }
    for (const auto& group : problem.coupled)
        for (const auto index : group)
            if (type_of(index) != type_of(group.front())) return false;
    return problem.max_types == 0 || used.size() <= problem.max_types;
}

AllocationProblem constrained(const AllocationProblem& problem, const Constraints& constraints,
                              std::uint64_t budget_bytes) {
    auto result = constrained_for_any_size(problem, constraints);
    const auto least = smallest_file_bytes(problem), smallest = smallest_file_bytes(result);
    if (smallest <= budget_bytes || least > budget_bytes) return result;  // allocate() refuses the rest
    const int n_blocks = block_count(problem);
    const auto met = [&](const List& some) {
        return smallest_file_bytes(filtered(problem, some, n_blocks)) <= budget_bytes;
    };
    const auto conflict = smallest_conflict(list_of(constraints), met);
    throw Error(fmt::format(
        "the budget of {} bytes is too small for {}: the smallest file has {} bytes with and {} "
        "without; ask for more or drop one",
        budget_bytes, conflict_text(conflict), smallest_file_bytes(filtered(problem, conflict, n_blocks)), least));
}

std::string texts_of(const Constraints& constraints) {
    std::vector<std::string> texts;
    texts.reserve(constraints.all.size());
    for (const auto& constraint : constraints.all) texts.push_back(constraint.text);
    return fmt::format("{}", fmt::join(texts, " "));
}

}  // namespace cerebellum
