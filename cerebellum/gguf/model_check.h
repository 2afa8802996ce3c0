#pragma once

#include "cerebellum/gguf/gguf_file.h"

namespace cerebellum {

/// Throws Error, naming key, value and what the tensors say, where the metadata of a model contradict its tensors:
/// number of blocks, of columns of an embedding, of tokens, of heads. llama.cpp finds some of it out by an assertion
/// that ends the program, and of others says only what it would have liked. What cannot be told for sure is left to it:
/// a key that is not there or differs from block to block, a model without an embedding.
void check_model(const GgufFile& file);

}  // namespace cerebellum
