#pragma once

#include "cerebellum/core/progress.h"
#include "cerebellum/distribute/group.h"
#include "cerebellum/pipeline/session.h"

namespace cerebellum {

/// What a rank of a group runs with: of several devices, as "CUDA0,CUDA1", the one for its place on its machine, and
/// its share of the machine's cores. Throws UsageError where there are several devices and but one process.
RunOptions options_of_rank(RunOptions options, const Group& group);

/// On the other ranks than 0: opens the model, measures what rank 0 deals, and leaves nothing behind. Returns whether
/// it came to a good end; where it did not, rank 0 has been told why.
bool take_part(Group& group, RunOptions options, Progress& progress);

}  // namespace cerebellum
