#pragma once

// Tiny models of the generative architectures for which llama.cpp's own test program writes none.

#include <filesystem>
#include <string>
#include <vector>

namespace cerebellum::testing {

/// What write_generated_model knows: architectures, with "-moe" behind the name for a mixture of experts where
/// llama.cpp has one architecture for both.
///
/// Left out are gptj and clip, which are names in llama.cpp without an implementation, and what predicts no next token:
/// the encoders and embedding models (bert and its kin, t5, t5encoder, gemma-embedding, llama-embed), the draft heads
/// (eagle3, dflash, gemma4-assistant), which need another model's states to run, and wavtokenizer-dec.
std::vector<std::string> generated_models();

/// Writes the model of that name, a few hundred kilobytes to a few megabytes of F32. libllama itself says which tensors
/// belong to it; their values are noise that depends on nothing but their names, so every call writes the same file.
/// Throws Error with libllama's reason where it refuses the metadata.
void write_generated_model(const std::string& name, const std::filesystem::path& path);

}  // namespace cerebellum::testing
