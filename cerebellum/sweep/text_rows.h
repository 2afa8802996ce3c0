#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "cerebellum/replay/engine.h"

namespace cerebellum {

/// Whether a weight is read only where the text says which rows matter: it is looked up by an input of the graph, such
/// as the tokens, or makes the logits.
bool reads_text_by_rows(const Topology& topology, const std::string& weight);

/// The rows of such a weight that these windows need, ascending: those that are looked up and, where it makes the
/// logits, the tokens with the most of `mass` (one number per token) that together hold all but the share `neglected`
/// of it. A row left out would have changed only what has that share of the probability. Empty where it is most of the
/// rows anyway.
std::vector<std::int64_t> text_rows(const Topology& topology, const std::string& weight,
                                    std::span<const Window> windows, std::span<const double> mass, double neglected);

}  // namespace cerebellum
