#include "cerebellum/llama/sampler.h"

#include <fmt/format.h>
#include <llama.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <memory>
#include <random>

#include "cerebellum/core/error.h"
#include "cerebellum/core/parallel.h"
#include "cerebellum/llama/context.h"
#include "cerebellum/llama/log.h"

namespace cerebellum {

namespace {

/// One batch of sequences, continued token by token until all have `length` tokens.
std::vector<std::vector<Token>> sample_batch(const Model& model, int n_sequences, int length, std::uint32_t seed,
                                             int threads, Progress& progress, double done_before) {
    auto params = context_params(model, length * n_sequences, threads);
    params.n_seq_max = static_cast<std::uint32_t>(n_sequences);
    params.n_batch = params.n_ubatch = static_cast<std::uint32_t>(n_sequences);
    const auto context = make_context(model, params);
    const auto n_vocab = static_cast<std::size_t>(model.n_vocab());
    std::mt19937 random(seed);
    // A thread is not worth starting for less.
    constexpr std::int64_t logits_at_a_time = 1 << 16;
    const auto sequences_at_a_time = logits_at_a_time / static_cast<std::int64_t>(n_vocab);
    std::vector<std::vector<Token>> sequences(static_cast<std::size_t>(n_sequences), {model.first_token()});
    llama_batch batch = llama_batch_init(n_sequences, 0, 1);
    const std::unique_ptr<llama_batch, void (*)(llama_batch*)> batch_guard(
        &batch, [](llama_batch* b) { llama_batch_free(*b); });
    batch.n_tokens = n_sequences;
    for (int position = 0; position + 1 < length; ++position) {
        progress.check();
        for (int s = 0; s < n_sequences; ++s) {
            batch.token[s] = sequences[static_cast<std::size_t>(s)].back();
            batch.pos[s] = position;
            batch.n_seq_id[s] = 1;
            batch.seq_id[s][0] = s;
            batch.logits[s] = 1;
        }
        if (const int status = llama_decode(context.get(), batch); status != 0)
            throw Error(
                fmt::format("llama.cpp could not continue the sampled text (llama_decode returned {})", status));
        const float* logits = llama_get_logits(context.get());
        std::vector<double> drawn(sequences.size());
        for (auto& share : drawn) share = std::uniform_real_distribution<double>(0.0, 1.0)(random);
        parallel_chunks(n_sequences, sequences_at_a_time, threads, [&](std::int64_t begin, std::int64_t end) {
            for (auto s = static_cast<std::size_t>(begin); s < static_cast<std::size_t>(end); ++s) {
                auto& sequence = sequences[s];
                const bool text_ended =
                    sequence.size() > 1 && model.ends_text(sequence.back()) && sequence.back() != model.first_token();
                const Token next = sample_token({logits + s * n_vocab, n_vocab}, drawn[s]);
                sequence.push_back(text_ended ? model.first_token() : next);
            }
        });
        progress.advance(done_before + static_cast<double>((position + 1) * n_sequences), "tokens");
    }
    return sequences;
}

}  // namespace

Token sample_token(std::span<const float> logits, double share) {
    const float largest = *std::ranges::max_element(logits);
    double sum = 0.0;
    for (const float logit : logits) sum += static_cast<double>(std::exp(logit - largest));
    const double target = sum * share;
    double reached = 0.0;
    for (std::size_t i = 0; i < logits.size(); ++i) {
        reached += static_cast<double>(std::exp(logits[i] - largest));
        if (reached >= target) return static_cast<Token>(i);
    }
    return static_cast<Token>(logits.size()) - 1;
}

std::vector<std::vector<Token>> sample_sequences(const Model& model, int n_sequences, int length, std::uint64_t seed,
                                                 int threads, Progress& progress) {
    std::vector<std::vector<Token>> result;
    progress.begin("sampling text from the model itself", static_cast<double>(n_sequences) * length);
    auto batch_seed = static_cast<std::uint32_t>(seed * 0x9E3779B97F4A7C15U >> 32);
    while (static_cast<int>(result.size()) < n_sequences) {
        const int count = std::min(sampled_side_by_side, n_sequences - static_cast<int>(result.size()));
        auto batch = sample_batch(model, count, length, batch_seed++, threads, progress,
                                  static_cast<double>(result.size()) * length);
        std::ranges::move(batch, std::back_inserter(result));
    }
    progress.end();
    return result;
}

}  // namespace cerebellum
