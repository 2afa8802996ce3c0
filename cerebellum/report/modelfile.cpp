#include "cerebellum/report/modelfile.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <set>
#include <string_view>
#include <vector>

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

/// A string of a Modelfile. There are no escapes in it: it goes on to the next quote, or three of them
/// (parser/parser.go of Ollama, unquote).
std::string quoted(const std::string& text) {
    const bool has_quotes = text.find('"') != std::string::npos;
    const std::string marks = has_quotes ? "\"\"\"" : "\"";
    return marks + text + marks;
}

/// A path behind FROM: no option, no name of a model in a registry.
std::string from_path(const std::string& file) {
    const bool placed = file.starts_with('/') || file.starts_with("./") || file.starts_with("../");
    const auto path = placed ? file : "./" + file;
    return path.find_first_of(" \t\n\"#") == std::string::npos ? path : quoted(path);
}

/// A piece of text in a Jinja template.
struct Literal {
    std::string text;
    std::string assigned_to;  // where it is all that a variable is set to
};

constexpr std::string_view blanks = " \t\n\r";

/// The variable in "set NAME =" at the end of what stands before a literal.
std::string assigned(std::string_view before) {
    const auto drop_blanks = [&] { before.remove_suffix(before.size() - (before.find_last_not_of(blanks) + 1)); };
    drop_blanks();
    if (!before.ends_with('=') || before.ends_with("==") || before.ends_with("!=")) return "";
    before.remove_suffix(1);
    drop_blanks();
    return std::string(before.substr(before.find_last_of(" \t\n\r%-") + 1));
}

/// Strings in tags, and text between tags.
std::vector<Literal> literals_of(const std::string& jinja) {
    std::vector<Literal> literals;
    for (std::size_t at = 0; at < jinja.size();) {
        const auto tag = std::min({jinja.find("{{", at), jinja.find("{%", at), jinja.find("{#", at), jinja.size()});
        if (tag > at) literals.push_back({jinja.substr(at, tag - at), ""});
        if (tag == jinja.size()) break;
        const std::string end = jinja[tag + 1] == '{' ? "}}" : jinja[tag + 1] == '%' ? "%}" : "#}";
        if (end == "#}") {
            const auto close = jinja.find(end, tag);
            at = close == std::string::npos ? jinja.size() : close + 2;
            continue;
        }
        at = tag + 2;
        while (at < jinja.size() && jinja.compare(at, 2, end) != 0) {
            const char quote = jinja[at];
            if (quote != '"' && quote != '\'') {
                ++at;
                continue;
            }
            Literal literal{"", assigned(std::string_view(jinja).substr(tag, at - tag))};
            for (++at; at < jinja.size() && jinja[at] != quote; ++at) {
                if (jinja[at] == '\\' && at + 1 < jinja.size()) {
                    const char c = jinja[++at];
                    literal.text += c == 'n' ? '\n' : c == 't' ? '\t' : c;
                } else {
                    literal.text += jinja[at];
                }
            }
            at = std::min(at + 1, jinja.size());
            const auto next = jinja.find_first_not_of(" \t\n\r-", at);
            if (next == std::string::npos || jinja.compare(next, 2, end) != 0) literal.assigned_to.clear();
            literals.push_back(std::move(literal));
        }
        at = std::min(at + 2, jinja.size());
    }
    return literals;
}

/// Words of letters with blanks around, as people write them; names and marks of a template are none.
bool is_prose(std::string_view text) {
    int words = 0;
    for (std::size_t begin = 0; begin < text.size();) {
        const auto end = std::min(text.find_first_of(blanks, begin), text.size());
        const auto word = text.substr(begin, end - begin);
        if (!word.empty() && std::ranges::all_of(word, [](unsigned char c) {
                return std::isalpha(c) != 0 || c == ',' || c == '.' || c == '\'' || c == ':' || c >= 0x80;
            }))
            ++words;
        begin = end + 1;
    }
    return words >= 4;
}

std::string beginning_of(const std::string& text) {
    constexpr std::size_t shown = 60;
    const auto begin = std::min(text.find_first_not_of(blanks), text.size());
    auto end = std::min(begin + shown, text.size());
    while (end < text.size() && (static_cast<unsigned char>(text[end]) & 0xC0U) == 0x80U) --end;  // whole letters
    std::string line = text.substr(begin, end - begin);
    for (char& c : line)
        if (static_cast<unsigned char>(c) < ' ') c = ' ';
    return line;
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
            if (system_behind.ends_with(before)) {
                result.system_before = system_before;
                result.system_behind = system_behind.substr(0, system_behind.size() - before.size());
                head = fmt::format("{{{{ if .System }}}}{}{{{{ .System }}}}{}{{{{ end }}}}{}", literal(system_before),
                                   literal(system_behind.substr(0, system_behind.size() - before.size())),
                                   literal(before));
            } else {
                head = fmt::format("{{{{ if .System }}}}{}{{{{ .System }}}}{}{{{{ else }}}}{}{{{{ end }}}}",
                                   literal(system_before), literal(system_behind), literal(before));
            }
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

TemplateProse prose_of(const std::string& chat_template, const OllamaTemplate& found) {
    std::set<std::string> defaults;
    std::string other;
    for (const auto& [text, variable] : literals_of(chat_template)) {
        const auto begin = found.system_before.empty() ? std::string::npos : text.find(found.system_before);
        const auto inner = begin + found.system_before.size();
        const auto end = begin == std::string::npos || found.system_behind.empty()
                             ? std::string::npos
                             : text.find(found.system_behind, inner);
        if (end != std::string::npos && end > inner)
            defaults.insert(text.substr(inner, end - inner));
        else if (found.has_system && variable.find("system") != std::string::npos && is_prose(text))
            defaults.insert(text);
        else if (other.empty() && is_prose(text))
            other = text;
    }
    // Branches of a template often say the same once more.
    if (defaults.size() == 1 && other == *defaults.begin()) other.clear();
    if (defaults.size() == 1) return {*defaults.begin(), beginning_of(other)};
    return {"", beginning_of(defaults.empty() ? other : *defaults.begin())};
}

std::string ollama_name(const std::string& file) {
    auto name = file.substr(file.rfind('/') + 1);
    name = name.substr(0, name.rfind('.'));
    for (char& c : name)
        if (std::isalnum(static_cast<unsigned char>(c)) == 0 && c != '.' && c != '_' && c != '-') c = '-';
    return name.empty() || std::isalnum(static_cast<unsigned char>(name.front())) == 0 ? "model" + name : name;
}

std::string write_modelfile(const ModelfileParts& parts) {
    std::string text =
        fmt::format("# ollama create {} -f Modelfile\nFROM {}\n", ollama_name(parts.file), from_path(parts.file));
    if (parts.chat) {
        if (!parts.chat->exact)
            text += "# Chats of several turns come to a slightly other text than under the model's own template.\n";
        if (!parts.prose.left_out.empty())
            text += fmt::format("# The model's own template has text that this one leaves out, such as: {}\n",
                                parts.prose.left_out);
        text += fmt::format("TEMPLATE \"\"\"{}\"\"\"\n", parts.chat->text);
        if (!parts.prose.system.empty()) text += fmt::format("SYSTEM {}\n", quoted(parts.prose.system));
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
