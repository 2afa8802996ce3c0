#pragma once

// Tiny models of the generative architectures for which llama.cpp's own test program writes none.

#include <array>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
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

/// Turns `values` of standard deviation 1 into a tensor's values as a trained model might have them: norms near 1, and
/// matrices that keep the size of what they multiply, so that every one of them matters to the logits.
void settle(std::string_view name, const std::array<std::int64_t, 4>& shape, std::span<float> values);

}  // namespace cerebellum::testing
