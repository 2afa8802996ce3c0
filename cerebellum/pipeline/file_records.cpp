#include "cerebellum/pipeline/file_records.h"

#include <fmt/format.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "cerebellum/core/error.h"

namespace cerebellum {

using nlohmann::json;

namespace {

std::string text_of(const json& object, const char* key) {
    return object.is_object() && object.contains(key) && object[key].is_string() ? object[key].get<std::string>() : "";
}

std::string name_of(const json& facts) {
    return text_of(facts["file"], "name");
}

[[noreturn]] void refuse(const std::string& origin, const std::string& file) {
    throw Error(
        fmt::format("{} is about another file than {}; make it again for this one, or move it away", origin, file));
}

void check_digest(const std::string& digest, const std::string& expected, const std::string& origin,
                  const std::string& file) {
    if (digest.empty())
        throw Error(
            fmt::format("{} does not say by a digest which file it is about; make it again with this version", origin));
    if (digest != expected) refuse(origin, file);
}

/// Every object in a value, itself among them.
template <typename Visit>
void for_each_object(const json& value, const Visit& visit) {
    if (value.is_object()) visit(value);
    if (value.is_structured())
        for (const auto& entry : value) for_each_object(entry, visit);
}

}  // namespace

void check_record(const json& record, const std::string& origin, const json& facts) {
    check_digest(text_of(record, "sha256"), text_of(facts["file"], "sha256"), origin, name_of(facts));
}

void check_recipe_record(const Recipe& recipe, const std::string& origin, const json& facts, const json& results) {
    const auto digest = recipe_sha256(recipe);
    if (text_of(facts, "recipe_sha256") != digest && text_of(results, "recipe_sha256") != digest)
        refuse(origin, name_of(facts));
}

void check_evaluation(const json& evaluation, const std::string& origin, const json& facts) {
    const auto check_fingerprint = [&](const json& entry) {
        check_digest(text_of(entry, "fingerprint"), text_of(facts, "fingerprint"), origin, name_of(facts));
    };
    if (evaluation.is_array()) {  // memory: figures of one file, which the header alone decides
        for (const auto& entry : evaluation) check_fingerprint(entry);
        return;
    }
    for_each_object(evaluation, [&](const json& entry) {
        const auto file = text_of(entry, "file");
        if (std::filesystem::path(file).filename().string() == name_of(facts)) check_record(entry, origin, facts);
    });
}

void check_measured_model(const Journal& journal, const json& facts) {
    const auto& fields = journal.identity().fields;
    const auto measured = fields.contains("model") ? fields.at("model") : "";
    const auto source = text_of(facts["source"], "fingerprint");
    if (!measured.empty() && (measured == source || measured == text_of(facts, "fingerprint"))) return;
    if (source.empty() || source == "unknown")
        throw Error(
            fmt::format("{} does not say what it was made from, so that the measurements in {} cannot be shown to be "
                        "about it; leave the journal out",
                        name_of(facts), journal.path().string()));
    throw Error(fmt::format("{} was measured on another model than {} was made from; name the right journal",
                            journal.path().string(), name_of(facts)));
}

void check_source(const json& result, const std::string& origin, const std::string& fingerprint) {
    const auto expect = [&](const std::string& stored) {
        if (!stored.empty() && stored != fingerprint)
            throw Error(
                fmt::format("{} is about files of another model than the one that was measured; leave it out", origin));
    };
    if (result.contains("delivered") && text_of(result, "source_fingerprint").empty())
        throw Error(
            fmt::format("{} does not say by a digest what model it is about; make it again with this version", origin));
    for_each_object(result, [&](const json& entry) {
        expect(text_of(entry, "source_fingerprint"));
        if (entry.contains("source")) expect(text_of(entry["source"], "fingerprint"));
    });
}

}  // namespace cerebellum
