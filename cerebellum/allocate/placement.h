#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace cerebellum {

/// A tensor of a finished allocation that is to be put into one of two memories.
struct PlacedTensor {
    enum class Where {
        either,
        host,            // looked up row by row, as an embedding is: llama.cpp keeps it in host memory
        host_and_either  // a tied embedding: the host's copy is for looking up, and the head reads one of either
    };
    std::string name;
    std::uint64_t bytes = 0;
    double read_per_token = 1.0;  // share of it that writing one token reads: used experts of all experts
    Where where = Where::either;
    double preference = 1.0;  // how much more a byte of it is wanted on the device than a byte of others
};

struct Placement {
    std::vector<std::string> on_host;  // of those that could be on the device, in the order given
    std::uint64_t device_bytes = 0;
    std::uint64_t host_bytes = 0;
    double host_bytes_per_token = 0.0;  // read from host memory for every token
    bool exact = false;                 // no other placement does better, preferences counted
};

/// Fills the device so that as little as possible is read from host memory for a token (host memory being the slower
/// one), at most `device_budget` bytes on the device. A knapsack: see solve_knapsack. A device
/// that holds nothing is always possible.
Placement place(const std::vector<PlacedTensor>& tensors, std::uint64_t device_budget);

/// Regular expressions of llama.cpp's --override-tensor for exactly these tensors, one per role in the order of first
/// appearance: "^blk\.(3|4|5)\.ffn_up_exps\.weight$".
std::vector<std::string> override_patterns(const std::vector<std::string>& tensors);

}  // namespace cerebellum
