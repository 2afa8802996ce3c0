#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "cerebellum/report/stored_result.h"

namespace cerebellum {

/// Words of ours. A digit in them does not compile: numbers come from stored results.
class Prose {
  public:
    template <std::size_t N>
    // NOLINTNEXTLINE(google-explicit-constructor): a literal is what it stands for
    consteval Prose(const char (&text)[N]) : text_(text, N - 1) {
        for (const char c : text_)
            if (c >= '0' && c <= '9') throw "a number in a card has to come from a stored result";
    }
    std::string_view text() const { return text_; }

  private:
    std::string_view text_;
};

/// How a number is written.
enum class Figure { whole, one_digit, two_digits, three_digits, five_digits, scientific, percent, bytes };

/// A line of Markdown: words of ours, and stored values. Numbers are links to where they are stored.
class CardText {
  public:
    CardText() = default;
    explicit CardText(Prose prose) { add(prose); }

    CardText& add(Prose prose);
    /// A number; a link.
    CardText& add(const Stored& number, Figure figure);
    /// A text (a name, a command) as it is stored, as code.
    CardText& name(const Stored& text);
    /// The key that the last part of a value's pointer is, as code.
    CardText& key(const Stored& value);
    /// A link to a whole file.
    CardText& file(const StoredResult& result);
    /// A link to a file whose name is stored.
    CardText& file(const Stored& name);
    CardText& add(const CardText& other);

    bool empty() const { return pieces_.empty(); }
    /// As Markdown, and for a block of code, where nothing can be a link.
    std::string markdown() const;
    std::string plain() const;

  private:
    struct Piece {
        std::string plain;
        std::string link;
        bool code = false;
    };
    std::vector<Piece> pieces_;
};

/// "0.01194 ± 0.00051" of an object {"mean", "error"}; the error only where there is one.
CardText with_error(const StoredResult& result, const std::string& pointer, Figure figure);

/// A Markdown document of such texts.
class CardDocument {
  public:
    void title(const CardText& text);
    void heading(Prose text);
    void paragraph(const CardText& text);
    void paragraph(Prose text) { paragraph(CardText(text)); }
    void bullets(const std::vector<CardText>& items);
    void table(const std::vector<Prose>& header, const std::vector<std::vector<CardText>>& rows);
    /// Commands, and the result that they are stored in.
    void code(const std::vector<CardText>& lines, const StoredResult& from);
    const std::string& markdown() const { return text_; }

  private:
    std::string text_;
};

}  // namespace cerebellum
