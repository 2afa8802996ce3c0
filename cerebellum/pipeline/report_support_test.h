#pragma once

// For tests only: journals that nobody measured.

#include <cmath>
#include <filesystem>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "cerebellum/core/quant_type.h"
#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/journal/journal.h"
#include "cerebellum/pipeline/session.h"

namespace cerebellum::testing {

/// Writes figures for every matrix of these tensors in each of the types: in full for q2_K and q4_K, on half of the
/// windows, and in the fast tier for all others. Damage falls with the bits and differs between tensors and windows.
inline Journal invent_journal(const std::filesystem::path& path, std::span<const TensorInfo> tensors,
                              std::span<const ggml_type> types, const std::string& fingerprint,
                              std::size_t n_windows = 8) {
    auto journal = Journal::open(path, {{{"model", fingerprint},
                                         {"text", "invented"},
                                         {"tokens", "4096"},
                                         {"context", "512"},
                                         {"llama.cpp", "0.5.0"},
                                         {"measuring", measuring_version},
                                         {"device", "CPU"}}});
    journal.put_artifact("tensors", serialize(tensors));
    std::mt19937 random(5);
    std::lognormal_distribution<double> sensitivity(0.0, 1.2), noise(0.0, 0.25);
    constexpr double positions = 448.0;
    for (const auto& tensor : tensors) {
        if (tensor.n_rows() == 1) continue;
        const double of_tensor = 0.01 * sensitivity(random);
        for (const auto type : types) {
            if (type == tensor.type || !type_fits_row(type, tensor.row_length())) continue;
            const double kld = of_tensor * noise(random) * std::exp2(-1.8 * (bits_per_weight(type) - 1.5));
            const bool anchor = type == GGML_TYPE_Q2_K || type == GGML_TYPE_Q4_K;
            Measurement fast, full;
            fast.tensor = full.tensor = tensor.name;
            fast.type = full.type = type_name(type);
            fast.tier = Tier::fast;
            for (std::size_t w = 0; w < n_windows; ++w) {
                const double here = kld * noise(random);
                fast.local_energy.push_back(positions * 7.0 * here);
                fast.local_counts.push_back(positions);
                if (!anchor || w >= n_windows / 2) continue;
                full.counts.push_back(positions);
                full.kld.push_back(positions * here);
                full.delta_nll.push_back(positions * here * noise(random));
                full.top1_agree.push_back(positions * (1.0 - std::min(0.9, std::sqrt(here))));
                full.local_energy.push_back(positions * 7.0 * here);
                full.local_counts.push_back(positions);
            }
            journal.record(fast);
            if (anchor) journal.record(full);
        }
    }
    return journal;
}

/// A tensor of a model in F16.
inline TensorInfo invented_tensor(const std::string& name, std::int64_t row_length, std::int64_t rows) {
    TensorInfo tensor;
    tensor.name = name;
    tensor.type = GGML_TYPE_F16;
    tensor.shape = {row_length, rows, 1, 1};
    tensor.n_dims = rows > 1 ? 2 : 1;
    tensor.size_bytes = type_size_bytes(tensor.type, row_length, rows);
    return tensor;
}

}  // namespace cerebellum::testing
