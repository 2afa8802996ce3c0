#pragma once

#include <span>
#include <string>

#include "cerebellum/journal/journal.h"

namespace cerebellum {

/// SHA-256 (hexadecimal) of what was measured: identity and figures, not how long they took. Equal for journals from
/// which the same recipes follow.
std::string measurements_sha256(const JournalIdentity& identity, std::span<const Measurement> measurements,
                                std::span<const UnusableFigure> unusable = {});
/// Of all that a journal holds.
std::string measurements_sha256(const Journal& journal);

}  // namespace cerebellum
