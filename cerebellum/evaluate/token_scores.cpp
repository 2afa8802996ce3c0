#include "cerebellum/evaluate/token_scores.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>

#include "cerebellum/core/compressed_file.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/parallel.h"
#include "cerebellum/evaluate/llama_perplexity.h"
#include "cerebellum/llama/batch_decoder.h"
#include "cerebellum/llama/placement.h"
#include "cerebellum/llama/same_tokenizer.h"
#include "cerebellum/replay/engine.h"
#include "cerebellum/replay/score_kernels.h"

namespace cerebellum {

namespace {

constexpr int usual_batch = 2048;  // llama-perplexity's

/// A text cut into windows, and how it is fed to a model.
struct Plan {
    std::vector<Token> tokens;
    bool begins_with_bos = false;
    Token bos = 0;
    int context = 0;
    int n_windows = 0;
    int first = 0;          // position in the window whose logits are the first to be scored
    int batch_tokens = 0;   // of one evaluation: several windows, or a part of one
    bool last_too = false;  // logits of the last position as well, though nothing follows it

    int per_window() const { return context - 1 - first; }
    int side_by_side() const { return std::max(1, batch_tokens / context); }
};

Plan make_plan(const Model& model, std::string_view text, const TextScoring& scoring) {
    Plan plan;
    plan.tokens = model.tokenize_from_start(text);
    plan.begins_with_bos = model.adds_bos();
    plan.bos = model.first_token();
    plan.context = scoring.context;
    const auto windows = static_cast<int>(plan.tokens.size()) / scoring.context;
    if (windows < 2)
        throw Error(
            fmt::format("the text has {} tokens; two windows of {} are the least, so give more text or a smaller "
                        "--ctx",
                        plan.tokens.size(), scoring.context));
    plan.n_windows = scoring.max_windows > 0 ? std::min(windows, scoring.max_windows) : windows;
    if (scoring.convention == TextConvention::llama_perplexity) {
        plan.first = scoring.context / 2;
        plan.last_too = true;
        plan.batch_tokens = std::min(usual_batch, std::max(1, usual_batch / scoring.context) * scoring.context);
    } else {
        plan.first = burn_in(scoring.context);
        constexpr int logits_bytes = 64 << 20;
        const int rows = std::clamp(logits_bytes / (model.n_vocab() * static_cast<int>(sizeof(float))), 64, 512);
        plan.batch_tokens = rows < scoring.context ? rows : rows / scoring.context * scoring.context;
    }
    if (plan.per_window() < 1)
        throw UsageError(fmt::format("windows of {} tokens are too short to be scored", scoring.context));
    return plan;
}

/// A row of logits: which token it predicts, and whose score it is.
struct Row {
    Token target = -1;
    std::size_t score = 0;
};

struct Step {
    std::vector<BatchToken> tokens;
    std::vector<Row> rows;  // of the tokens that want logits
};

Step make_step(const Plan& plan, int first_window, int n_windows, int begin, int end) {
    Step step;
    for (int s = 0; s < n_windows; ++s) {
        const auto window = static_cast<std::size_t>(first_window) + static_cast<std::size_t>(s);
        const auto at = window * static_cast<std::size_t>(plan.context);
        for (int position = begin; position < end; ++position) {
            const auto i = at + static_cast<std::size_t>(position);
            const bool last = position + 1 == plan.context;
            const bool wanted = position >= plan.first && (!last || plan.last_too);
            step.tokens.push_back(
                {position == 0 && plan.begins_with_bos ? plan.bos : plan.tokens[i], position, {s}, wanted});
            if (!wanted) continue;
            Row row;
            if (!last) row.target = plan.tokens[i + 1];
            row.score =
                window * static_cast<std::size_t>(plan.per_window()) + static_cast<std::size_t>(position - plan.first);
            step.rows.push_back(row);
        }
    }
    return step;
}

/// Takes every decoder through the text and calls `score(row, logits)` for each row that has a target, `logits` being
/// one span per decoder. Rows of a step are scored in parallel; `score` gets a scratch object of its thread.
template <typename Scratch, typename Score>
void walk(const Plan& plan, std::span<BatchDecoder> decoders, int threads, Progress& progress, Score score) {
    const auto n_vocab = static_cast<std::size_t>(decoders.front().n_vocab());
    progress.begin("scoring the text", plan.n_windows);
    for (int first_window = 0; first_window < plan.n_windows; first_window += plan.side_by_side()) {
        const int n_windows = std::min(plan.side_by_side(), plan.n_windows - first_window);
        for (auto& decoder : decoders) decoder.forget();
        const int part = std::min(plan.context, plan.batch_tokens);
        for (int begin = 0; begin < plan.context; begin += part) {
            const auto step = make_step(plan, first_window, n_windows, begin, std::min(plan.context, begin + part));
            std::vector<std::span<const float>> logits;
            for (auto& decoder : decoders) {
                progress.check();
                logits.push_back(decoder.decode(step.tokens));
            }
            parallel_chunks(static_cast<std::int64_t>(step.rows.size()), 4, threads,
                            [&](std::int64_t from, std::int64_t to) {
                                Scratch scratch;
                                std::vector<std::span<const float>> rows(logits.size());
                                for (auto i = static_cast<std::size_t>(from); i < static_cast<std::size_t>(to); ++i) {
                                    if (step.rows[i].target < 0) continue;
                                    for (std::size_t d = 0; d < rows.size(); ++d)
                                        rows[d] = logits[d].subspan(i * n_vocab, n_vocab);
                                    score(step.rows[i], rows, scratch);
                                }
                            });
        }
        progress.advance(first_window + n_windows, "windows");
    }
    progress.end();
}

BatchDecoder make_decoder(const Model& model, const Plan& plan, int threads) {
    BatchDecoderSettings settings;
    settings.n_sequences = plan.side_by_side();
    settings.cache_tokens = plan.side_by_side() * plan.context;
    settings.batch_tokens = plan.batch_tokens;
    settings.threads = threads;
    return {model, settings};
}

FileTokenScores empty_scores(const Plan& plan) {
    FileTokenScores scores;
    scores.per_window = plan.per_window();
    scores.tokens.resize(static_cast<std::size_t>(plan.n_windows) * static_cast<std::size_t>(plan.per_window()));
    return scores;
}

void expect_finite(const FileTokenScores& scores, const std::filesystem::path& file) {
    for (const auto& token : scores.tokens)
        if (!std::isfinite(token.nll) || !std::isfinite(token.kld))
            throw Error(fmt::format("{} gives probabilities that are not finite numbers", file.string()));
}

struct NoScratch {};

double exact_nll(std::span<const float> logits, Token target) {
    return -static_cast<double>(logits[static_cast<std::size_t>(target)]) +
           log_sum_exp(logits.data(), static_cast<std::int64_t>(logits.size()));
}

/// Log-probabilities of the reference at one position.
struct ReferenceRow {
    std::vector<float> log_p;
    llama_perplexity::SixteenBitRow sixteen_bit;
};

TokenScore compare_exactly(const ReferenceRow& reference, std::span<const float> logits, Token target) {
    const auto s = score_row(logits.data(), reference.log_p.data(), static_cast<std::int64_t>(logits.size()), target);
    TokenScore score;
    score.nll = static_cast<double>(s.nll);
    score.reference_nll = static_cast<double>(s.reference_nll);
    score.kld = static_cast<double>(s.kld);
    score.probability_change = std::exp(-score.nll) - std::exp(-score.reference_nll);
    score.same_top = s.same_top > 0.5F;
    return score;
}

std::vector<FileTokenScores> score_group(const std::filesystem::path& reference,
                                         std::span<const std::filesystem::path> candidates, std::string_view text,
                                         const TextScoring& scoring, Progress& progress) {
    std::vector<Model> models;
    models.push_back(Model::load_to_run(reference, scoring.place));
    for (const auto& file : candidates) {
        models.push_back(Model::load_to_run(file, scoring.place));
        check_same_tokenizer(models.front(), models.back(), text);
    }
    const auto plan = make_plan(models.front(), text, scoring);
    std::vector<BatchDecoder> decoders;
    for (const auto& model : models) decoders.push_back(make_decoder(model, plan, scoring.threads));
    std::vector<FileTokenScores> scores(candidates.size(), empty_scores(plan));
    const bool exact = scoring.convention == TextConvention::cerebellum;
    walk<ReferenceRow>(
        plan, decoders, scoring.threads, progress, [&](const Row& row, const auto& logits, ReferenceRow& source) {
            const auto source_logits = logits[0];
            if (exact) {
                source.log_p.resize(source_logits.size());
                log_softmax_row(source_logits.data(), source.log_p.data(),
                                static_cast<std::int64_t>(source_logits.size()));
            } else {
                source.sixteen_bit.assign(source_logits);
            }
            for (std::size_t c = 0; c < scores.size(); ++c)
                scores[c].tokens[row.score] = exact ? compare_exactly(source, logits[c + 1], row.target)
                                                    : source.sixteen_bit.compare(logits[c + 1], row.target);
        });
    for (std::size_t c = 0; c < scores.size(); ++c) expect_finite(scores[c], candidates[c]);
    return scores;
}

/// What evaluating a file takes beside its weights, about.
std::size_t evaluation_bytes(const std::filesystem::path& file, const TextScoring& scoring) {
    constexpr int micro_batch_tokens = 512;
    return working_bytes(GgufFile::open(file), micro_batch_tokens, std::max(usual_batch, scoring.context));
}

}  // namespace

std::string read_eval_text(std::span<const std::filesystem::path> files) {
    std::string text;
    for (const auto& file : files) {
        auto content = read_text(file);
        if (content.ends_with('\n')) content.pop_back();
        if (content.empty()) throw Error(fmt::format("{} is empty; give a text to score", file.string()));
        text += content;
    }
    return text;
}

FileTokenScores score_text(const std::filesystem::path& file, std::string_view text, const TextScoring& scoring,
                           Progress& progress) {
    const auto model = Model::load_to_run(file, fitted(scoring.place, file, evaluation_bytes(file, scoring)));
    const auto plan = make_plan(model, text, scoring);
    std::vector<BatchDecoder> decoders;
    decoders.push_back(make_decoder(model, plan, scoring.threads));
    auto scores = empty_scores(plan);
    const bool exact = scoring.convention == TextConvention::cerebellum;
    walk<NoScratch>(plan, decoders, scoring.threads, progress, [&](const Row& row, const auto& logits, NoScratch&) {
        scores.tokens[row.score].nll =
            exact ? exact_nll(logits[0], row.target) : llama_perplexity::nll(logits[0], row.target);
    });
    expect_finite(scores, file);
    return scores;
}

std::vector<FileTokenScores> score_text_against(const std::filesystem::path& reference,
                                                std::span<const std::filesystem::path> candidates,
                                                std::string_view text, const TextScoring& scoring, Progress& progress) {
    std::vector<FileTokenScores> scores;
    for (const auto& group :
         plan_side_by_side(reference, candidates, evaluation_bytes(reference, scoring), scoring.place)) {
        auto here = scoring;
        here.place.gpu_layers = group.gpu_layers;
        auto of_group =
            score_group(reference, candidates.subspan(group.first, group.last - group.first), text, here, progress);
        std::ranges::move(of_group, std::back_inserter(scores));
    }
    return scores;
}

}  // namespace cerebellum
