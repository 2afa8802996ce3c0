#pragma once

#include <filesystem>
#include <string>

namespace cerebellum {

/// Whether a device tells weights apart that differ in nothing but their type. For every pair of types of equal strides
/// one matrix of the model's second block is replayed as A, then as B, then as A, each several times over in the same
/// memory, and its products are compared with the CPU's. Prints one line per pair. Returns how many pairs disagree.
int check_type_pairs(const std::string& device, const std::filesystem::path& model);

/// How many pairs check_type_pairs() would find in a model; 0 where it cannot be read.
std::size_t count_type_pairs(const std::filesystem::path& model);

}  // namespace cerebellum
