#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <vector>

namespace cerebellum {

/// What one journal brought into a merged one.
struct MergedJournal {
    std::filesystem::path path;
    std::size_t added = 0;      // measurements, of mixes too, that none of the journals before it had
    std::size_t extended = 0;   // of which it had more windows
    std::size_t duplicate = 0;  // that were there already
};

/// Joins journals of the same settings, such as the shards of a sweep, in `output`. A journal that is there already
/// counts as the first of them and is added to.
///
/// Measurements of the same tensor, type and tier (mixes: of the same part and types) must agree in every window that
/// both have; how long they took does not count, and the one with more windows is kept. Remarks are those of the first
/// journal that has them.
///
/// Throws Error, naming what differs and the two files, where identities, artifacts (text, importance matrix) or
/// figures disagree. `output` is written in one step after all of that has been checked: it has everything, or what it
/// had before.
std::vector<MergedJournal> merge_journals(const std::filesystem::path& output,
                                          std::span<const std::filesystem::path> inputs);

}  // namespace cerebellum
