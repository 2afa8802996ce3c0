#include "cerebellum/pipeline/derivation.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

#include "cerebellum/build/build_gguf.h"
#include "cerebellum/build/recipe.h"
#include "cerebellum/build/recipe_build.h"
#include "cerebellum/core/digest_memory.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/core/temporary_name.h"
#include "cerebellum/core/visible_text.h"
#include "cerebellum/gguf/imatrix_file.h"
#include "cerebellum/journal/moment_file.h"
#include "cerebellum/pipeline/quantize.h"
#include "cerebellum/version.h"

namespace cerebellum {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr const char* statement_type = "https://in-toto.io/Statement/v1";
constexpr const char* predicate_type = "urn:cerebellum:derivation:1";

json file_entry(const char* role, const fs::path& path, Progress& progress) {
    return {
        {"role", role}, {"name", path.filename().string()}, {"digest", {{"sha256", content_sha256(path, progress)}}}};
}

/// A file that the statement names, as it is written there.
struct NamedFile {
    std::string role, name, sha256;
    fs::path path;
};

NamedFile named_file(const json& entry, const fs::path& statement, const std::string& role) {
    NamedFile file{role, text_field(entry, "name"), "", {}};
    if (entry.is_object() && entry.contains("digest")) file.sha256 = text_field(entry["digest"], "sha256");
    // A statement comes from anywhere, and reaches no further than its own folder.
    const fs::path name = file.name;
    if (file.name.empty() || name.filename() != name || file.name == "." || file.name == "..")
        throw Error(fmt::format("cannot use {}: it names the file '{}', which is no name of a file beside it",
                                statement.string(), visible(file.name)));
    if (file.sha256.size() != 64)
        throw Error(fmt::format("cannot use {}: it has no SHA-256 of {}", statement.string(), visible(file.name)));
    file.path = statement.parent_path() / name;
    return file;
}

class Verifier {
  public:
    Verifier(const fs::path& path, Progress& progress) : path_(path), progress_(progress) {
        statement_ = parse_json(read_file(path), path.string());
        if (text_field(statement_, "_type") != statement_type ||
            text_field(statement_, "predicateType") != predicate_type)
            throw Error(
                fmt::format("{} is no statement of how a file was derived, as 'publish' writes them", path.string()));
        const auto subjects = statement_.value("subject", json::array());
        if (!subjects.is_array() || subjects.size() != 1)
            throw Error(fmt::format("cannot use {}: it must be about one file", path.string()));
        subject_ = named_file(subjects[0], path, "subject");
        predicate_ = statement_.value("predicate", json::object());
        if (!predicate_.is_object()) predicate_ = json::object();
        const auto files = predicate_.value("files", json::array());
        if (!files.is_array()) throw Error(fmt::format("cannot use {}: its list of files is none", path.string()));
        for (const auto& entry : files) files_.push_back(named_file(entry, path, text_field(entry, "role", "file")));
    }

    DerivationReport compare() {
        report_.subject = subject_.name;
        report_.made_by = visible(text_field(predicate_, "made_by"));
        check(subject_);
        for (const auto& file : files_) check(file);
        return report_;
    }

    void rebuild(const fs::path& source_path, const fs::path& scratch, int threads) {
        const auto source = GgufFile::open(source_path);
        const auto wanted = text_field(predicate_.value("source", json::object()), "fingerprint");
        const bool same = source.fingerprint(progress_) == wanted;
        report_.files.push_back({"source", source_path.filename().string(),
                                 same ? DerivationCheck::Result::same : DerivationCheck::Result::differs});
        if (!same) return;
        const auto recipe = read_recipe(need("recipe"));
        const auto imatrix_path = need("importance matrix");
        const auto imatrix = read_imatrix(imatrix_path);
        BuildOptions options;
        options.threads = threads;
        options.overwrite = true;
        obey_recipe(recipe, source_path, imatrix_path, options, progress_);
        std::optional<MomentFile> moments;
        if (needs_moments(recipe.types)) {
            moments = MomentFile::open_existing(need("second moments"));
            options.moments = [&](const std::string& weight, std::int64_t matrix) {
                return moments->read(weight, matrix);
            };
        }
        const ScratchFile again(temporary_name(scratch / (subject_.name + ".again")));
        build_gguf(source, recipe, &imatrix, again.path(), options, progress_);
        report_.rebuilt = true;
        report_.files.push_back({"made again", subject_.name,
                                 content_sha256(again.path(), progress_) == subject_.sha256
                                     ? DerivationCheck::Result::same
                                     : DerivationCheck::Result::differs});
    }

    const DerivationReport& report() const { return report_; }

  private:
    void check(const NamedFile& file) {
        auto result = DerivationCheck::Result::missing;
        if (std::error_code code; fs::is_regular_file(file.path, code))
            result = content_sha256(file.path, progress_) == file.sha256 ? DerivationCheck::Result::same
                                                                         : DerivationCheck::Result::differs;
        report_.files.push_back({file.role, file.name, result});
    }

    fs::path need(const std::string& role) const {
        const auto file = std::ranges::find(files_, role, &NamedFile::role);
        if (file == files_.end())
            throw Error(fmt::format("cannot make {} again: {} names no {}", subject_.name, path_.string(), role));
        if (content_sha256(file->path, progress_) != file->sha256)
            throw Error(fmt::format("cannot make {} again: the {} {} is not the one that it was made with",
                                    subject_.name, role, file->path.string()));
        return file->path;
    }

    const fs::path& path_;
    Progress& progress_;
    json statement_, predicate_;
    NamedFile subject_;
    std::vector<NamedFile> files_;
    DerivationReport report_;
};

}  // namespace

fs::path derivation_path(const fs::path& file) {
    auto path = file;
    return path.replace_extension(".derivation.json");
}

void write_derivation(const fs::path& path, const DerivationInputs& inputs, Progress& progress) {
    const auto recipe = read_recipe(recipe_path(inputs.file));
    auto files = json::array({file_entry("recipe", recipe_path(inputs.file), progress),
                              file_entry("importance matrix", imatrix_path(inputs.file), progress)});
    if (needs_moments(recipe.types))
        files.push_back(file_entry("second moments", MomentFile::beside(inputs.journal), progress));
    for (const auto& text : inputs.texts) files.push_back(file_entry("text", text, progress));
    const json predicate = {
        {"made_by", fmt::format("cerebellum {} (llama.cpp {})", CEREBELLUM_VERSION, CEREBELLUM_LLAMA_VERSION)},
        {"source",
         {{"name", inputs.source.path().filename().string()}, {"fingerprint", inputs.source.fingerprint(progress)}}},
        {"recipe_sha256", recipe_sha256(recipe)},
        {"files", std::move(files)}};
    const json statement = {
        {"_type", statement_type},
        {"subject", json::array({{{"name", inputs.file.filename().string()},
                                  {"digest", {{"sha256", content_sha256(inputs.file, progress)}}}}})},
        {"predicateType", predicate_type},
        {"predicate", predicate}};
    write_file_atomically(path, json_to_text(statement, 2) + "\n");
}

bool DerivationReport::verified() const {
    return std::ranges::all_of(files, [](const DerivationCheck& check) {
        const bool is_needed = check.what == "subject" || check.what == "made again" || check.what == "source";
        return check.result == DerivationCheck::Result::same ||
               (check.result == DerivationCheck::Result::missing && !is_needed);
    });
}

DerivationReport verify_derivation(const fs::path& statement, const fs::path& source, const fs::path& scratch,
                                   int threads, Progress& progress) {
    Verifier verifier(statement, progress);
    verifier.compare();
    if (!source.empty()) verifier.rebuild(source, scratch, threads);
    return verifier.report();
}

std::string describe(const DerivationReport& report) {
    std::string text;
    for (const auto& check : report.files) {
        const char* result = "is not here";
        if (check.result == DerivationCheck::Result::same) result = "is the same";
        if (check.result == DerivationCheck::Result::differs) result = "DIFFERS";
        text += fmt::format("{:<18} {} {}\n", check.what, visible(check.name), result);
    }
    text += fmt::format("made by {}\n", report.made_by);
    if (!report.verified()) return text + "The statement does not hold.\n";
    return text + (report.rebuilt ? "The file was made again, with the same bytes.\n"
                                  : "Every file that is here is the one that the statement names; name the source "
                                    "(--source) to have the file made again.\n");
}

}  // namespace cerebellum
