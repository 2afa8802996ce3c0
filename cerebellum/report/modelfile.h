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
    std::string system_before, system_behind;  // what stands around a system message of a turn of its own
};

/// Derived from what the model's template makes of chats of marked messages: what stands before, between and behind
/// them. Empty where the template is not known, or does more than that.
std::optional<OllamaTemplate> ollama_template(const ChatRenderer& render);

/// Text of its own that a template (Jinja) adds to a chat. llama.cpp renders families of templates, which leave it out.
struct TemplateProse {
    std::string system;    // the system message where a chat has none; empty where none was found, or several
    std::string left_out;  // the beginning of other text, of which nothing is known
};
TemplateProse prose_of(const std::string& chat_template, const OllamaTemplate& found);

/// What a Modelfile says.
struct ModelfileParts {
    std::string file;  // the GGUF as it lies from the Modelfile's folder
    std::optional<OllamaTemplate> chat;
    bool has_chat_template = false;  // in the GGUF
    std::vector<std::string> stops;
    std::vector<std::pair<std::string, std::string>> parameters;  // name, value as it is written
    std::string license;
    TemplateProse prose = {};
};

/// The name for `ollama create`: the file's, without what such names may not have.
std::string ollama_name(const std::string& file);

std::string write_modelfile(const ModelfileParts& parts);

}  // namespace cerebellum
