#pragma once

#include <cstdint>

#include "cerebellum/pipeline/quantize.h"

namespace cerebellum {

/// Refuses everything that can be refused before the long work, warns of what makes the result less than was hoped for,
/// and returns the budget in bytes: the size asked for, or for another goal the source's. Throws UsageError where
/// options contradict each other, and Error.
std::uint64_t check_job(Session& session, const QuantizeOptions& options, Progress& progress);

/// Says at the begin of every stage what it and the rest will take, where the job is long enough for that to matter.
void announce(Session& session, const QuantizeOptions& options);

}  // namespace cerebellum
