#pragma once

#include <cstddef>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace cerebellum {

/// What a JSON text may be. A value a few hundred thousand brackets deep overflows the stack of who copies, compares or
/// prints it, and a text takes ten times its size in memory.
struct JsonLimits {
    std::size_t bytes = std::size_t{64} << 20U;
    int depth = 200;
};
/// For what has a line for every tensor or channel of a model: recipes, results, journals' artifacts.
constexpr JsonLimits limits_of_long_json = {.bytes = std::size_t{256} << 20U};

/// Reads JSON that anybody may have written. Throws Error that begins with `where` and says what is wrong with it: no
/// JSON, too long, or nested too deeply.
nlohmann::json parse_json(std::string_view text, std::string_view where, const JsonLimits& limits = {});

/// The same for who has words of his own: empty where it is none.
std::optional<nlohmann::json> try_parse_json(std::string_view text, const JsonLimits& limits = {});

/// Reads CBOR as nlohmann::json writes it: without items of unknown length and without tags, which its own reader
/// follows as deep as they go. Throws Error that begins with `where`, as parse_json() does.
nlohmann::json parse_cbor(std::string_view bytes, std::string_view where, int depth = JsonLimits().depth);

/// JSON as text: on one line, or indented. Bytes that are no UTF-8, as names of files, of tensors and tokens may have
/// them, become U+FFFD; nlohmann's own dump() throws there, after whatever work it was that made the value.
std::string json_to_text(const nlohmann::json& value, int indent = -1);

/// What nlohmann::json found, in words for users: "the key 'types' is missing", "a value is null and not an array".
std::string json_problem(const nlohmann::json::exception& problem);

[[noreturn]] void throw_unfit_json(std::string_view where, const nlohmann::json::exception& problem);

/// Throws Error, "WHERE: what json_problem() says", for a value of which `read` finds a field missing or of another
/// kind than it takes.
template <typename Read>
auto read_fields(std::string_view where, const Read& read) {
    try {
        return read();
    } catch (const nlohmann::json::exception& problem) {
        throw_unfit_json(where, problem);
    }
}

/// What an object holds, to loop over. Throws nlohmann's type_error for anything else: its own items() takes a number
/// or null for an object with nothing in it.
inline const nlohmann::json::object_t& as_object(const nlohmann::json& value) {
    return value.get_ref<const nlohmann::json::object_t&>();
}

/// A field of an object where it is there and of that kind, else `otherwise`. Never throws, whatever the value is.
std::string text_field(const nlohmann::json& value, const char* key, std::string_view otherwise = "");
double number_field(const nlohmann::json& value, const char* key, double otherwise = 0.0);
bool bool_field(const nlohmann::json& value, const char* key, bool otherwise = false);

}  // namespace cerebellum
