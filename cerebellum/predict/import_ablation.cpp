#include "cerebellum/predict/import_ablation.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/predict/foreign_type.h"

namespace cerebellum {

using nlohmann::json;

namespace {

/// The name of the innermost object that begins in front of a place: Python's json writes NaN, which is no JSON, and
/// the row it stands in is what the user has to know.
std::string object_before(std::string_view text, std::size_t place) {
    constexpr std::size_t reach = 4096;
    constexpr std::string_view blanks = " \t\r\n";
    place = std::min(place, text.size());
    const auto before = text.substr(place - std::min(place, reach), std::min(place, reach));
    // "NAME" : {  read from its end.
    for (auto brace = before.rfind('{'); brace != std::string_view::npos && brace > 0;
         brace = before.rfind('{', brace - 1)) {
        const auto colon = before.find_last_not_of(blanks, brace - 1);
        if (colon == std::string_view::npos || colon == 0 || before[colon] != ':') continue;
        const auto quote = before.find_last_not_of(blanks, colon - 1);
        if (quote == std::string_view::npos || quote == 0 || before[quote] != '"') continue;
        const auto name = before.find_last_of("\"\\", quote - 1);
        if (name != std::string_view::npos && before[name] == '"')
            return std::string(before.substr(name + 1, quote - name - 1));
    }
    return "";
}

/// Refuses keys that occur twice, which the parser would pass over.
class UniqueKeys {
  public:
    explicit UniqueKeys(std::string origin) : origin_(std::move(origin)) {}
    bool operator()(int depth, json::parse_event_t event, json& parsed) {
        if (depth > JsonLimits().depth)
            throw Error(
                fmt::format("cannot use {}: its JSON is nested more than {} deep", origin_, JsonLimits().depth));
        if (event == json::parse_event_t::object_start) keys_.emplace_back();
        if (event == json::parse_event_t::object_end) keys_.pop_back();
        if (event == json::parse_event_t::key && !keys_.back().insert(parsed.get<std::string>()).second)
            throw Error(
                fmt::format("cannot use {}: '{}' is there twice; remove one", origin_, parsed.get<std::string>()));
        return true;
    }

  private:
    std::string origin_;
    std::vector<std::set<std::string>> keys_;
};

class AblationReader {
  public:
    AblationReader(const std::filesystem::path& path, std::string crush_type)
        : crush_type_(std::move(crush_type)), document_(read_strict_json(path)) {
        table_.origin = path.string();
        table_.is_crush_sweep = true;
    }

    DamageTable read() {
        if (!document_.is_object()) refuse("it is no JSON object");
        if (!document_.contains("baseline_ppl"))
            refuse("it has no baseline_ppl, so it is no ablation or not all of it");
        baseline_ = perplexities("baseline_ppl", document_.at("baseline_ppl"));
        const auto tests = document_.find("tests");
        if (tests == document_.end() || !tests->is_object() || tests->empty()) refuse("it has no tests");
        if (const auto type = document_.find("crush_type"); type != document_.end())
            crush_type_ = text("crush_type", *type);
        else
            table_.notes.push_back(
                fmt::format("the file does not say what tensors were crushed to: taken as {}", crush_type_));
        for (const auto& [name, test] : tests->items()) add(name, test);
        if (baseline_.size() > 1)
            table_.notes.push_back(fmt::format("the {} texts of the file count equally", baseline_.size()));
        check_unique(table_);
        table_.metric = std::ranges::none_of(table_.rows, [](const auto& row) { return std::isnan(row.kld); })
                            ? Metric::kld
                            : Metric::nll;
        if (const auto model = document_.find("model"); model != document_.end()) add_model(*model);
        if (const auto skipped = document_.find("skipped"); skipped != document_.end())
            for (const auto& entry : *skipped)
                table_.skipped.push_back(fmt::format("{}: {}", text("skipped", member(entry, "skipped", "gguf_tensor")),
                                                     text("skipped", member(entry, "skipped", "reason"))));
        return std::move(table_);
    }

  private:
    [[noreturn]] void refuse(const std::string& reason) const {
        throw Error(fmt::format("cannot use {}: {}", table_.origin, reason));
    }

    const json& member(const json& object, const std::string& place, const char* name) const {
        if (!object.is_object() || !object.contains(name)) refuse(fmt::format("{} has no {}", place, name));
        return object.at(name);
    }
    std::string text(const std::string& place, const json& value) const {
        if (!value.is_string() || value.get_ref<const std::string&>().empty())
            refuse(fmt::format("{}: {} is no name", place, json_to_text(value)));
        return value.get<std::string>();
    }
    double number(const std::string& place, const json& value) const {
        if (!value.is_number() || !std::isfinite(value.get<double>()))
            refuse(fmt::format("{} is {}, which is no number", place, json_to_text(value)));
        return value.get<double>();
    }
    double positive(const std::string& place, const json& value) const {
        const double result = number(place, value);
        if (result <= 0.0) refuse(fmt::format("{} is {}, and a perplexity is more than 0", place, json_to_text(value)));
        return result;
    }

    /// By text; one without a name where there is one number.
    std::map<std::string, double> perplexities(const std::string& place, const json& value) const {
        if (!value.is_object()) return {{"", positive(place, value)}};
        std::map<std::string, double> result;
        for (const auto& [name, ppl] : value.items())
            result[name] = positive(fmt::format("{} of {}", place, name), ppl);
        if (result.empty()) refuse(fmt::format("{} is empty", place));
        return result;
    }

    void add(const std::string& name, const json& test) {
        const std::string place = fmt::format("test '{}'", name);
        DamageRow row;
        row.where = place;
        row.tensor = text(fmt::format("gguf_tensor of {}", place), member(test, place, "gguf_tensor"));
        if (!row.tensor.ends_with(".weight")) row.tensor += ".weight";  // the tool that made the schema adds it too
        row.type = test.contains("type") ? text(fmt::format("type of {}", place), test.at("type")) : crush_type_;
        if (!parse_foreign_type(row.type)) refuse(fmt::format("{}: there is no type {}", place, row.type));
        const auto measured = perplexities(fmt::format("ppl of {}", place), member(test, place, "ppl"));
        double sum = 0.0;
        for (const auto& [domain, baseline] : baseline_) {
            const auto ppl = measured.find(domain);
            if (ppl == measured.end() || measured.size() != baseline_.size())
                refuse(fmt::format("{} was not measured on the same texts as the baseline", place));
            sum += std::log(ppl->second / baseline);
        }
        row.delta_nll = sum / static_cast<double>(baseline_.size());
        if (test.contains("kld")) {
            row.kld = number(fmt::format("kld of {}", place), test.at("kld"));
            if (row.kld < 0.0) refuse(fmt::format("kld of {} is {}, below 0", place, row.kld));
            if (test.contains("kld_error") && !test.at("kld_error").is_null())
                row.kld_error = number(fmt::format("kld_error of {}", place), test.at("kld_error"));
        }
        table_.rows.push_back(std::move(row));
    }

    ggml_type type_of(const std::string& place, const json& value) const {
        const auto name = text(place, value);
        const auto type = parse_type(name);
        if (!type) refuse(fmt::format("{}: ggml has no type {}", place, name));
        return *type;
    }

    void add_model(const json& model) {
        ExportedModel result;
        result.baseline.origin = table_.origin;
        result.name = text("name of the model", member(model, "model", "name"));
        result.fingerprint = text("fingerprint of the model", member(model, "model", "fingerprint"));
        result.fixed_bytes =
            static_cast<std::uint64_t>(positive("fixed_bytes of the model", member(model, "model", "fixed_bytes")));
        const auto& tensors = member(model, "model", "tensors");
        if (!tensors.is_object()) refuse("tensors of the model is no object");
        for (const auto& [name, entry] : tensors.items()) {
            const auto place = fmt::format("tensor {} of the model", name);
            TensorInfo tensor;
            tensor.name = name;
            const auto& shape = member(entry, place, "shape");
            std::vector<std::int64_t> lengths;
            for (const auto& length : shape)
                lengths.push_back(length.is_number_integer() ? length.get<std::int64_t>() : 0);
            if (!set_shape(tensor, lengths)) refuse(fmt::format("the shape of {} is impossible", place));
            tensor.type = type_of(place, member(entry, place, "type"));
            const auto source_type = type_of(place, member(entry, place, "source_type"));
            for (const auto type : {tensor.type, source_type})
                if (!type_fits_row(type, tensor.row_length()))
                    refuse(fmt::format("the rows of {} do not fit {}", place, type_name(type)));
            tensor.size_bytes = type_size_bytes(tensor.type, tensor.row_length(), tensor.n_rows());
            result.source_types[name] = source_type;
            result.baseline.tensors.push_back(std::move(tensor));
        }
        check_names(
            table_, [&](const std::string& name) { return result.source_types.contains(name); }, "its model");
        table_.model = std::move(result);
    }

    std::string crush_type_;
    json document_;
    std::map<std::string, double> baseline_;
    DamageTable table_;
};

}  // namespace

json read_strict_json(const std::filesystem::path& path) {
    const auto text = read_file(path);
    try {
        return json::parse(text, UniqueKeys(path.string()));
    } catch (const json::parse_error& problem) {
        const auto line =
            1 + std::count(text.begin(),
                           text.begin() + static_cast<std::ptrdiff_t>(std::min(problem.byte, text.size())), '\n');
        const auto object = object_before(text, problem.byte);
        std::string reason = problem.what();
        if (const auto at = reason.find("syntax error"); at != std::string::npos) reason.erase(0, at);
        throw Error(fmt::format("cannot use {}: line {}{}: it is no valid JSON ({})", path.string(), line,
                                object.empty() ? "" : fmt::format(", in '{}'", object), reason));
    } catch (const json::out_of_range&) {
        throw Error(
            fmt::format("cannot use {}: it is no valid JSON (a number in it is beyond all numbers)", path.string()));
    }
}

DamageTable read_ablation(const std::filesystem::path& path, const std::string& crush_type) {
    return AblationReader(path, crush_type).read();
}

std::vector<std::string> read_ablation_plan(const std::filesystem::path& path) {
    const auto document = read_strict_json(path);
    const auto refuse = [&](const std::string& reason) {
        throw Error(fmt::format("cannot use the plan {}: {}", path.string(), reason));
    };
    const json* entries = &document;
    if (document.is_object()) {
        if (!document.contains("tensors")) refuse("it has no 'tensors'");
        entries = &document.at("tensors");
    }
    if (!entries->is_array() || entries->empty()) refuse("it lists no tensors");
    std::vector<std::string> names;
    std::size_t number = 0;
    for (const auto& entry : *entries) {
        ++number;
        const json* name = &entry;
        if (entry.is_object()) {
            const auto found = entry.contains("gguf_tensor") ? entry.find("gguf_tensor") : entry.find("name");
            if (found == entry.end()) refuse(fmt::format("entry {} has no 'name'", number));
            name = &*found;
        }
        if (!name->is_string() || name->get_ref<const std::string&>().empty())
            refuse(fmt::format("entry {} is no name of a tensor: {}", number, json_to_text(entry)));
        if (std::ranges::find(names, name->get_ref<const std::string&>()) != names.end())
            refuse(fmt::format("entry {} lists {} again", number, name->get<std::string>()));
        names.push_back(name->get<std::string>());
    }
    return names;
}

}  // namespace cerebellum
