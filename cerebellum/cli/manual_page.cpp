#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <map>
#include <utility>

#include "cerebellum/cli/command_tree.h"
#include "cerebellum/version.h"

namespace cerebellum::cli {

namespace {

/// The code point that begins at `at` of a UTF-8 text, and how many bytes it has; a byte alone where it is damaged.
std::pair<std::uint32_t, std::size_t> code_point(const std::string& text, std::size_t at) {
    const auto byte = [&](std::size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0U; };
    const auto first = byte(at);
    const std::size_t length = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : first >= 0xC0 ? 2 : 1;
    if (length == 1) return {first, 1};
    std::uint32_t value = first & (0x7FU >> length);
    for (std::size_t i = 1; i < length; ++i) {
        if ((byte(at + i) & 0xC0U) != 0x80U) return {first, 1};
        value = value << 6U | (byte(at + i) & 0x3FU);
    }
    return {value, length};
}

/// Text as roff prints it: no escapes, no control lines, ASCII only, hyphens that can be copied into a shell.
std::string roff(const std::string& text) {
    std::string result;
    for (std::size_t i = 0; i < text.size();) {
        const auto [value, length] = code_point(text, i);
        if ((value == '.' || value == '\'') && (i == 0 || text[i - 1] == '\n')) result += "\\&";
        if (value == '\\')
            result += "\\e";
        else if (value == '-')
            result += "\\-";
        else if (value >= 0x80)
            result += fmt::format("\\[u{:04X}]", value);
        else
            result += static_cast<char>(value);
        i += length;
    }
    return result;
}

/// As it is, line for line.
std::string verbatim(const std::string& text) {
    return fmt::format(".nf\n{}\n.fi\n", roff(text));
}

std::string synopsis(const CommandDoc& command) {
    std::string text = fmt::format(".B {}\n", roff(command.name()));
    if (!command.subcommands.empty()) return text + "[\\fIOPTIONS\\fR] \\fISUBCOMMAND\\fR\n";
    text += "[\\fIOPTIONS\\fR]";
    for (const auto& option : command.options)
        if (option.positional) {
            const auto argument = fmt::format("\\fI{}\\fR{}", roff(option.label), option.repeatable ? "..." : "");
            text += option.required ? " " + argument : " [" + argument + "]";
        }
    return text + "\n";
}

std::string entry(const OptionDoc& option) {
    std::vector<std::string> names;
    for (const auto& name : option.names) names.push_back(fmt::format("\\fB{}\\fR", roff(name)));
    std::string text = ".TP\n";
    text += option.names.empty() ? fmt::format("\\fI{}\\fR", roff(option.label))
                                 : fmt::format("{}", fmt::join(names, ", "));
    if (!option.names.empty() && !option.label.empty()) text += fmt::format(" \\fI{}\\fR", roff(option.label));
    text += "\n" + roff(option.help);
    if (!option.default_value.empty()) text += roff(fmt::format(" (default: {})", option.default_value));
    if (option.required) text += " (required)";
    return text + "\n";
}

std::string see_also(const CommandDoc& command) {
    std::vector<std::string> pages;
    if (command.path.size() > 1) {
        auto above = command.path;
        above.pop_back();
        pages.push_back(fmt::format("{}", fmt::join(above, "-")));
    }
    for (const auto& subcommand : command.subcommands) pages.push_back(subcommand.name('-'));
    std::string text;
    for (const auto& page : pages) text += fmt::format("{}\\fB{}\\fR(1)", text.empty() ? "" : ",\n", roff(page));
    return text.empty() ? "" : ".SH SEE ALSO\n" + text + "\n";
}

}  // namespace

std::string manual_page(const CommandDoc& command) {
    std::string title = command.name('-');
    std::ranges::transform(title, title.begin(), [](unsigned char c) { return std::toupper(c); });
    auto first_line = command.description.substr(0, command.description.find('\n'));
    if (command.path.size() == 1) first_line = "the best mixed-precision GGUF that fits a size";
    std::string page = fmt::format(".TH {} 1 \"\" \"cerebellum {}\" \"Cerebellum\"\n", roff(title), CEREBELLUM_VERSION);
    page += fmt::format(".SH NAME\n{} \\- {}\n", roff(command.name('-')), roff(first_line));
    page += ".SH SYNOPSIS\n" + synopsis(command);
    page += ".SH DESCRIPTION\n";
    page += command.description.find('\n') == std::string::npos ? roff(command.description) + "\n"
                                                                : verbatim(command.description);
    std::vector<std::string> groups;
    std::map<std::string, std::string> entries;
    for (const auto& option : command.options) {
        const auto group = option.names.empty() ? "Arguments" : option.group;
        if (!entries.contains(group)) groups.push_back(group);
        entries[group] += entry(option);
    }
    for (const auto& group : groups) {
        std::string heading = group;
        std::ranges::transform(heading, heading.begin(), [](unsigned char c) { return std::toupper(c); });
        page += fmt::format(".SH {}\n{}", roff(heading), entries[group]);
    }
    if (!command.subcommands.empty()) {
        page += ".SH COMMANDS\n";
        for (const auto& subcommand : command.subcommands)
            page += fmt::format(".TP\n\\fB{}\\fR\n{}\n", roff(subcommand.path.back()), roff(subcommand.description));
    }
    if (!command.footer.empty()) page += ".SH NOTES\n" + verbatim(command.footer);
    page +=
        ".SH EXIT STATUS\n0: done. 1: something failed; the message says what to do. 2: the command line is not "
        "usable.\n";
    return page + see_also(command);
}

}  // namespace cerebellum::cli
