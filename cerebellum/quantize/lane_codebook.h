#pragma once

#include <ggml.h>

#include <cstdint>
#include <span>
#include <vector>

namespace cerebellum::lanes {

/// The points that parts of 8 weights (of 4: IQ3) are rounded to, and for every other place the points near it.
///
/// A place is a level 0 … levels − 1 for each weight of the part. Packed, the first one's level is in the lowest bits,
/// the next one's `bits` higher. Its key has the first one's level as its last digit, to base `levels`, so that
/// all_places has no holes.
struct Codebook {
    /// `at_once`: of how many neighbours each list is a multiple. What fills it up is the last neighbour again.
    Codebook(ggml_type type, int at_once);

    struct Place {
        std::uint32_t first;  // of its neighbours
        std::uint16_t count;  // none: a point of the codebook
    };
    int levels, bits;
    std::vector<Place> all_places;          // by key
    std::vector<std::uint16_t> neighbours;  // packed; in the order in which ggml tries them
    std::vector<std::uint16_t> index;       // that is stored for a point, by packed place
    std::vector<std::uint16_t> points;      // packed, by index

  private:
    void list_neighbours(int part, int n_distances, int at_once);
};

/// How a type packs the codebook's index of its first part of weights.
struct CodebookLayout {
    ggml_type type;
    int part;  // weights of a point
    int n_points;
    int low, high;    // bytes of the index in a block; high is 0 where there is none
    int n_distances;  // neighbours are the points at so many of the least distances
};
std::span<const CodebookLayout> codebook_layouts();

}  // namespace cerebellum::lanes
