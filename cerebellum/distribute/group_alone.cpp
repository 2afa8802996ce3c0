// The group of a build without MPI; group_mpi.cpp takes its place where MPI is found (CEREBELLUM_MPI).
#include <fmt/format.h>

#include "cerebellum/core/error.h"
#include "cerebellum/distribute/group.h"

namespace cerebellum {

std::unique_ptr<Group> Group::join() {
    if (const int processes = launched_processes(); processes > 1)
        throw Error(
            fmt::format("{} processes were started, but this cerebellum was built without MPI; build it again with "
                        "Open MPI's development files installed, or use --shard",
                        processes));
    return std::make_unique<LoneGroup>();
}

}  // namespace cerebellum
