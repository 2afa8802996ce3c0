#pragma once

#include <ggml.h>

#include <filesystem>
#include <span>
#include <vector>

#include "cerebellum/core/progress.h"
#include "cerebellum/llama/model.h"

namespace cerebellum {

struct SpeedSettings {
    int prompt_tokens = 512;     // read at once, as llama-bench's pp512
    int generated_tokens = 128;  // one by one, as its tg128
    int context = 0;             // tokens of each sequence that are in the cache already (its --n-depth)
    int parallel = 1;            // sequences that generate side by side
    ggml_type cache_type = GGML_TYPE_F16;
    int repetitions = 5;
    int threads = 1;
    RunPlace place = {.devices = {}, .gpu_layers = 0, .repack = true};  // repacked, as llama-bench does
};

/// Tokens per second, one figure a repetition.
struct SpeedFigures {
    std::vector<double> prompt;
    std::vector<double> generation;  // of all sequences together
};

struct Spread {
    double median = 0.0, mean = 0.0, deviation = 0.0;  // standard deviation, 0 with one figure
};
Spread spread_of(std::vector<double> figures);

/// Times all files in turn, repetition by repetition, so that a machine that gets warmer or busier does so for all of
/// them. Each is warmed up first, not timed.
std::vector<SpeedFigures> measure_speed(std::span<const std::filesystem::path> files, const SpeedSettings& settings,
                                        Progress& progress);

}  // namespace cerebellum
