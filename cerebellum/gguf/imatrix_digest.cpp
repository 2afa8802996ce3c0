#include "cerebellum/gguf/imatrix_digest.h"

#include <fmt/format.h>

#include <span>

#include "cerebellum/core/hash.h"

namespace cerebellum {

std::string imatrix_sha256(const Imatrix& imatrix) {
    Sha256 hash;
    for (const auto& dataset : imatrix.datasets) hash.update(fmt::format("{}:{}\n", dataset.size(), dataset));
    hash.update(fmt::format("{} {}\n", imatrix.chunk_count, imatrix.chunk_size));
    for (const auto& [name, entry] : imatrix.entries) {
        hash.update(fmt::format("{} {} {} {}\n", name, entry.n_cols, entry.counts.size(), entry.in_sum2.size()));
        hash.update(std::as_bytes(std::span(entry.counts)));
        hash.update(std::as_bytes(std::span(entry.in_sum2)));
    }
    return hash.finish();
}

}  // namespace cerebellum
