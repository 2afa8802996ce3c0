#pragma once

#include <string>
#include <vector>

#include "cerebellum/core/progress.h"
#include "cerebellum/journal/journal.h"

namespace cerebellum {

/// What a journal has no usable figures of, one line for every type and reason, and one for tensors that keep their
/// type because none of their types has any.
std::vector<std::string> describe_unusable(const Journal& journal);
/// Warns of these.
void warn_of_unusable(const Journal& journal, Progress& progress);

}  // namespace cerebellum
