#include "cerebellum/pipeline/race.h"

#include <algorithm>
#include <map>
#include <numeric>

namespace cerebellum {

std::vector<std::size_t> run_race(std::size_t n_entrants, std::size_t n_windows, std::size_t least_windows,
                                  std::size_t finalists, const RaceCosts& costs) {
    std::vector<std::size_t> left(n_entrants);
    std::iota(left.begin(), left.end(), std::size_t{0});
    // No rung is worth its replays where all of them are finalists anyway.
    std::size_t windows = n_entrants <= finalists ? n_windows : std::max((n_windows + 7) / 8, least_windows);
    for (;;) {
        windows = std::min(windows, n_windows);
        const auto measured = costs(left, windows);
        std::map<std::size_t, double> cost;
        for (std::size_t i = 0; i < left.size(); ++i) cost[left[i]] = measured[i];
        std::ranges::stable_sort(left, {}, [&](std::size_t entrant) { return cost.at(entrant); });
        if (windows == n_windows) return left;
        left.resize(std::min(left.size(), std::max(finalists, (left.size() + 2) / 3)));
        std::ranges::sort(left);
        windows = left.size() <= finalists ? n_windows : 2 * windows;
    }
}

}  // namespace cerebellum
