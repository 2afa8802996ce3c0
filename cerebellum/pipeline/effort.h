#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace cerebellum {

/// How much is measured for a recipe. What each costs and brings: docs/performance.md.
enum class Effort {
    quick,     ///< rough figures in a fraction of the time: less text, few types
    normal,    ///< "default"
    thorough,  ///< more text, and measured again around the recipe
};

/// "quick", "default" or "thorough".
std::string_view effort_name(Effort effort);
/// Reads what effort_name wrote; empty for anything else.
std::optional<Effort> parse_effort(std::string_view name);
/// What every output of rough figures says; empty for the other efforts.
std::string effort_label(Effort effort);
/// The same by what a results file or a recipe says of its effort.
std::string effort_label(std::string_view name);

/// Tokens that changes are measured on unless somebody says how many: at least two windows. A context of 0 is the usual
/// one.
int effort_tokens(Effort effort, int context);
/// Rounds around the recipe unless somebody says how many.
int effort_rounds(Effort effort);

}  // namespace cerebellum
