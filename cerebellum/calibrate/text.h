#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "cerebellum/core/progress.h"
#include "cerebellum/llama/model.h"

namespace cerebellum {

using TokenWindows = std::vector<std::vector<Token>>;

/// Three disjoint sets of windows. Calibration: importance matrix and measuring. Selection: every choice between
/// candidates. Test: every figure that is quoted; nothing is chosen on it.
struct TextParts {
    TokenWindows calibration;
    TokenWindows selection;
    TokenWindows test;
    std::string description;  // what a user would want to read: file names, or "self-sampled, seed 1"
    /// Of every window, where the texts were labelled; else empty.
    std::vector<std::string> calibration_domains, selection_domains, test_domains;

    /// SHA-256 over all windows of all parts.
    std::string fingerprint() const;
};

/// How many windows each part wants.
struct TextDemand {
    int calibration = 0;
    int selection = 0;
    int test = 0;
    int total() const { return calibration + selection + test; }
};

/// Cuts texts into windows of `n_tokens`, each beginning with BOS where the model wants one (as llama-perplexity does),
/// and deals evenly spread windows to the three parts. Where the texts are shorter than the demand, all parts shrink in
/// proportion. Throws Error naming the file where one is missing or empty, or all are too short for three windows.
///
/// `domains` labels the files, one by one, or is empty. Labelled texts share the demand equally by domain, whatever
/// their lengths; within a part windows are ordered by domain.
TextParts windows_from_files(const Model& model, const std::vector<std::filesystem::path>& files, int n_tokens,
                             TextDemand demand, const std::vector<std::string>& domains = {});

/// The same from text sampled from the model itself.
TextParts windows_from_model(const Model& model, int n_tokens, TextDemand demand, std::uint64_t seed, int threads,
                             Progress& progress);

/// Deals windows to parts; exposed for its properties to be tested. Every window goes to at most one part, and each
/// part is spread over the whole list.
TextParts deal_windows(TokenWindows windows, TextDemand demand);

/// The part of a demand that one of several domains has to meet: equal shares, every one a whole number of the groups
/// of calibration windows that one measured window stands for.
TextDemand domain_share(TextDemand demand, int domain, int n_domains);

/// Windows as bytes and back, for keeping them in a journal. Throws Error where the bytes are no such thing.
std::string serialize(const TextParts& parts);
TextParts deserialize_text_parts(std::string_view bytes);

/// Throws Error unless every part has windows, all of `n_tokens` tokens of a vocabulary of `n_vocab`: what came out of
/// a journal goes into a model, which does not look.
void check_windows(const TextParts& parts, int n_tokens, int n_vocab);

}  // namespace cerebellum
