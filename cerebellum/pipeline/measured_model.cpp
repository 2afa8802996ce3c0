#include "cerebellum/pipeline/measured_model.h"

#include <fmt/format.h>

#include "cerebellum/build/build_gguf.h"
#include "cerebellum/core/error.h"
#include "cerebellum/pipeline/allocation.h"
#include "cerebellum/pipeline/session.h"

namespace cerebellum {

MeasuredModel open_measured(const std::filesystem::path& model, const std::filesystem::path& path, const Aim& aim) {
    auto source = GgufFile::open(model);
    auto journal = Journal::open_existing(path);
    const auto& fields = journal.identity().fields;
    if (!fields.contains("measuring") || fields.at("measuring") != measuring_version)
        throw Error(fmt::format(
            "{} was measured in another way by another version; measure again with another --journal", path.string()));
    if (const auto of = fields.find("model"); of == fields.end() || of->second != source.fingerprint())
        throw Error(fmt::format("{} was measured on another model than {}; name the right journal or measure again",
                                path.string(), model.string()));
    auto imatrix = imatrix_from_journal(journal);
    const auto info =
        imatrix ? std::optional(imatrix_info(*imatrix, journal.get_meta("imatrix_name").value_or(""))) : std::nullopt;
    auto problem = make_problem(source, journal, info, aim);
    return {std::move(source), std::move(journal), std::move(imatrix), std::move(problem)};
}

}  // namespace cerebellum
