#include "cerebellum/pipeline/scaled_model.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <system_error>

#include "cerebellum/build/build_gguf.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/hash.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/core/size.h"
#include "cerebellum/quantize/scale_rows.h"

namespace cerebellum {

namespace fs = std::filesystem;

namespace {

/// The mean squares of inputs that are divided as the scalings say.
Imatrix scaled_imatrix(Imatrix imatrix, std::span<const ChannelScaling> scalings) {
    for (const auto& [name, scaling] : scaling_by_tensor(scalings))
        if (const auto entry = imatrix.entries.find(name); entry != imatrix.entries.end())
            scale_importance(scaling.inputs, entry->second.in_sum2);
    return imatrix;
}

std::string artifact_name(Session& session) {
    auto name = fmt::format("scaling, rounding {}", static_cast<int>(session.rounding()));
    for (const auto type : session.options().types) name += "," + type_name(type);
    return name;
}

void write_copy(Session& original, std::span<const ChannelScaling> scalings, const fs::path& path, Progress& progress) {
    const auto& source = original.source();
    std::error_code ignored;
    if (fs::exists(path, ignored)) return;  // the name says what it is, and it appears only when it is complete
    progress.info(
        fmt::format("writing a scaled copy of the source ({}) to {}", format_bytes(source.file_size()), path.string()));
    Recipe recipe;
    recipe.source_fingerprint = source.fingerprint();
    recipe.source_name = source.path().filename().string();
    recipe.scaling.assign(scalings.begin(), scalings.end());
    BuildOptions options;
    options.threads = original.threads();
    build_gguf(source, recipe, nullptr, path, options, progress);
}

}  // namespace

ScalingSearch find_scaling(Session& session, Progress& progress) {
    const auto name = artifact_name(session);
    if (const auto stored = session.journal().get_artifact(name)) return scaling_search_from_json(*stored);
    auto search = search_scaling(session, progress);
    session.journal().put_artifact(name, json_to_text(to_json(search)));
    return search;
}

ScaledModel::ScaledModel(Session& original, std::span<const ChannelScaling> scalings, Progress& progress) {
    auto list = nlohmann::json::array();
    for (const auto& scaling : scalings) list.push_back(to_json(scaling));
    constexpr std::size_t digits = 12;
    const auto stem = fmt::format("{}.scaled-{}", original.options().journal.string(),
                                  sha256(json_to_text(list) + original.source().fingerprint()).substr(0, digits));
    file_ = stem + ".gguf";
    auto imatrix = scaled_imatrix(original.imatrix(), scalings);
    write_copy(original, scalings, file_, progress);
    original.rest();
    auto options = original.options();
    options.model = file_;
    options.journal = stem + ".db";
    session_ = std::make_unique<Session>(std::move(options), progress);
    session_->adopt(original.text(), std::move(imatrix));
}

void ScaledModel::discard_file() {
    std::error_code ignored;
    fs::remove(file_, ignored);
}

}  // namespace cerebellum
