#pragma once

#include <cstddef>
#include <functional>
#include <span>
#include <vector>

namespace cerebellum {

/// Damage of some entrants, given as indices, on the first `windows` windows of a text.
using RaceCosts = std::function<std::vector<double>(std::span<const std::size_t> entrants, std::size_t windows)>;

/// Successive halving (Karnin, Koren and Somekh, ICML 2013; a third instead of a half): all entrants on the first few
/// windows, the best third of them, but not fewer than `finalists`, on twice as many, and so on, the last on all
/// `n_windows`. Begins with an eighth of the windows, but not with fewer than `least_windows`. Returns those that got
/// to all windows, the best first; ties go to the smaller index. Where all is measured, costs are all that decides: the
/// same costs give the same answer.
std::vector<std::size_t> run_race(std::size_t n_entrants, std::size_t n_windows, std::size_t least_windows,
                                  std::size_t finalists, const RaceCosts& costs);

}  // namespace cerebellum
