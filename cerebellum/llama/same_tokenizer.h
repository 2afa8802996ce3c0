#pragma once

#include <string_view>

#include "cerebellum/llama/model.h"

namespace cerebellum {

/// Throws Error naming `other`'s file and the first difference unless both models read and write texts as the same
/// tokens: kind of vocabulary, texts and attributes of all tokens, whether texts begin with BOS, and what a text that
/// has something of everything, and `text`, come to. Figures of models that differ in any of it are figures of other
/// events, also where the vocabularies are equally large.
void check_same_tokenizer(const Model& reference, const Model& other, std::string_view text = {});

}  // namespace cerebellum
