#include "cerebellum/evaluate/audit_log.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <set>
#include <string_view>

#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/json_text.h"

namespace cerebellum {

namespace {

using nlohmann::json;

constexpr auto format_name = "cerebellum-eval";

/// Bytes of model output need not be UTF-8.
std::string line_of(const json& value) {
    return json_to_text(value) + "\n";
}

/// Whether the fields that are there are of the kind that everybody who reads a log takes them for.
bool is_header(const json& value) {
    if (text_field(value, "format") != format_name) return false;
    for (const auto* key : {"benchmark", "mode", "metric", "questions_sha256", "selection"})
        if (value.contains(key) && !value[key].is_string()) return false;
    for (const auto* key : {"temperature", "questions"})
        if (value.contains(key) && !value[key].is_number()) return false;
    if (value.contains("rejudged") && !value["rejudged"].is_array()) return false;
    return !value.contains("model") ||
           (value["model"].is_object() && (!value["model"].contains("file") || value["model"]["file"].is_string()));
}

bool is_record(const json& value) {
    if (!value.is_object() || !value.contains("id") || !value["id"].is_string()) return false;
    for (const auto* key : {"raw", "parsed", "group", "prompt_sha256", "verdict", "failed"})
        if (value.contains(key) && !value[key].is_string()) return false;
    if (value.contains("correct") && !value["correct"].is_boolean()) return false;
    if (value.contains("ms") && !value["ms"].is_number()) return false;
    if (value.contains("gold") && !value["gold"].is_array()) return false;
    const auto is_text = [](const json& item) { return item.is_string(); };
    if (value.contains("choices") && !(value["choices"].is_array() && std::ranges::all_of(value["choices"], is_text)))
        return false;
    const auto is_number = [](const json& item) { return item.is_number(); };
    return value.contains("metrics") && value["metrics"].is_object() &&
           std::ranges::all_of(value["metrics"], is_number);
}

struct Parsed {
    AuditFile log;
    std::size_t complete_bytes = 0;  // up to the end of the last whole line
};

Parsed parse(const std::filesystem::path& path) {
    const auto content = read_file(path);
    Parsed parsed;
    std::set<std::string> ids;
    std::size_t line = 0;
    for (std::size_t begin = 0; begin < content.size();) {
        const auto end = content.find('\n', begin);
        if (end == std::string::npos) break;
        ++line;
        const auto text = std::string_view(content).substr(begin, end - begin);
        const auto value = try_parse_json(text).value_or(json());
        if (line == 1 ? !is_header(value) : !is_record(value))
            throw Error(fmt::format("{}:{}: this is no record of an evaluation; give --out another folder",
                                    path.string(), line));
        if (line == 1)
            parsed.log.header = value;
        else if (ids.insert(value["id"].get<std::string>()).second)
            parsed.log.records.push_back(value);
        begin = parsed.complete_bytes = end + 1;
    }
    return parsed;
}

void expect_same(const json& stored, const json& wanted, const std::filesystem::path& path) {
    for (const auto& [key, value] : wanted.items())
        if (!stored.contains(key) || stored[key] != value)
            throw Error(
                fmt::format("{} holds answers of another run: its {} is {} and now it is {}; give --out another "
                            "folder, or delete it",
                            path.string(), key, stored.contains(key) ? json_to_text(stored[key]) : "not given",
                            json_to_text(value)));
}

json with_format(json header) {
    header["format"] = format_name;
    header["version"] = 1;
    return header;
}

}  // namespace

AuditLog::AuditLog(std::filesystem::path path, const json& header) : path_(std::move(path)) {
    const auto whole = with_format(header);
    descriptor_ = open(path_.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (descriptor_ < 0) throw Error(fmt::format("cannot write {}: {}", path_.string(), std::strerror(errno)));
    try {
        if (flock(descriptor_, LOCK_EX | LOCK_NB) != 0)
            throw Error(
                fmt::format("{} is being written by another run; wait for it or give another --out", path_.string()));
        auto parsed = parse(path_);
        if (ftruncate(descriptor_, static_cast<off_t>(parsed.complete_bytes)) != 0)
            throw Error(fmt::format("cannot write {}: {}", path_.string(), std::strerror(errno)));
        if (parsed.complete_bytes == 0) {
            const auto line = line_of(whole);
            if (write(descriptor_, line.data(), line.size()) != static_cast<ssize_t>(line.size()))
                throw Error(fmt::format("cannot write {}: {}", path_.string(), std::strerror(errno)));
        } else {
            expect_same(parsed.log.header, whole, path_);
        }
        for (auto& record : parsed.log.records) {
            const auto id = record["id"].get<std::string>();
            records_.emplace(id, std::move(record));
        }
    } catch (...) {
        close(descriptor_);
        throw;
    }
}

AuditLog::~AuditLog() {
    fdatasync(descriptor_);
    close(descriptor_);
}

void AuditLog::append(const json& record) {
    const auto line = line_of(record);
    if (write(descriptor_, line.data(), line.size()) != static_cast<ssize_t>(line.size()))
        throw Error(fmt::format("cannot write {}: {}", path_.string(), std::strerror(errno)));
    records_.insert_or_assign(record.at("id").get<std::string>(), record);
}

AuditFile read_audit_log(const std::filesystem::path& path) {
    auto log = parse(path).log;
    if (log.header.is_null())
        throw Error(fmt::format("{} is no record of an evaluation (it should be a .jsonl that 'cerebellum eval' wrote)",
                                path.string()));
    return log;
}

void write_audit_log(const std::filesystem::path& path, const AuditFile& log) {
    auto content = line_of(log.header);
    for (const auto& record : log.records) content += line_of(record);
    write_file_atomically(path, content);
}

}  // namespace cerebellum
