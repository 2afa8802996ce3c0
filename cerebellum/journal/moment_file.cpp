#include "cerebellum/journal/moment_file.h"

#include <fmt/format.h>

#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "cerebellum/core/error.h"
#include "cerebellum/core/hash.h"
#include "cerebellum/core/json_text.h"

namespace cerebellum {

static_assert(std::endian::native == std::endian::little, "the file holds little-endian floats");

namespace {

std::string key_of(const std::string& input, std::int64_t matrix) {
    return fmt::format("{}:{}", input, matrix);
}

std::string hash_key(const std::string& input, std::int64_t matrix) {
    return "sha256:" + key_of(input, matrix);
}

std::string_view bytes_of(std::span<const float> values) {
    return {reinterpret_cast<const char*>(values.data()), values.size_bytes()};
}

/// Every different input once.
std::set<std::pair<std::string, std::int64_t>> parts(const std::map<std::string, InputMoments>& inputs) {
    std::set<std::pair<std::string, std::int64_t>> result;
    for (const auto& [weight, input] : inputs)
        for (std::int64_t matrix = 0; matrix < input.n_matrices; ++matrix) result.emplace(input.input, matrix);
    return result;
}

}  // namespace

std::filesystem::path MomentFile::beside(const std::filesystem::path& journal) {
    auto path = journal;
    return path += ".moments";
}

MomentFile MomentFile::open(const std::filesystem::path& path, const JournalIdentity& identity) {
    return MomentFile(Journal::open(path, identity));
}

MomentFile MomentFile::open_existing(const std::filesystem::path& path) {
    return MomentFile(Journal::open_existing(path));
}

MomentFile::MomentFile(Journal file) : file_(std::move(file)) {
    const auto stored = file_.get_meta("inputs");
    if (!stored) return;
    try {
        const auto json = parse_json(*stored, fmt::format("the second moments in {}", file_.path().string()));
        for (const auto& [weight, value] : as_object(json))
            inputs_[weight] = {value.at(0).get<std::string>(), value.at(1).get<std::int64_t>(),
                               value.at(2).get<std::int64_t>()};
    } catch (const nlohmann::json::exception& problem) {
        throw Error(fmt::format("the second moments in {} are damaged ({}); remove it to collect them again",
                                file_.path().string(), json_problem(problem)));
    }
}

void MomentFile::set_inputs(std::map<std::string, InputMoments> inputs) {
    inputs_ = std::move(inputs);
    auto json = nlohmann::json::object();
    for (const auto& [weight, input] : inputs_) json[weight] = {input.input, input.n_cols, input.n_matrices};
    file_.put_meta("inputs", json_to_text(json));
}

bool MomentFile::has(const std::string& input, std::int64_t matrix) const {
    return file_.get_meta(hash_key(input, matrix)).has_value();
}

void MomentFile::put(const std::string& input, std::int64_t matrix, std::span<const float> lower_triangle) {
    const auto bytes = bytes_of(lower_triangle);
    file_.put_artifact(key_of(input, matrix), bytes);
    file_.put_meta(hash_key(input, matrix), sha256(bytes));
}

bool MomentFile::complete() const {
    if (inputs_.empty()) return false;
    for (const auto& [input, matrix] : parts(inputs_))
        if (!has(input, matrix)) return false;
    return true;
}

std::vector<float> MomentFile::read(const std::string& weight, std::int64_t matrix) const {
    const auto found = inputs_.find(weight);
    if (found == inputs_.end() || matrix >= found->second.n_matrices) return {};
    const auto& input = found->second;
    const auto bytes = file_.get_artifact(key_of(input.input, matrix));
    if (!bytes) return {};
    std::vector<float> values(static_cast<std::size_t>(input.n_cols * (input.n_cols + 1) / 2));
    if (bytes->size() != values.size() * sizeof(float))
        throw Error(fmt::format("the second moments for {} in {} are damaged; remove it to collect them again", weight,
                                file_.path().string()));
    std::memcpy(values.data(), bytes->data(), bytes->size());
    return values;
}

std::string MomentFile::digest() const {
    std::string text;
    for (const auto& [weight, input] : inputs_) text += fmt::format("{}={}\n", weight, input.input);
    for (const auto& [input, matrix] : parts(inputs_))
        text += fmt::format("{} {}\n", key_of(input, matrix), file_.get_meta(hash_key(input, matrix)).value_or(""));
    return sha256(text);
}

}  // namespace cerebellum
