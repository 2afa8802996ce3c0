#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "cerebellum/evaluate/figures.h"
#include "cerebellum/journal/journal.h"
#include "cerebellum/pipeline/session.h"

namespace cerebellum {

/// The types that differ from the source's: what a mix is called in the journal.
TypeMap changed_types(const GgufFile& source, const TypeMap& types);

/// Measures whole mixes on a part of the text ("measured", "selection", "test"), by replay or, where that is not
/// possible, through whole files. What the journal holds is not measured again; what is new is in it, in groups, before
/// the next is measured. In the order given, `kind` as the journal keeps it.
std::vector<MixMeasurement> measure_mixes(Session& session, std::span<const TypeMap> mixes, std::string_view part,
                                          std::string_view kind, Progress& progress);

std::vector<WindowScore> window_scores(const MixMeasurement& mix);

}  // namespace cerebellum
