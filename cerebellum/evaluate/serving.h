#pragma once

#include <string>
#include <vector>

#include "cerebellum/core/progress.h"

namespace cerebellum {

/// One streamed answer under load.
struct ServedRequest {
    int tokens = 0;
    double first_token_s = 0.0;  // from the request on
    double seconds = 0.0;        // until the last token

    /// Tokens per second behind the first.
    double tokens_per_second() const;
};

/// What `slots` users at a time get from a server.
struct ServingFigures {
    std::vector<ServedRequest> requests;
    double seconds = 0.0;  // of all

    double total_tokens_per_second() const;
};

/// Sends `count` different prompts of about `prompt_words` words to a llama-server, `slots` at a time, each to be
/// answered with `max_tokens` tokens. Throws Error where one fails.
ServingFigures measure_serving(const std::string& url, int slots, int count, int prompt_words, int max_tokens,
                               Progress& progress);

}  // namespace cerebellum
