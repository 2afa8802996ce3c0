#pragma once

#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cerebellum/evaluate/figures.h"
#include "cerebellum/journal/journal.h"
#include "cerebellum/pipeline/aim.h"
#include "cerebellum/pipeline/session.h"

namespace cerebellum {

/// The types that differ from the source's: what a mix is called in the journal.
TypeMap changed_types(const GgufFile& source, const TypeMap& types);

/// Parts of the text that whole mixes are measured on. `measured` is what single damages are measured on; `search` and
/// `confirm` are the other windows of the calibration text, which the allocation has not seen.
enum class TextPart { measured, search, confirm, selection, test };
/// As the journal has it: "measured", "search", …
std::string_view part_name(TextPart part);
/// A part's windows, and their labels where the text is labelled. Every first few of the selection's are spread over
/// the text.
TokenWindows windows_of(Session& session, TextPart part);
std::vector<std::string> domains_of(Session& session, TextPart part);

/// All windows of a part.
inline constexpr std::size_t all_windows = std::numeric_limits<std::size_t>::max();

/// What a mix counts as that has no figures: its weights cannot be stored so, or its damage is no number in any way
/// that was tried. Nats per position: more than anything that was ever measured, so that nothing chooses it.
inline constexpr double unusable_kld = 1e3;
bool is_usable(std::span<const WindowScore> scores);
bool is_usable(const MixMeasurement& mix);

/// Measures whole mixes on a part of the text, or on its first `n_windows`, by replay or, where that is not possible,
/// through whole files. What the journal holds is not measured again; what is new is in it, in groups, before the next
/// is measured. In the order given, `kind` as the journal keeps it. A row has `n_windows` windows, though the journal
/// may hold more. A mix that comes to no figures is warned of, not kept, and has rows that are not usable.
std::vector<MixMeasurement> measure_mixes(Session& session, std::span<const TypeMap> mixes, TextPart part,
                                          std::string_view kind, Progress& progress,
                                          std::size_t n_windows = all_windows);

/// The same as scores, windows counted as the aim's profile has it.
std::vector<std::vector<WindowScore>> measure_scores(Session& session, std::span<const TypeMap> mixes, TextPart part,
                                                     std::string_view kind, const Aim& aim, Progress& progress,
                                                     std::size_t n_windows = all_windows);

/// Both on all windows of several parts, each in one entry of the result, in the order given. Every mix is replayed
/// once over what is missing of all parts, so that its tensors are quantized once; what is new of them is recorded
/// together.
std::vector<std::vector<MixMeasurement>> measure_mixes(Session& session, std::span<const TypeMap> mixes,
                                                       std::span<const TextPart> parts, std::string_view kind,
                                                       Progress& progress);
std::vector<std::vector<std::vector<WindowScore>>> measure_scores(Session& session, std::span<const TypeMap> mixes,
                                                                  std::span<const TextPart> parts,
                                                                  std::string_view kind, const Aim& aim,
                                                                  Progress& progress);

std::vector<WindowScore> window_scores(const MixMeasurement& mix);

}  // namespace cerebellum
