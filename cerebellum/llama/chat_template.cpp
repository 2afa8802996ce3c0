#include "cerebellum/llama/chat_template.h"

#include <llama.h>

#include <cstdint>
#include <vector>

namespace cerebellum {

std::optional<std::string> apply_chat_template(const std::string& chat_template, std::span<const ChatMessage> chat,
                                               bool reply) {
    std::vector<llama_chat_message> messages;
    for (const auto& message : chat) messages.push_back({message.role.c_str(), message.content.c_str()});
    const auto render = [&](std::string& text) {
        return llama_chat_apply_template(chat_template.c_str(), messages.data(), messages.size(), reply, text.data(),
                                         static_cast<std::int32_t>(text.size()));
    };
    std::string text(1024, '\0');
    auto length = render(text);
    if (length < 0) return std::nullopt;
    if (static_cast<std::size_t>(length) > text.size()) {
        text.resize(static_cast<std::size_t>(length));
        length = render(text);
    }
    text.resize(static_cast<std::size_t>(length));
    return text;
}

std::vector<std::string> chat_template_families() {
    std::vector<const char*> names(static_cast<std::size_t>(llama_chat_builtin_templates(nullptr, 0)));
    llama_chat_builtin_templates(names.data(), names.size());
    return {names.begin(), names.end()};
}

}  // namespace cerebellum
