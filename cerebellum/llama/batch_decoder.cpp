#include "cerebellum/llama/batch_decoder.h"

#include <fmt/format.h>
#include <llama.h>

#include <algorithm>
#include <cassert>

#include "cerebellum/core/error.h"
#include "cerebellum/llama/context.h"

namespace cerebellum {

struct BatchDecoder::Batch {
    explicit Batch(int n_tokens, int n_sequences)
        : capacity(n_tokens), batch(llama_batch_init(n_tokens, 0, n_sequences)) {}
    ~Batch() { llama_batch_free(batch); }
    Batch(const Batch&) = delete;
    Batch& operator=(const Batch&) = delete;
    int capacity;
    llama_batch batch;
};

void BatchDecoder::BatchFree::operator()(Batch* batch) const {
    delete batch;
}

BatchDecoder::BatchDecoder(const Model& model, const BatchDecoderSettings& settings) : n_vocab_(model.n_vocab()) {
    auto params = llama_context_default_params();
    params.n_ctx = static_cast<std::uint32_t>(settings.cache_tokens);
    params.n_seq_max = static_cast<std::uint32_t>(settings.n_sequences);
    params.n_batch = static_cast<std::uint32_t>(settings.batch_tokens);
    params.n_ubatch = static_cast<std::uint32_t>(std::min(settings.batch_tokens, settings.micro_batch_tokens));
    params.n_threads = params.n_threads_batch = settings.threads;
    params.kv_unified = settings.shared_cache;
    params.swa_full = settings.shared_cache;  // a sequence can only be continued from what is still there
    params.type_k = params.type_v = settings.cache_type;
    params.no_perf = true;
    context_ = make_context(model, params);
    batch_.reset(new Batch(settings.batch_tokens, settings.shared_cache ? settings.n_sequences : 1));
}

std::span<const float> BatchDecoder::decode(std::span<const BatchToken> tokens) {
    auto& batch = batch_->batch;
    assert(static_cast<int>(tokens.size()) <= batch_->capacity);
    batch.n_tokens = static_cast<std::int32_t>(tokens.size());
    std::size_t rows = 0;
    for (std::size_t i = 0; i < tokens.size(); ++i) {
        batch.token[i] = tokens[i].token;
        batch.pos[i] = tokens[i].position;
        batch.n_seq_id[i] = static_cast<std::int32_t>(tokens[i].sequences.size());
        std::ranges::copy(tokens[i].sequences, batch.seq_id[i]);
        batch.logits[i] = tokens[i].wants_logits ? 1 : 0;
        rows += tokens[i].wants_logits ? 1 : 0;
    }
    if (const int status = llama_decode(context_.get(), batch); status != 0)
        throw Error(
            fmt::format("llama.cpp could not evaluate {} tokens (llama_decode returned {})", tokens.size(), status));
    llama_synchronize(context_.get());
    return {rows > 0 ? llama_get_logits(context_.get()) : nullptr, rows * static_cast<std::size_t>(n_vocab_)};
}

void BatchDecoder::forget() {
    llama_memory_clear(llama_get_memory(context_.get()), true);
}

void BatchDecoder::forget(int sequence) {
    llama_memory_seq_rm(llama_get_memory(context_.get()), sequence, -1, -1);
}

void BatchDecoder::continue_from(int from, int to) {
    llama_memory_seq_cp(llama_get_memory(context_.get()), from, to, -1, -1);
}

}  // namespace cerebellum
