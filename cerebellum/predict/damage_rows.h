#pragma once

#include <nlohmann/json_fwd.hpp>
#include <span>

#include "cerebellum/journal/journal.h"

namespace cerebellum {

/// One row for each tensor and type that `measurements` tell of: tensor, type, tier, kld with kld_error and kld_95, and
/// where they were measured delta_nll, top1_agree (with tokens and windows) and local_energy, each with its error.
/// Errors that are not known are null.
nlohmann::json damage_rows(std::span<const Measurement> measurements);

}  // namespace cerebellum
