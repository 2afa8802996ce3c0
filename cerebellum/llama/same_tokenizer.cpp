#include "cerebellum/llama/same_tokenizer.h"

#include <fmt/format.h>
#include <llama.h>

#include <array>
#include <optional>
#include <string>

#include "cerebellum/core/error.h"
#include "cerebellum/core/visible_text.h"

namespace cerebellum {

namespace {

/// Words, numbers, code, blanks, other scripts, signs: what tokenizers of the same vocabulary split in different ways.
constexpr std::string_view probe =
    "It's 12345.678 o'clock, isn't it?  for(int i=0;i<n;++i){\n\t\tx[i]+=2;\n}\r\n\n   na\xc3\xafve "
    "\xd0\xbc\xd0\xb8\xd1\x80 "
    "\xe4\xbd\xa0\xe5\xa5\xbd\xef\xbc\x8c\xe4\xb8\x96\xe7\x95\x8c \xf0\x9f\x98\x80 HTTPServer_v2 --- "
    "\xc2\xbd\xe2\x82\xac";

std::string metadata(const Model& model, const char* key) {
    std::array<char, 128> value{};
    const int length = llama_model_meta_val_str(model.handle(), key, value.data(), value.size());
    return length < 0 ? std::string() : std::string(value.data());
}

std::optional<std::string> difference(const Model& a, const Model& b, std::string_view text) {
    if (a.n_vocab() != b.n_vocab())
        return fmt::format("a vocabulary of {} tokens and not of {}", b.n_vocab(), a.n_vocab());
    for (const auto* key : {"tokenizer.ggml.model", "tokenizer.ggml.pre"})
        if (const auto first = metadata(a, key), second = metadata(b, key); first != second)
            return fmt::format("{} = '{}' and not '{}'", key, visible(second), visible(first));
    if (a.adds_bos() != b.adds_bos() || a.first_token() != b.first_token())
        return std::string("another beginning of texts");
    const auto *first = llama_model_get_vocab(a.handle()), *second = llama_model_get_vocab(b.handle());
    for (Token token = 0; token < a.n_vocab(); ++token) {
        const std::string_view mine = llama_vocab_get_text(first, token), theirs = llama_vocab_get_text(second, token);
        if (mine != theirs) return fmt::format("token {} '{}' and not '{}'", token, visible(theirs), visible(mine));
        if (llama_vocab_get_attr(first, token) != llama_vocab_get_attr(second, token))
            return fmt::format("another use of token {} '{}'", token, visible(mine));
    }
    for (const auto& sample : {probe, text})
        if (!sample.empty() && a.tokenize(sample) != b.tokenize(sample))
            return std::string("other rules of splitting a text into tokens");
    return std::nullopt;
}

}  // namespace

void check_same_tokenizer(const Model& reference, const Model& other, std::string_view text) {
    constexpr std::size_t enough = 65536;
    if (const auto differs = difference(reference, other, cut_utf8(text, enough)))
        throw Error(fmt::format("{} cannot be compared with {}: it has {}; its figures would be of other tokens",
                                other.path().string(), reference.path().string(), *differs));
}

}  // namespace cerebellum
