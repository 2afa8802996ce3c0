#include "cerebellum/report/modelfile.h"

#include <fmt/format.h>

#include <array>

namespace cerebellum {

namespace {

constexpr const char* system_mark = "SYSTEMmark";
constexpr const char* user_mark = "USERmark";
constexpr const char* second_mark = "SECONDmark";
constexpr const char* reply_mark = "REPLYmark";

/// What stands around marks that occur once each, in this order; empty where they do not.
template <std::size_t N>
std::optional<std::array<std::string, N + 1>> split_at(const std::string& text,
                                                       const std::array<const char*, N>& marks) {
    std::array<std::string, N + 1> parts;
    std::size_t begin = 0;
    for (std::size_t i = 0; i < N; ++i) {
        const auto at = text.find(marks[i], begin);
        if (at == std::string::npos) return std::nullopt;
        parts[i] = text.substr(begin, at - begin);
        begin = at + std::string_view(marks[i]).size();
    }
    parts[N] = text.substr(begin);
    for (const auto& part : parts)
        for (const char* mark : marks)
            if (part.find(mark) != std::string::npos) return std::nullopt;
    return parts;
}

/// Text as a Go template shows it.
std::string literal(const std::string& text) {
    std::string result;
    for (std::size_t i = 0; i < text.size(); ++i)
        if (text.compare(i, 2, "{{") == 0) {
            result += R"({{ "{{" }})";
            ++i;
        } else {
            result += text[i];
        }
    return result;
}

/// In a Modelfile's string; empty where it cannot stand there.
std::string quoted(const std::string& text) {
    std::string result = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') result += '\\';
        if (c == '\n')
            result += "\\n";
        else
            result += c;
    }
    return result + "\"";
}

}  // namespace

std::optional<OllamaTemplate> ollama_template(const ChatRenderer& render) {
    const ChatMessage system{"system", system_mark}, user{"user", user_mark}, reply{"assistant", reply_mark},
        second{"user", second_mark};
    const auto rendered = [&](const std::vector<ChatMessage>& chat, bool open) { return render(chat, open); };
    const auto first = rendered({user}, true);
    if (!first) return std::nullopt;
    const auto turn = split_at<1>(*first, {user_mark});
    if (!turn) return std::nullopt;
    const auto& [before, opening] = *turn;

    OllamaTemplate result;
    std::string head = literal(before), closing;
    if (const auto text = rendered({system, user}, true))
        if (const auto parts = split_at<2>(*text, {system_mark, user_mark}); parts && (*parts)[2] == opening) {
            const auto& [system_before, system_behind, rest] = *parts;
            result.has_system = true;
            if (system_behind.ends_with(before))
                head = fmt::format("{{{{ if .System }}}}{}{{{{ .System }}}}{}{{{{ end }}}}{}", literal(system_before),
                                   literal(system_behind.substr(0, system_behind.size() - before.size())),
                                   literal(before));
            else
                head = fmt::format("{{{{ if .System }}}}{}{{{{ .System }}}}{}{{{{ else }}}}{}{{{{ end }}}}",
                                   literal(system_before), literal(system_behind), literal(before));
        }
    if (const auto text = rendered({user, reply, second}, true))
        if (const auto parts = split_at<3>(*text, {user_mark, reply_mark, second_mark})) {
            const auto& between = (*parts)[2];
            result.exact =
                (*parts)[0] == before && (*parts)[1] == opening && (*parts)[3] == opening && between.ends_with(before);
            if (between.ends_with(before)) closing = between.substr(0, between.size() - before.size());
        }
    result.text = head + "{{ .Prompt }}" + literal(opening) + "{{ .Response }}" + literal(closing);
    if (result.text.find("\"\"\"") != std::string::npos) return std::nullopt;
    return result;
}

std::string write_modelfile(const ModelfileParts& parts) {
    std::string text = fmt::format("# ollama create {} -f Modelfile\nFROM ./{}\n",
                                   parts.file.substr(0, parts.file.rfind('.')), parts.file);
    if (parts.chat) {
        if (!parts.chat->exact)
            text += "# Chats of several turns come to a slightly other text than under the model's own template.\n";
        text += fmt::format("TEMPLATE \"\"\"{}\"\"\"\n", parts.chat->text);
    } else if (parts.has_chat_template) {
        text +=
            "# The file's chat template is of no family that can be written in Ollama's language; Ollama chooses.\n";
    } else {
        text += "# The model has no chat template: it completes text.\nTEMPLATE \"\"\"{{ .Prompt }}\"\"\"\n";
    }
    for (const auto& stop : parts.stops) text += fmt::format("PARAMETER stop {}\n", quoted(stop));
    for (const auto& [name, value] : parts.parameters) text += fmt::format("PARAMETER {} {}\n", name, value);
    if (!parts.license.empty()) text += fmt::format("LICENSE {}\n", quoted(parts.license));
    return text;
}

}  // namespace cerebellum
