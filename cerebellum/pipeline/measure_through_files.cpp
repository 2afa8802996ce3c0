#include "cerebellum/pipeline/measure_through_files.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "cerebellum/build/build_gguf.h"
#include "cerebellum/core/figure_error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/leftovers.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/evaluate/built_file.h"
#include "cerebellum/sweep/figure_check.h"

namespace cerebellum {

namespace {

/// Files under way at the same time: they share the source's evaluation of every window.
constexpr std::size_t at_once = 4;

}  // namespace

std::vector<std::vector<WindowScore>> score_through_files(const FileTrials& trials, std::span<const TypeMap> mixes,
                                                          const TokenWindows& windows, Progress& progress) {
    std::vector<std::vector<WindowScore>> scores;
    NoProgress silent;
    for (std::size_t begin = 0; begin < mixes.size(); begin += at_once) {
        progress.check();
        const auto group = mixes.subspan(begin, std::min(at_once, mixes.size() - begin));
        std::vector<ScratchFile> files;
        std::vector<std::filesystem::path> paths;
        for (const auto& types : group) {
            files.emplace_back(trials.folder / fmt::format(".cerebellum-trial-{}-{}.gguf", getpid(), paths.size()));
            remember_leftover(files.back().path());
            paths.push_back(files.back().path());
            Recipe recipe;
            recipe.types = types;
            BuildOptions options;
            options.threads = trials.threads;
            options.overwrite = true;
            options.tensor_order = trials.tensor_order;
            options.provenance = Provenance::none;
            build_gguf(trials.source, recipe, &trials.imatrix, paths.back(), options, silent);
        }
        auto of_group = score_files(trials.model, paths, windows, trials.threads, silent, trials.place);
        std::ranges::move(of_group, std::back_inserter(scores));
    }
    return scores;
}

SweepSummary measure_through_files(const FileTrials& trials, std::span<const TensorPlan> plan,
                                   const TokenWindows& windows, FigureStore& figures, Progress& progress) {
    SweepSummary summary;
    struct Pair {
        std::string tensor;
        Encoding type;
        std::size_t begin, end;  // windows
    };
    std::vector<Pair> pairs;
    for (const auto& tensor : plan)
        for (const auto type : tensor.types) {
            if (figures.find_unusable(tensor.name, type_name(type))) continue;
            const auto known = figures.find(tensor.name, type_name(type), Tier::full);
            const std::size_t begin = known ? known->windows() : 0, end = tensor.fast_windows(windows.size());
            if (begin >= end)
                ++summary.resumed;
            else
                pairs.push_back({tensor.name, type, begin, end});
        }
    progress.begin("measuring through whole files", static_cast<double>(pairs.size()));
    for (std::size_t begin = 0, next = 0, at_most = at_once; begin < pairs.size(); begin = next) {
        // Files under way together run on the same windows.
        std::size_t size = 1;
        while (size < std::min(at_most, pairs.size() - begin) && pairs[begin + size].begin == pairs[begin].begin &&
               pairs[begin + size].end == pairs[begin].end)
            ++size;
        const auto group = std::span(pairs).subspan(begin, size);
        const TokenWindows part(windows.begin() + static_cast<std::ptrdiff_t>(pairs[begin].begin),
                                windows.begin() + static_cast<std::ptrdiff_t>(pairs[begin].end));
        const auto start = std::chrono::steady_clock::now();
        std::vector<TypeMap> mixes;
        for (const auto& pair : group) {
            mixes.push_back(trials.base);
            mixes.back()[pair.tensor] = pair.type;
        }
        std::vector<std::vector<WindowScore>> scores;
        std::string why;
        try {
            scores = score_through_files(trials, mixes, part, progress);
        } catch (const FigureError& error) {
            if (size > 1) {  // one of them is to blame
                at_most = 1;
                next = begin;
                continue;
            }
            why = error.what();
        }
        at_most = at_once;
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
        for (std::size_t i = 0; i < group.size(); ++i) {
            Measurement measurement;
            measurement.tensor = group[i].tensor;
            measurement.type = type_name(group[i].type);
            measurement.tier = Tier::full;
            if (const auto known = figures.find(measurement.tensor, measurement.type, Tier::full)) measurement = *known;
            measurement.wall_s += seconds.count() / static_cast<double>(group.size());
            if (why.empty())
                for (const auto& score : scores[i]) {
                    measurement.counts.push_back(score.count);
                    measurement.kld.push_back(score.kld);
                    measurement.delta_nll.push_back(score.nll - score.reference_nll);
                    measurement.top1_agree.push_back(score.same_top);
                }
            if (const auto wrong = why.empty() ? why_wrong(measurement) : why; wrong.empty()) {
                figures.record(measurement);
                ++summary.full_measured;
            } else {
                figures.record_unusable({measurement.tensor, measurement.type, Tier::full, wrong});
                ++summary.unusable;
            }
        }
        summary.tokens += static_cast<double>(size * part.size() * part.front().size());
        next = begin + size;
        progress.advance(static_cast<double>(next), group.back().tensor);
    }
    progress.end();
    return summary;
}

}  // namespace cerebellum
