#include "cerebellum/evaluate/answer_parser.h"

#include <algorithm>
#include <cctype>
#include <regex>
#include <set>

namespace cerebellum {

namespace {

std::string trimmed(std::string_view text) {
    const auto begin = text.find_first_not_of(" \t\r\n");
    if (begin == std::string_view::npos) return "";
    return std::string(text.substr(begin, text.find_last_not_of(" \t\r\n") - begin + 1));
}

std::string lower(std::string text) {
    std::ranges::transform(text, text.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    return text;
}

/// Without Markdown's emphasis and code marks, and LaTeX's frames around an answer.
std::string without_marks(std::string text) {
    static const std::regex frame(R"(\\(?:boxed|text|mathrm|textbf|mathbf)\s*\{)");
    text = std::regex_replace(text, frame, "{");
    std::erase_if(text, [](char c) { return c == '*' || c == '`' || c == '$' || c == '{' || c == '}'; });
    return text;
}

std::optional<int> index_of(char letter, std::size_t n_choices) {
    const int index = std::toupper(static_cast<unsigned char>(letter)) - 'A';
    if (index < 0 || index >= static_cast<int>(n_choices)) return std::nullopt;
    return index;
}

/// The choice that all matches of the pattern's first group name; with `last`, the one that the last of them names.
std::optional<int> matched(const std::string& text, const std::regex& pattern, std::size_t n_choices, bool last) {
    std::optional<int> found;
    for (std::sregex_iterator match(text.begin(), text.end(), pattern), end; match != end; ++match) {
        const auto index = index_of(match->str(1).front(), n_choices);
        if (!index) continue;
        if (!last && found && *found != *index) return std::nullopt;
        found = index;
    }
    return found;
}

/// A reply that is one word: a letter, or a number from 1.
std::optional<int> single_word(const std::string& text, const std::vector<std::string>& choices) {
    auto word = text;
    std::erase_if(
        word, [](char c) { return c == '(' || c == ')' || c == '[' || c == ']' || c == '.' || c == ':' || c == ','; });
    word = trimmed(word);
    if (word.size() != 1) return std::nullopt;
    if (const auto letter = index_of(word.front(), choices.size())) return letter;
    if (const int number = word.front() - '1'; number >= 0 && number < static_cast<int>(choices.size())) {
        // Not where the digit may be meant as a choice's own text.
        for (std::size_t i = 0; i < choices.size(); ++i)
            if (trimmed(choices[i]) == word) return static_cast<int>(i);
        return number;
    }
    return std::nullopt;
}

std::optional<int> by_text(const std::string& text, const std::vector<std::string>& choices) {
    const auto whole = lower(text);
    auto bare = whole;
    while (bare.ends_with('.')) bare.pop_back();
    std::set<int> contained;
    std::size_t longest = 0;
    for (std::size_t i = 0; i < choices.size(); ++i) {
        auto choice = lower(trimmed(choices[i]));
        while (choice.ends_with('.')) choice.pop_back();
        if (choice.empty()) continue;
        if (choice == bare) return static_cast<int>(i);
        if (choice.size() < 4 || whole.find(choice) == std::string::npos) continue;
        // A choice that is a part of a longer one that is there as well was not what was meant.
        if (choice.size() > longest) contained.clear();
        if (choice.size() >= longest) contained.insert(static_cast<int>(i));
        longest = std::max(longest, choice.size());
    }
    if (contained.size() != 1) return std::nullopt;
    for (std::size_t i = 0; i < choices.size(); ++i) {
        const auto choice = lower(trimmed(choices[i]));
        const auto meant = lower(trimmed(choices[static_cast<std::size_t>(*contained.begin())]));
        const bool part = meant.find(choice) != std::string::npos;
        if (choice.size() >= 4 && !part && whole.find(choice) != std::string::npos)
            return std::nullopt;  // two are named
    }
    return *contained.begin();
}

}  // namespace

std::string without_reasoning(std::string_view reply) {
    constexpr std::string_view open = "<think>", close = "</think>";
    if (const auto end = reply.rfind(close); end != std::string_view::npos)
        return std::string(reply.substr(end + close.size()));
    return std::string(reply.substr(0, reply.find(open)));
}

std::optional<int> parse_choice(std::string_view reply, const std::vector<std::string>& choices) {
    const auto text = trimmed(without_marks(without_reasoning(reply)));
    if (text.empty()) return std::nullopt;
    if (const auto word = single_word(text, choices)) return word;
    const auto n = choices.size();
    // "The answer is (B)", "Answer: B", "the correct choice would be B": the last one decides.
    static const std::regex stated(
        R"((?:answer|choice|option|ending)\s*(?:is|was|would be|should be|must be|:|=|-)+\s*:?\s*(?:the\s+)?(?:(?:choice|option|answer|letter)\s+)?[\(\["']?([A-Za-z])(?:[\)\]\.,:;"']|\s*$|\s*\n|\s+(?:because|since|as|is)\b))",
        std::regex::icase);
    if (const auto index = matched(text, stated, n, true)) return index;
    static const std::regex undecided(R"(^\W*[A-Z]\W*(?:\bor\b|\band\b|/|,)\W*[A-Z]\b)");
    if (std::regex_search(text, undecided)) return std::nullopt;
    // The reply begins with it: "B) Paris", "(B)", "B. Paris", "B\nbecause".
    static const std::regex first(R"(^(?:(?:choice|option|answer)\s+)?[\(\[]?([A-Z])(?:[\)\]\.:,;]|\s*\n|\s+[-–—]))",
                                  std::regex::icase);
    std::smatch match;
    if (std::regex_search(text, match, first))
        if (const auto index = index_of(match.str(1).front(), n)) return index;
    // "(B)" anywhere, where only one is named; then a line that is but a letter.
    static const std::regex in_brackets(R"([\(\[]([A-Z])[\)\]])");
    if (const auto index = matched(text, in_brackets, n, false)) return index;
    static const std::regex line(R"((?:^|\n)\s*([A-Z])[\.\):]?\s*(?=\n|$))");
    if (const auto index = matched(text, line, n, true)) return index;
    static const std::regex named(R"(\b(?:choice|option)\s+([A-Z])\b)", std::regex::icase);
    if (const auto index = matched(text, named, n, false)) return index;
    return by_text(text, choices);
}

}  // namespace cerebellum
