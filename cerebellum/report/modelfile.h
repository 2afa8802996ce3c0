#pragma once

#include <functional>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "cerebellum/llama/chat_template.h"

namespace cerebellum {

/// A chat as text; empty where the template is not known.
using ChatRenderer = std::function<std::optional<std::string>(std::span<const ChatMessage>, bool reply)>;

/// A template in Ollama's language (Go's text/template).
struct OllamaTemplate {
    std::string text;
    bool has_system = false;  // the model knows system messages
    bool exact = false;       // chats of several turns come to the same text as under the model's own template
};

/// Derived from what the model's template makes of chats of marked messages: what stands before, between and behind
/// them. Empty where the template is not known, or does more than that.
std::optional<OllamaTemplate> ollama_template(const ChatRenderer& render);

/// What a Modelfile says.
struct ModelfileParts {
    std::string file;  // name of the GGUF beside it
    std::optional<OllamaTemplate> chat;
    bool has_chat_template = false;  // in the GGUF
    std::vector<std::string> stops;
    std::vector<std::pair<std::string, std::string>> parameters;  // name, value as it is written
    std::string license;
};

std::string write_modelfile(const ModelfileParts& parts);

}  // namespace cerebellum
