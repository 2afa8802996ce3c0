#include "cerebellum/core/json_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

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

/// How deep the one item is that CBOR consists of; empty where it is cut, longer than that item, or has what
/// parse_cbor() does not read. The count of an array's items is no longer than what is left.
std::optional<std::size_t> depth_of_cbor(std::string_view bytes) {
    std::vector<std::uint64_t> to_come = {1};  // items at each level
    std::size_t deepest = 0, at = 0;
    while (!to_come.empty()) {
        if (to_come.back() == 0) {
            to_come.pop_back();
            continue;
        }
        --to_come.back();
        if (at == bytes.size()) return std::nullopt;
        const auto first = static_cast<unsigned char>(bytes[at++]);
        const unsigned kind = first >> 5U, length = first & 31U;
        std::uint64_t value = length;
        if (length > 27) return std::nullopt;
        if (length > 23) {
            value = 0;
            for (unsigned left = 1U << (length - 24U); left > 0; --left) {
                if (at == bytes.size()) return std::nullopt;
                value = value << 8U | static_cast<unsigned char>(bytes[at++]);
            }
        }
        if (kind == 6) return std::nullopt;
        if (kind < 2 || kind == 7) continue;  // the number is all of it
        if (value > bytes.size() - at) return std::nullopt;
        if (kind < 4)
            at += value;
        else
            to_come.push_back(kind == 5 ? 2 * value : value);
        deepest = std::max(deepest, to_come.size() - 1);
    }
    return at == bytes.size() ? std::optional(deepest) : std::nullopt;
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

json parse_cbor(std::string_view bytes, std::string_view where, int depth) {
    const auto found = depth_of_cbor(bytes);
    if (found && *found > static_cast<std::size_t>(depth))
        throw Error(fmt::format("{}: its CBOR is nested more than {} deep", where, depth));
    auto value = found ? json::from_cbor(bytes, true, false) : json(json::value_t::discarded);
    if (value.is_discarded()) throw Error(fmt::format("{}: it is no valid CBOR", where));
    return value;
}

std::string json_to_text(const json& value, int indent) {
    return value.dump(indent, ' ', false, json::error_handler_t::replace);
}

std::string json_problem(const json::exception& problem) {
    constexpr int other_type = 302, no_reference = 303, no_item = 401, no_key = 403;
    // "[json.exception.type_error.302] (/pointer) type must be string, but is null"
    std::string_view text = problem.what();
    if (const auto end = text.find("] "); text.starts_with('[') && end != std::string_view::npos)
        text.remove_prefix(end + 2);
    if (problem.id == no_item) return "a list in it is too short";
    if (problem.id == no_key)
        if (const auto begin = text.find('\''), end = text.rfind('\''); begin != std::string_view::npos && begin < end)
            return fmt::format("the key {} is missing", text.substr(begin, end + 1 - begin));
    constexpr std::string_view actual = "actual type is ";
    if (const auto begin = text.find(actual); problem.id == no_reference && begin != std::string_view::npos)
        return fmt::format("a value of it is {} where there has to be object", text.substr(begin + actual.size()));
    constexpr std::string_view wanted = "type must be ", found = ", but is ";
    if (const auto begin = text.find(wanted), end = text.find(found);
        problem.id == other_type && begin != std::string_view::npos && end != std::string_view::npos)
        return fmt::format("a value of it is {} where there has to be {}", text.substr(end + found.size()),
                           text.substr(begin + wanted.size(), end - begin - wanted.size()));
    return fmt::format("it does not hold what it should ({})", text);
}

void throw_unfit_json(std::string_view where, const json::exception& problem) {
    throw Error(fmt::format("{}: {}", where, json_problem(problem)));
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
