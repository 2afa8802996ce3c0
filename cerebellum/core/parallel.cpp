#include "cerebellum/core/parallel.h"

#include <fmt/format.h>

#include <fstream>
#include <set>
#include <string>

namespace cerebellum {

int physical_cores() {
    const int logical = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
    // Linux lists, for every logical processor, the siblings that share its core.
    std::set<std::string> cores;
    for (int i = 0; i < logical; ++i) {
        std::ifstream file(fmt::format("/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list", i));
        std::string siblings;
        if (!std::getline(file, siblings)) return logical;
        cores.insert(siblings);
    }
    return std::max(1, static_cast<int>(cores.size()));
}

}  // namespace cerebellum
