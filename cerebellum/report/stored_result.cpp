#include "cerebellum/report/stored_result.h"

#include <fmt/format.h>

#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/core/quoting.h"

namespace cerebellum {

using nlohmann::json;

namespace {

const json* look_up(const json& whole, const std::string& pointer) {
    const json::json_pointer parsed(pointer);
    return whole.contains(parsed) ? &whole.at(parsed) : nullptr;
}

}  // namespace

Stored::Stored(std::shared_ptr<const json> whole, std::shared_ptr<const std::string> link, std::string pointer)
    : whole_(std::move(whole)),
      link_(std::move(link)),
      pointer_(std::move(pointer)),
      value_(&whole_->at(json::json_pointer(pointer_))) {}

std::string Stored::url() const {
    return percent_encoded(*link_) + "#" + percent_encoded(pointer_);
}

double Stored::number() const {
    if (!value_->is_number()) throw Error(fmt::format("{} is no number but {}", link(), value_->dump()));
    return value_->get<double>();
}

std::string Stored::text() const {
    if (!value_->is_string()) throw Error(fmt::format("{} is no text but {}", link(), value_->dump()));
    return value_->get<std::string>();
}

StoredResult StoredResult::read(const std::filesystem::path& path, std::string link) {
    auto whole = try_parse_json(read_file(path), limits_of_long_json).value_or(json());
    if (!whole.is_object() && !whole.is_array())
        throw Error(fmt::format("{} is no stored result: it holds no JSON", path.string()));
    StoredResult result;
    result.whole_ = std::make_shared<const json>(std::move(whole));
    result.link_ = std::make_shared<const std::string>(std::move(link));
    return result;
}

std::string StoredResult::url() const {
    return percent_encoded(*link_);
}

Stored StoredResult::at(const std::string& pointer) const {
    if (auto found = find(pointer)) return *std::move(found);
    throw Error(fmt::format("{} holds nothing at {}; it was written by another version", *link_, pointer));
}

std::optional<Stored> StoredResult::find(const std::string& pointer) const {
    const auto* value = look_up(*whole_, pointer);
    if (value == nullptr || value->is_null()) return std::nullopt;
    return Stored(whole_, link_, pointer);
}

std::size_t StoredResult::size(const std::string& pointer) const {
    const auto* value = look_up(*whole_, pointer);
    return value != nullptr && value->is_array() ? value->size() : 0;
}

std::vector<std::string> StoredResult::keys(const std::string& pointer) const {
    std::vector<std::string> names;
    if (const auto* value = look_up(*whole_, pointer); value != nullptr && value->is_object())
        for (const auto& [key, entry] : value->items()) names.push_back(key);
    return names;
}

bool StoredResult::is(const std::string& pointer, const std::string& text) const {
    const auto* value = look_up(*whole_, pointer);
    return value != nullptr && value->is_string() && value->get<std::string>() == text;
}

std::string pointer_part(const std::string& key) {
    std::string part;
    for (const char c : key) part += c == '~' ? "~0" : c == '/' ? "~1" : std::string(1, c);
    return part;
}

}  // namespace cerebellum
