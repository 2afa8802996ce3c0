#include "cerebellum/build/recipe.h"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/hash.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/core/quant_type.h"

namespace cerebellum {

using nlohmann::json;

namespace {

constexpr std::string_view format_name = "cerebellum-recipe";
constexpr int format_version = 1;

}  // namespace

std::string recipe_to_json(const Recipe& recipe) {
    json types = json::object();
    for (const auto& [name, type] : recipe.types) types[name] = type_name(type);
    json source = {{"name", recipe.source_name}, {"fingerprint", recipe.source_fingerprint}};
    if (!recipe.source_tensors.empty()) source["tensors"] = recipe.source_tensors;
    json document = {
        {"format", format_name},
        {"version", format_version},
        {"source", std::move(source)},
        {"file_bytes", recipe.file_bytes},
        {"predicted_kld", std::isfinite(recipe.predicted_kld) ? json(recipe.predicted_kld) : json(nullptr)},
        {"types", std::move(types)},
        {"provenance", recipe.provenance},
    };
    for (const auto& scaling : recipe.scaling) document["scaling"].push_back(to_json(scaling));
    // File names need not be UTF-8.
    return json_to_text(document, 2) + "\n";
}

Recipe recipe_from_json(std::string_view text, std::string_view origin) {
    try {
        const json document = parse_json(text, fmt::format("cannot use {}", origin), limits_of_long_json);
        if (!document.is_object() || document.value("format", json()) != format_name)
            throw Error(fmt::format("cannot use {}: it is no recipe of Cerebellum", origin));
        if (const json version = document.value("version", json()); version != format_version)
            throw Error(fmt::format("cannot use {}: it is a recipe of version {} and this program reads version {}",
                                    origin, json_to_text(version), format_version));
        Recipe recipe;
        recipe.source_name = document.at("source").value("name", "");
        recipe.source_fingerprint = document.at("source").value("fingerprint", "");
        recipe.source_tensors = document.at("source").value("tensors", std::map<std::string, std::string>());
        recipe.file_bytes = document.value("file_bytes", std::uint64_t{0});
        if (const json kld = document.value("predicted_kld", json()); !kld.is_null())
            recipe.predicted_kld = kld.get<double>();
        recipe.provenance = document.value("provenance", std::map<std::string, std::string>());
        for (const auto& [name, value] : as_object(document.at("types"))) {
            const auto type = parse_encoding(value.get<std::string>());
            if (!type)
                throw Error(fmt::format("cannot use {}: there is no type {}, which it wants for {}", origin,
                                        value.get<std::string>(), name));
            recipe.types[name] = *type;
        }
        for (const auto& value : document.value("scaling", json::array()))
            recipe.scaling.push_back(channel_scaling_from_json(value));
        return recipe;
    } catch (const json::exception& problem) {
        throw Error(fmt::format("cannot use {}: it is no valid recipe: {}", origin, json_problem(problem)));
    }
}

Recipe read_recipe(const std::filesystem::path& path) {
    return recipe_from_json(read_file(path), path.string());
}

void write_recipe(const std::filesystem::path& path, const Recipe& recipe) {
    write_file_atomically(path, recipe_to_json(recipe));
}

std::string recipe_sha256(const Recipe& recipe) {
    return sha256(recipe_to_json(recipe));
}

std::string tensor_type_file(const TypeMap& types) {
    std::string text;
    for (const auto& [name, type] : types) {
        text += '^';
        for (const char c : name) {
            if (c == '.')
                text += "\\.";
            else if ((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '-' || c == '/')
                text += c;
            else
                text += '.';
        }
        text += fmt::format("$={}\n", type_name(type.type));
    }
    return text;
}

}  // namespace cerebellum
