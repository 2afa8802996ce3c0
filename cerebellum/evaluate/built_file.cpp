#include "cerebellum/evaluate/built_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "cerebellum/core/error.h"
#include "cerebellum/core/parallel.h"
#include "cerebellum/llama/placement.h"
#include "cerebellum/llama/same_tokenizer.h"
#include "cerebellum/replay/score_kernels.h"

namespace cerebellum {

namespace {

class FileScorer {
  public:
    FileScorer(const TokenWindows& windows, int threads, std::size_t n_evaluations, Progress& progress)
        : windows_(windows),
          n_tokens_(static_cast<std::int64_t>(windows.front().size())),
          threads_(threads),
          progress_(progress) {
        progress_.begin("verifying built files", static_cast<double>(windows.size() * n_evaluations));
    }

    /// Of files that are run side by side with the source.
    std::vector<std::vector<WindowScore>> score(const Model& source, std::span<const std::filesystem::path> files,
                                                const RunPlace& place) {
        const auto n_vocab = static_cast<std::int64_t>(source.n_vocab());
        std::vector<Model> models;
        std::vector<Decoder> decoders;
        Decoder reference(source, static_cast<int>(n_tokens_), threads_);
        for (const auto& file : files) {
            models.push_back(Model::load_to_run(file, place));
            check_same_tokenizer(source, models.back());
        }
        for (const auto& model : models) decoders.emplace_back(model, static_cast<int>(n_tokens_), threads_);

        std::vector<std::vector<WindowScore>> scores(files.size());
        std::vector<float> log_p(static_cast<std::size_t>(n_tokens_ * n_vocab));
        for (const auto& window : windows_) {
            progress_.check();
            const auto expected = reference.decode(window);
            parallel_chunks(n_tokens_, 8, threads_, [&](std::int64_t begin, std::int64_t end) {
                for (auto i = begin; i < end; ++i)
                    log_softmax_row(expected.data() + i * n_vocab, log_p.data() + i * n_vocab, n_vocab);
            });
            progress_.advance(++done_, "windows");
            for (std::size_t f = 0; f < files.size(); ++f) {
                progress_.check();
                scores[f].push_back(compare(window, decoders[f].decode(window), log_p));
                if (!std::isfinite(scores[f].back().kld))
                    throw Error(fmt::format("{} gives probabilities that are not finite numbers", files[f].string()));
                progress_.advance(++done_, "windows");
            }
        }
        return scores;
    }

  private:
    WindowScore compare(std::span<const Token> window, std::span<const float> logits,
                        std::span<const float> log_p) const {
        const auto n_vocab = static_cast<std::int64_t>(logits.size()) / n_tokens_;
        std::vector<PositionScore> positions(static_cast<std::size_t>(n_tokens_));
        parallel_chunks(n_tokens_, 8, threads_, [&](std::int64_t begin, std::int64_t end) {
            for (auto i = begin; i < end; ++i) {
                const Token target = i + 1 < n_tokens_ ? window[static_cast<std::size_t>(i + 1)] : -1;
                positions[static_cast<std::size_t>(i)] =
                    score_row(logits.data() + i * n_vocab, log_p.data() + i * n_vocab, n_vocab, target);
            }
        });
        return sum_scores(positions, burn_in(static_cast<int>(n_tokens_)));
    }

    const TokenWindows& windows_;
    std::int64_t n_tokens_;
    int threads_;
    Progress& progress_;
    double done_ = 0.0;
};

}  // namespace

std::vector<std::vector<WindowScore>> score_files(const Model& source, std::span<const std::filesystem::path> files,
                                                  const TokenWindows& windows, int threads, Progress& progress,
                                                  const RunPlace& place) {
    std::vector<std::vector<WindowScore>> scores(files.size());
    if (windows.empty()) return scores;
    const auto n_tokens = static_cast<int>(windows.front().size());
    const auto groups = plan_side_by_side(source.path(), files,
                                          working_bytes(GgufFile::open(source.path()), n_tokens, n_tokens), place);
    FileScorer scorer(windows, threads, files.size() + groups.size(), progress);
    for (const auto& group : groups) {
        auto placed = place;
        placed.gpu_layers = group.gpu_layers;
        const auto of_group = files.subspan(group.first, group.last - group.first);
        auto scored = place.on_cpu() ? scorer.score(source, of_group, placed)
                                     : scorer.score(Model::load_to_run(source.path(), placed), of_group, placed);
        std::ranges::move(scored, scores.begin() + static_cast<std::ptrdiff_t>(group.first));
    }
    progress.end();
    return scores;
}

}  // namespace cerebellum
