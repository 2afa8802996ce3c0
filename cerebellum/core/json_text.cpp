#include "cerebellum/core/json_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "cerebellum/core/error.h"
#include "cerebellum/core/size.h"

namespace cerebellum {

using nlohmann::json;

namespace {

/// The deepest nesting; exact for a text that is JSON.
int depth_of(std::string_view text) {
    int depth = 0, deepest = 0;
    bool in_string = false;
    for (std::size_t i = 0; i < text.size(); ++i) {
        const char c = text[i];
        if (in_string && c == '\\')
            ++i;
        else if (c == '"')
            in_string = !in_string;
        else if (!in_string && (c == '[' || c == '{'))
            deepest = std::max(deepest, ++depth);
        else if (!in_string && (c == ']' || c == '}'))
            --depth;
    }
    return deepest;
}

/// Why the text is not even tried; empty where it is.
std::string refusal(std::string_view text, const JsonLimits& limits) {
    if (text.size() > limits.bytes) return fmt::format("its JSON is longer than {}", format_bytes(limits.bytes));
    if (depth_of(text) > limits.depth) return fmt::format("its JSON is nested more than {} deep", limits.depth);
    return "";
}

const json* field(const json& value, const char* key) {
    if (!value.is_object()) return nullptr;
    const auto at = value.find(key);
    return at == value.end() ? nullptr : &*at;
}

}  // namespace

json parse_json(std::string_view text, std::string_view where, const JsonLimits& limits) {
    if (const auto reason = refusal(text, limits); !reason.empty()) throw Error(fmt::format("{}: {}", where, reason));
    try {
        return json::parse(text);
    } catch (const json::parse_error& problem) {
        throw Error(fmt::format("{}: it is no valid JSON (at byte {})", where, problem.byte));
    } catch (const json::exception&) {  // a number beyond all numbers
        throw Error(fmt::format("{}: it is no valid JSON", where));
    }
}

std::optional<json> try_parse_json(std::string_view text, const JsonLimits& limits) {
    if (!refusal(text, limits).empty()) return std::nullopt;
    auto value = json::parse(text, nullptr, false);
    if (value.is_discarded()) return std::nullopt;
    return value;
}

std::string text_field(const json& value, const char* key, std::string_view otherwise) {
    const auto* found = field(value, key);
    return found != nullptr && found->is_string() ? found->get<std::string>() : std::string(otherwise);
}

double number_field(const json& value, const char* key, double otherwise) {
    const auto* found = field(value, key);
    return found != nullptr && found->is_number() ? found->get<double>() : otherwise;
}

bool bool_field(const json& value, const char* key, bool otherwise) {
    const auto* found = field(value, key);
    return found != nullptr && found->is_boolean() ? found->get<bool>() : otherwise;
}

}  // namespace cerebellum
