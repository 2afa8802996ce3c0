#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

namespace cerebellum {

struct ChatMessage {
    std::string role;  // "system", "user", "assistant"
    std::string content;
};

/// The text that a chat comes to under a model's template, as llama.cpp renders the families of templates that it knows
/// by name. Empty where it does not know this one. `reply`: end with what opens the assistant's next message.
std::optional<std::string> apply_chat_template(const std::string& chat_template, std::span<const ChatMessage> chat,
                                               bool reply);

/// Names of the families that llama.cpp knows; apply_chat_template takes them as templates.
std::vector<std::string> chat_template_families();

}  // namespace cerebellum
