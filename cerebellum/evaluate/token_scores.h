#pragma once

#include <filesystem>
#include <span>
#include <vector>

#include "cerebellum/core/progress.h"
#include "cerebellum/llama/model.h"

namespace cerebellum {

/// What one predicted token of a text says about a file.
struct TokenScore {
    double nll = 0.0;  // −log q(token), nats
    // The rest where there is a reference:
    double reference_nll = 0.0;       // −log p(token)
    double kld = 0.0;                 // KL(p‖q) over the whole vocabulary, nats
    double probability_change = 0.0;  // q(token) − p(token)
    bool same_top = false;            // p and q have the same most probable token
};

/// The scored tokens of a file on a text, window by window, `per_window` each.
struct FileTokenScores {
    std::vector<TokenScore> tokens;
    int per_window = 0;
};

/// Whose definitions the figures follow.
enum class TextConvention {
    /// Every position behind a burn-in of an eighth of the window; exact KLD.
    cerebellum,
    /// llama-perplexity's: the second half of a window, log-probabilities of the reference in 16 bits, its arithmetic
    /// and its batches, so that the figures are its own.
    llama_perplexity,
};

struct TextScoring {
    TextConvention convention = TextConvention::cerebellum;
    int context = 512;    // tokens per window
    int max_windows = 0;  // 0: the whole text
    int threads = 1;
    RunPlace place;
};

/// The text of files as llama-perplexity reads it (one newline at the end of a file is dropped), one after the other.
/// Throws Error naming the file where one is missing or empty.
std::string read_eval_text(std::span<const std::filesystem::path> files);

/// Negative log-likelihoods of one file. Throws Error where the text is shorter than two windows.
FileTokenScores score_text(const std::filesystem::path& file, std::string_view text, const TextScoring& scoring,
                           Progress& progress);

/// Every candidate next to the reference, all of them at the same place of the text at the same time, so that nothing
/// is kept but the scores. On a device that not all of them fit on, as many at a time as do. Throws Error where
/// vocabularies differ.
std::vector<FileTokenScores> score_text_against(const std::filesystem::path& reference,
                                                std::span<const std::filesystem::path> candidates,
                                                std::string_view text, const TextScoring& scoring, Progress& progress);

}  // namespace cerebellum
