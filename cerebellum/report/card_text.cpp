#include "cerebellum/report/card_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "cerebellum/core/quoting.h"
#include "cerebellum/core/size.h"

namespace cerebellum {

namespace {

std::string written(double value, Figure figure) {
    switch (figure) {
        case Figure::whole:
            return fmt::format("{:.0f}", value);
        case Figure::one_digit:
            return fmt::format("{:.1f}", value);
        case Figure::two_digits:
            return fmt::format("{:.2f}", value);
        case Figure::three_digits:
            return fmt::format("{:.3f}", value);
        case Figure::five_digits:
            return fmt::format("{:.5f}", value);
        case Figure::scientific:
            return fmt::format("{:.2e}", value);
        case Figure::percent:
            return fmt::format("{:.2f} %", 100.0 * value);
        case Figure::bytes:
            return format_bytes(static_cast<std::uint64_t>(std::max(0.0, value)));
    }
    return "";
}

/// In backticks, more of them where the text has some itself.
std::string as_code(const std::string& text) {
    std::size_t longest = 0, run = 0;
    for (const char c : text) longest = std::max(longest, run = c == '`' ? run + 1 : 0);
    const std::string fence(longest + 1, '`');
    const bool padded = longest > 0;
    return fence + (padded ? " " : "") + text + (padded ? " " : "") + fence;
}

/// One line; what would end a cell of a table is escaped.
std::string one_line(std::string text) {
    std::ranges::replace(text, '\n', ' ');
    std::string result;
    for (const char c : text) result += c == '|' ? "\\|" : std::string(1, c);
    return result;
}

}  // namespace

CardText& CardText::add(Prose prose) {
    pieces_.push_back({std::string(prose.text()), "", false});
    return *this;
}

CardText& CardText::add(const Stored& number, Figure figure) {
    pieces_.push_back({written(number.number(), figure), number.url(), false});
    return *this;
}

CardText& CardText::name(const Stored& text) {
    pieces_.push_back({text.text(), "", true});
    return *this;
}

CardText& CardText::key(const Stored& value) {
    const auto& pointer = value.pointer();
    pieces_.push_back({pointer.substr(pointer.rfind('/') + 1), "", true});
    return *this;
}

CardText& CardText::file(const StoredResult& result) {
    pieces_.push_back({result.link(), result.url(), true});
    return *this;
}

CardText& CardText::file(const Stored& name) {
    pieces_.push_back({name.text(), percent_encoded(name.text()), true});
    return *this;
}

CardText& CardText::add(const CardText& other) {
    pieces_.insert(pieces_.end(), other.pieces_.begin(), other.pieces_.end());
    return *this;
}

std::string CardText::markdown() const {
    std::string text;
    for (const auto& piece : pieces_) {
        const auto shown = piece.code ? as_code(one_line(piece.plain)) : piece.plain;
        text += piece.link.empty() ? shown : fmt::format("[{}]({})", shown, piece.link);
    }
    return text;
}

std::string CardText::plain() const {
    std::string text;
    for (const auto& piece : pieces_) text += piece.plain;
    return text;
}

CardText with_error(const StoredResult& result, const std::string& pointer, Figure figure) {
    CardText text;
    text.add(result.at(pointer + "/mean"), figure);
    if (const auto error = result.find(pointer + "/error")) text.add(" ± ").add(*error, figure);
    return text;
}

void CardDocument::title(const CardText& text) {
    text_ += "# " + text.markdown() + "\n";
}

void CardDocument::heading(Prose text) {
    text_ += fmt::format("\n## {}\n", text.text());
}

void CardDocument::paragraph(const CardText& text) {
    text_ += "\n" + text.markdown() + "\n";
}

void CardDocument::bullets(const std::vector<CardText>& items) {
    text_ += "\n";
    for (const auto& item : items) text_ += "- " + item.markdown() + "\n";
}

void CardDocument::table(const std::vector<Prose>& header, const std::vector<std::vector<CardText>>& rows) {
    std::string line = "|", rule = "|";
    for (const auto& cell : header) {
        line += fmt::format(" {} |", cell.text());
        rule += " --- |";
    }
    text_ += "\n" + line + "\n" + rule + "\n";
    for (const auto& row : rows) {
        line = "|";
        for (const auto& cell : row) line += " " + cell.markdown() + " |";
        text_ += line + "\n";
    }
}

void CardDocument::code(const std::vector<CardText>& lines, const StoredResult& from) {
    text_ += "\n```\n";
    for (const auto& line : lines) text_ += line.plain() + "\n";
    text_ += "```\n\n" + CardText("As stored in ").file(from).add(".").markdown() + "\n";
}

}  // namespace cerebellum
