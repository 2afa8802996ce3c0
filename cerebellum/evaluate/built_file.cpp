#include "cerebellum/evaluate/built_file.h"

#include <fmt/format.h>

#include <cmath>

#include "cerebellum/core/error.h"
#include "cerebellum/core/parallel.h"
#include "cerebellum/replay/score_kernels.h"

namespace cerebellum {

std::vector<std::vector<WindowScore>> score_files(const Model& source, std::span<const std::filesystem::path> files,
                                                  const TokenWindows& windows, int threads, Progress& progress) {
    std::vector<std::vector<WindowScore>> scores(files.size());
    if (windows.empty()) return scores;
    const auto n_tokens = static_cast<std::int64_t>(windows.front().size());
    const auto n_vocab = static_cast<std::int64_t>(source.n_vocab());
    std::vector<Model> models;
    std::vector<Decoder> decoders;
    Decoder reference(source, static_cast<int>(n_tokens), threads);
    for (const auto& file : files) {
        models.push_back(Model::load(file));
        if (models.back().n_vocab() != source.n_vocab())
            throw Error(
                fmt::format("{} has a vocabulary of {} tokens and the source one of {}; they are not the same model",
                            file.string(), models.back().n_vocab(), source.n_vocab()));
    }
    for (const auto& model : models) decoders.emplace_back(model, static_cast<int>(n_tokens), threads);

    std::vector<float> log_p(static_cast<std::size_t>(n_tokens * n_vocab));
    std::vector<PositionScore> positions(static_cast<std::size_t>(n_tokens));
    progress.begin("verifying built files", static_cast<double>(windows.size() * (files.size() + 1)));
    double done = 0.0;
    for (const auto& window : windows) {
        progress.check();
        const auto expected = reference.decode(window);
        parallel_chunks(n_tokens, 8, threads, [&](std::int64_t begin, std::int64_t end) {
            for (auto i = begin; i < end; ++i)
                log_softmax_row(expected.data() + i * n_vocab, log_p.data() + i * n_vocab, n_vocab);
        });
        progress.advance(++done, "windows");
        for (std::size_t f = 0; f < files.size(); ++f) {
            progress.check();
            const auto logits = decoders[f].decode(window);
            parallel_chunks(n_tokens, 8, threads, [&](std::int64_t begin, std::int64_t end) {
                for (auto i = begin; i < end; ++i) {
                    const Token target = i + 1 < n_tokens ? window[static_cast<std::size_t>(i + 1)] : -1;
                    positions[static_cast<std::size_t>(i)] =
                        score_row(logits.data() + i * n_vocab, log_p.data() + i * n_vocab, n_vocab, target);
                }
            });
            scores[f].push_back(sum_scores(positions, burn_in(static_cast<int>(n_tokens))));
            if (!std::isfinite(scores[f].back().kld))
                throw Error(fmt::format("{} gives probabilities that are not finite numbers", files[f].string()));
            progress.advance(++done, "windows");
        }
    }
    progress.end();
    return scores;
}

}  // namespace cerebellum
