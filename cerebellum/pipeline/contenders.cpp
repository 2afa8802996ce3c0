#include "cerebellum/pipeline/contenders.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <set>

#include "cerebellum/build/build_gguf.h"
#include "cerebellum/build/recipe.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/llama/presets.h"

namespace cerebellum {

namespace {

/// Whether ggml can make these types from this source and importance matrix; mixes that llama-quantize would refuse are
/// no contenders.
bool can_be_built(Session& session, const TypeMap& types) {
    try {
        check_recipe(session.source(),
                     {.types = types,
                      .source_fingerprint = {},
                      .source_name = {},
                      .file_bytes = 0,
                      .predicted_kld = 0.0,
                      .provenance = {}},
                     &session.imatrix());
        return true;
    } catch (const Error&) {
        return false;
    }
}

std::uint64_t stock_bytes(const Session& session, const TypeMap& types) {
    return predicted_file_bytes(session.source(), types, std::nullopt, Provenance::none);
}

/// Every distinct uniform file of at most the budget, those with the same type together.
std::vector<Contender> find_uniform(Session& session, std::uint64_t budget_bytes) {
    const auto& source = session.source();
    std::vector<Contender> uniform;
    std::set<TypeMap> known;
    const auto offer = [&](ggml_type type, std::optional<ggml_type> embedding) {
        const auto file_type = file_type_of(type);
        if (!file_type) return;
        Contender contender;
        contender.kind = Contender::Kind::pure;
        contender.name = fmt::format("pure {}", type_name(type)) +
                         (embedding ? fmt::format(", embedding {}", type_name(*embedding)) : "");
        contender.types =
            dry_run(source.path(),
                    {.file_type = *file_type, .has_imatrix = true, .pure = true, .token_embedding_type = embedding})
                .types;
        contender.bytes = stock_bytes(session, contender.types);
        contender.fits = contender.bytes <= budget_bytes;
        if (contender.fits && can_be_built(session, contender.types) && known.insert(contender.types).second)
            uniform.push_back(std::move(contender));
    };
    const auto* embedding_tensor = source.find("token_embd.weight");
    for (const auto type : default_types()) {
        offer(type, std::nullopt);
        for (const auto embedding : default_types())
            if (embedding_tensor != nullptr && type_fits_row(embedding, embedding_tensor->row_length()))
                offer(type, embedding);
    }
    return uniform;
}

}  // namespace

std::string_view kind_name(Contender::Kind kind) {
    switch (kind) {
        case Contender::Kind::source:
            return "source";
        case Contender::Kind::ours:
            return "ours";
        case Contender::Kind::preset:
            return "preset";
        case Contender::Kind::pure:
            return "pure";
    }
    return "";
}

std::string_view measured_by(const Contender& contender) {
    if (contender.built || contender.kind == Contender::Kind::source) return "libllama";
    return contender.predicted_only() ? "predicted" : "replay";
}

void replay_scores(Session& session, std::span<Contender* const> contenders, std::span<const TextPart> parts,
                   const Aim& aim, Progress& progress) {
    std::vector<TypeMap> mixes;
    for (const auto* contender : contenders) mixes.push_back(contender->types);
    auto scores = measure_scores(session, mixes, parts, "contender", aim, progress);
    for (std::size_t p = 0; p < parts.size(); ++p) {
        const auto where = parts[p] == TextPart::test ? &Contender::test : &Contender::selection;
        for (std::size_t i = 0; i < contenders.size(); ++i) contenders[i]->*where = std::move(scores[p][i]);
    }
}

double selection_cost(const Contender& contender, Objective objective) {
    return mean_cost(contender.selection, objective).mean;
}

std::vector<Contender> find_contenders(Session& session, std::uint64_t budget_bytes) {
    std::vector<Contender> all;
    for (const auto& preset : stock_presets()) {
        Contender contender;
        contender.name = preset.name;
        contender.types = dry_run(session.source().path(), {.file_type = preset.file_type, .has_imatrix = true}).types;
        if (!can_be_built(session, contender.types)) continue;
        contender.bytes = stock_bytes(session, contender.types);
        contender.fits = contender.bytes <= budget_bytes;
        all.push_back(std::move(contender));
    }
    std::ranges::stable_sort(all, {}, &Contender::bytes);
    const auto larger = std::ranges::find(all, false, &Contender::fits);
    if (larger != all.end()) all.erase(larger + 1, all.end());
    if (!all.empty() && all.front().fits) return all;

    auto uniform = find_uniform(session, budget_bytes);
    std::ranges::stable_sort(uniform, {}, &Contender::bytes);
    for (auto& preset : all) uniform.push_back(std::move(preset));
    return uniform;
}

}  // namespace cerebellum
