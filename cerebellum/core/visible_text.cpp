#include "cerebellum/core/visible_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>

namespace cerebellum {

namespace {

struct Character {
    char32_t code = 0;
    std::size_t size = 0;  // in bytes; 0 where the text does not begin with a character
};

/// As Unicode's table 3-7 has it: neither overlong forms nor surrogates.
Character first_character(std::string_view text) {
    const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
    const unsigned first = byte(0);
    if (first < 0x80) return {first, 1};
    const std::size_t size = first >= 0xC2 && first < 0xE0   ? 2
                             : (first & 0xF0U) == 0xE0       ? 3
                             : first >= 0xF0 && first < 0xF5 ? 4
                                                             : 0;
    if (size == 0 || text.size() < size) return {};
    char32_t code = first & (0xFFU >> (size + 1));
    for (std::size_t i = 1; i < size; ++i) {
        if ((byte(i) & 0xC0U) != 0x80) return {};
        code = code << 6U | (byte(i) & 0x3FU);
    }
    constexpr char32_t smallest[] = {0, 0, 0x80, 0x800, 0x10000};
    if (code < smallest[size] || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) return {};
    return {code, size};
}

bool is_dangerous(char32_t c) {
    const auto within = [c](char32_t first, char32_t last) { return c >= first && c <= last; };
    return c < 0x20 || within(0x7F, 0x9F) || c == 0x61C || within(0x200E, 0x200F) || within(0x2028, 0x202E) ||
           within(0x2066, 0x2069) || c == 0xFEFF || within(0xFFF9, 0xFFFB) || within(0xE0000, 0xE007F);
}

std::string escaped(char32_t c) {
    if (c == '\n') return "\\n";
    if (c == '\r') return "\\r";
    if (c == '\t') return "\\t";
    const auto code = static_cast<std::uint32_t>(c);
    if (code < 0x10000) return fmt::format("\\u{:04x}", code);
    return fmt::format("\\u{:04x}\\u{:04x}", 0xD800 + ((code - 0x10000) >> 10U), 0xDC00 + (code & 0x3FFU));
}

std::string made_visible(std::string_view text, bool keep_lines) {
    std::string result;
    result.reserve(text.size());
    while (!text.empty()) {
        const auto [code, size] = first_character(text);
        if (size == 0)
            result += fmt::format("\\x{:02x}", static_cast<unsigned char>(text.front()));
        else if (is_dangerous(code) && !(keep_lines && code == '\n'))
            result += escaped(code);
        else
            result += text.substr(0, size);
        text.remove_prefix(std::max<std::size_t>(size, 1));
    }
    return result;
}

}  // namespace

std::string visible(std::string_view text) {
    return made_visible(text, false);
}

std::string visible_lines(std::string_view text) {
    return made_visible(text, true);
}

bool is_utf8(std::string_view text) {
    while (!text.empty()) {
        const auto size = first_character(text).size;
        if (size == 0) return false;
        text.remove_prefix(size);
    }
    return true;
}

std::string_view cut_utf8(std::string_view text, std::size_t bytes) {
    if (text.size() <= bytes) return text;
    while (bytes > 0 && (static_cast<unsigned char>(text[bytes]) & 0xC0U) == 0x80) --bytes;
    return text.substr(0, bytes);
}

std::string file_name_from(std::string_view text) {
    constexpr std::size_t longest = 100;
    constexpr std::string_view harmless = "+,-._=@";
    std::string name;
    while (!text.empty()) {
        const auto [code, size] = first_character(text);
        const bool letter = (code >= '0' && code <= '9') || (code >= 'A' && code <= 'Z') ||
                            (code >= 'a' && code <= 'z') || (code >= 0xA1 && !is_dangerous(code));
        if (size > 0 && (letter || (size == 1 && harmless.find(text.front()) != std::string_view::npos)))
            name += text.substr(0, size);
        else
            name += '_';
        text.remove_prefix(std::max<std::size_t>(size, 1));
    }
    name = cut_utf8(name, longest);
    if (name.empty()) return "_";
    if (name.front() == '.' || name.front() == '-') name.front() = '_';
    return name;
}

}  // namespace cerebellum
