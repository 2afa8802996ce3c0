#include "cerebellum/evaluate/answer_parser.h"

#include <algorithm>
#include <cctype>
#include <initializer_list>
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

// Replies are scanned by hand, once from front to back: std::regex takes a frame of the stack for each character, and
// what a model says has any length. Letters, digits and blanks are ASCII's.

bool is_blank(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

bool is_letter(char c) {
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

bool is_capital(char c) {
    return c >= 'A' && c <= 'Z';
}

bool is_word(char c) {
    return is_letter(c) || (c >= '0' && c <= '9') || c == '_';
}

bool is_one_of(char c, std::string_view set) {
    return set.find(c) != std::string_view::npos;
}

/// A place in a text. What a function does not find leaves it where it is.
class Scanner {
  public:
    explicit Scanner(std::string_view text, std::size_t at = 0) : text_(text), at_(at) {}

    std::size_t at() const { return at_; }
    bool at_end() const { return at_ == text_.size(); }
    /// Between a word's character and none.
    bool at_boundary() const { return (at_ > 0 && is_word(text_[at_ - 1])) != (!at_end() && is_word(text_[at_])); }
    template <typename Test>
    std::optional<char> take(Test&& test) {
        if (at_end() || !test(text_[at_])) return std::nullopt;
        return text_[at_++];
    }
    bool take_one_of(std::string_view set) {
        return take([&](char c) { return is_one_of(c, set); }).has_value();
    }
    bool take_text(std::string_view wanted) {
        if (!text_.substr(at_).starts_with(wanted)) return false;
        at_ += wanted.size();
        return true;
    }
    /// One of the words (in lower case), however it is written.
    bool take_word(std::initializer_list<std::string_view> words) {
        for (const auto word : words) {
            const auto here = text_.substr(at_, word.size());
            if (!std::ranges::equal(here, word, {},
                                    [](char c) { return is_capital(c) ? static_cast<char>(c - 'A' + 'a') : c; }))
                continue;
            at_ += word.size();
            return true;
        }
        return false;
    }
    /// Passes over all that the test is true of, and returns it.
    template <typename Test>
    std::string_view run(Test&& test) {
        const auto begin = at_;
        while (!at_end() && test(text_[at_])) ++at_;
        return text_.substr(begin, at_ - begin);
    }
    std::string_view blanks() { return run(is_blank); }
    /// One of the words and blanks behind it.
    bool take_word_and_blanks(std::initializer_list<std::string_view> words) {
        Scanner ahead = *this;
        if (!ahead.take_word(words) || ahead.blanks().empty()) return false;
        *this = ahead;
        return true;
    }

  private:
    std::string_view text_;
    std::size_t at_;
};

/// Without Markdown's emphasis and code marks, and LaTeX's frames around an answer.
std::string without_marks(std::string_view text) {
    std::string result;
    for (Scanner scanner(text); !scanner.at_end();) {
        if (Scanner frame = scanner; frame.take_text("\\") && (frame.take_text("boxed") || frame.take_text("textbf") ||
                                                               frame.take_text("text") || frame.take_text("mathrm") ||
                                                               frame.take_text("mathbf"))) {
            frame.blanks();
            if (frame.take_text("{")) {
                scanner = frame;
                continue;
            }
        }
        if (const auto c = scanner.take([](char) { return true; }); !is_one_of(*c, "*`${}")) result += *c;
    }
    return result;
}

std::optional<int> index_of(char letter, std::size_t n_choices) {
    const int index = std::toupper(static_cast<unsigned char>(letter)) - 'A';
    if (index < 0 || index >= static_cast<int>(n_choices)) return std::nullopt;
    return index;
}

/// The choice that all letters name which `match` finds; with `last`, the one that the last of them names. `match` gets
/// a place and moves behind what it finds there.
template <typename Match>
std::optional<int> matched(std::string_view text, std::size_t n_choices, bool last, Match&& match) {
    std::optional<int> found;
    for (std::size_t at = 0; at < text.size();) {
        Scanner scanner(text, at++);
        const std::optional<char> letter = match(scanner);
        if (!letter) continue;
        at = scanner.at();
        const auto index = index_of(*letter, n_choices);
        if (!index) continue;
        if (!last && found && *found != *index) return std::nullopt;
        found = index;
    }
    return found;
}

/// "answer is (B)", "Answer: B", "choice would be the option B because": what follows the letter must end it.
std::optional<char> stated(Scanner& scanner) {
    if (!scanner.take_word({"answer", "choice", "option", "ending"})) return std::nullopt;
    scanner.blanks();
    const auto connect = [&] {
        return scanner.take_word({"is", "was", "would be", "should be", "must be"}) || scanner.take_one_of(":=-");
    };
    if (!connect()) return std::nullopt;
    while (connect()) {
    }
    scanner.blanks();
    scanner.take_one_of(":");
    scanner.blanks();
    scanner.take_word_and_blanks({"the"});
    scanner.take_word_and_blanks({"choice", "option", "answer", "letter"});
    scanner.take_one_of("([\"'");
    const auto letter = scanner.take(is_letter);
    if (!letter || scanner.take_one_of(")].,:;\"'")) return letter;
    const auto blanks = scanner.blanks();
    if (scanner.at_end() || blanks.find('\n') != std::string_view::npos) return letter;
    // "is" in front of "is not" is a word, "as" in front of "assumed" none.
    if (!blanks.empty())
        for (const auto word : {"because", "since", "as", "is"})
            if (Scanner ahead = scanner; ahead.take_word({word}) && ahead.at_boundary()) return letter;
    return std::nullopt;
}

/// "A or B", "(A)/(B)", "A, B" at the beginning.
bool is_undecided(std::string_view text) {
    const auto other = [](char c) { return !is_word(c); };
    Scanner scanner(text);
    scanner.run(other);
    if (!scanner.take(is_capital)) return false;
    const auto between = scanner.run(other);
    if (between.empty()) return false;
    if (between.find_first_of("/,") != std::string_view::npos)
        if (Scanner second = scanner; second.take(is_capital) && second.at_boundary()) return true;
    if ((!scanner.take_text("or") && !scanner.take_text("and")) || !scanner.at_boundary()) return false;
    scanner.run(other);
    return scanner.take(is_capital) && scanner.at_boundary();
}

/// The reply begins with it: "B) Paris", "(B)", "B. Paris", "Option B - Paris", "B\nbecause".
std::optional<char> first_letter(std::string_view text) {
    Scanner scanner(text);
    scanner.take_word_and_blanks({"choice", "option", "answer"});
    scanner.take_one_of("([");
    const auto letter = scanner.take(is_letter);
    if (!letter || scanner.take_one_of(")].:,;")) return letter;
    const auto blanks = scanner.blanks();
    if (blanks.find('\n') != std::string_view::npos) return letter;
    const bool dash = scanner.take_text("-") || scanner.take_text("–") || scanner.take_text("—");
    return !blanks.empty() && dash ? letter : std::nullopt;
}

std::optional<char> in_brackets(Scanner& scanner) {
    if (!scanner.take_one_of("([")) return std::nullopt;
    const auto letter = scanner.take(is_capital);
    return letter && scanner.take_one_of(")]") ? letter : std::nullopt;
}

/// "option B".
std::optional<char> named(Scanner& scanner) {
    if (!scanner.at_boundary() || !scanner.take_word_and_blanks({"choice", "option"})) return std::nullopt;
    const auto letter = scanner.take(is_letter);
    return letter && scanner.at_boundary() ? letter : std::nullopt;
}

/// A line that is but a letter: the last one.
std::optional<int> letter_line(std::string_view text, std::size_t n_choices) {
    std::optional<int> found;
    for (Scanner scanner(text); !scanner.at_end(); scanner.take_text("\n")) {
        Scanner line(scanner.run([](char c) { return c != '\n'; }));
        line.blanks();
        const auto letter = line.take(is_capital);
        if (!letter) continue;
        line.take_one_of(".):");
        line.blanks();
        if (const auto index = index_of(*letter, n_choices); index && line.at_end()) found = index;
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
    // What is stated outright, the last time; then what the reply begins with.
    if (const auto index = matched(text, n, true, stated)) return index;
    if (is_undecided(text)) return std::nullopt;
    if (const auto letter = first_letter(text))
        if (const auto index = index_of(*letter, n)) return index;
    // "(B)" anywhere, where only one is named; then a line that is but a letter.
    if (const auto index = matched(text, n, false, in_brackets)) return index;
    if (const auto index = letter_line(text, n)) return index;
    if (const auto index = matched(text, n, false, named)) return index;
    return by_text(text, choices);
}

}  // namespace cerebellum
