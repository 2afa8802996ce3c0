#include "cerebellum/pipeline/effort.h"

#include <algorithm>

namespace cerebellum {

std::string_view effort_name(Effort effort) {
    switch (effort) {
        case Effort::quick:
            return "quick";
        case Effort::normal:
            return "default";
        case Effort::thorough:
            return "thorough";
    }
    return "";
}

std::optional<Effort> parse_effort(std::string_view name) {
    for (const auto effort : {Effort::quick, Effort::normal, Effort::thorough})
        if (effort_name(effort) == name) return effort;
    return std::nullopt;
}

std::string effort_label(Effort effort) {
    return effort == Effort::quick ? "rough figures: made with --quick" : "";
}

std::string effort_label(std::string_view name) {
    const auto effort = parse_effort(name);
    return effort ? effort_label(*effort) : "";
}

int effort_tokens(Effort effort, int context) {
    constexpr int usual = 4096, factor = 4, least_windows = 2, usual_context = 512;
    if (context <= 0) context = usual_context;
    switch (effort) {
        case Effort::quick:
            return std::max(usual / factor, least_windows * context);
        case Effort::normal:
            return usual;
        case Effort::thorough:
            return usual * factor;
    }
    return usual;
}

int effort_rounds(Effort effort) {
    constexpr int thorough = 2;
    return effort == Effort::thorough ? thorough : 0;
}

}  // namespace cerebellum
