#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cerebellum/allocate/recipe_problem.h"

namespace cerebellum {

/// One thing that tensors must obey. `text` is how the user wrote it, for messages.
struct Constraint {
    enum class Kind {
        pin,         // exactly `type`
        floor,       // at least the bits per weight of `type`
        ceiling,     // at most these
        protect,     // as floor, for blocks below `first` and the `last` ones
        only_types,  // one of `types`
        couple,      // one type for all tensors of a block that `coupling` names
    };
    Kind kind = Kind::pin;
    std::string text;
    std::string glob;  // of tensors, as matches_tensor takes it (pin, floor, ceiling)
    ggml_type type = GGML_TYPE_COUNT;
    std::vector<ggml_type> types;
    std::string coupling;  // "qkv", "gate-up" or "experts"
    int first = 0, last = 0;
};

struct Constraints {
    std::vector<Constraint> all;
    std::size_t max_types = 0;  // 0: any number
    bool empty() const { return all.empty() && max_types == 0; }
};

/// The texts of all constraints, as they were given, with spaces between them.
std::string texts_of(const Constraints& constraints);

/// "token_embd=q8_0". `option` is put in front of the text in messages ("--pin"). Throws UsageError where there is no
/// '=' or no such type.
Constraint parse_rule(Constraint::Kind kind, std::string_view option, std::string_view text);
/// "qkv", "gate-up", "experts". Throws UsageError for anything else.
Constraint parse_coupling(std::string_view option, std::string_view text);
/// "first=2,last=1" with ",type=q6_K" where it is not to be q6_K. Throws UsageError.
Constraint parse_protection(std::string_view option, std::string_view text);
Constraint only_these_types(std::string_view text, std::vector<ggml_type> types);

/// The problem with only those choices left that every constraint allows, and tensors coupled. Throws Error where a
/// constraint concerns no tensor of the problem, where no type is left for some tensor (naming the tensor and the
/// smallest set of constraints that conflict), and where `budget_bytes` are below the smallest file that is left
/// (naming the constraints that make it so large, and by how much).
AllocationProblem constrained(const AllocationProblem& problem, const Constraints& constraints,
                              std::uint64_t budget_bytes);

/// Whether these types obey what is left of a constrained problem. Tensors that are not among the
/// problem's may have any type.
bool is_allowed(const AllocationProblem& constrained_problem, const TypeMap& types);

/// As `constrained`, but any budget will do.
AllocationProblem constrained_for_any_size(const AllocationProblem& problem, const Constraints& constraints);

}  // namespace cerebellum
