#include "cerebellum/core/quoting.h"

#include <fmt/format.h>

#include <algorithm>

namespace cerebellum {

namespace {

constexpr std::string_view letters_and_digits = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";

bool is_one_of(char c, std::string_view others) {
    return letters_and_digits.find(c) != std::string_view::npos || others.find(c) != std::string_view::npos;
}

}  // namespace

std::string shell_word(std::string_view word) {
    if (!word.empty() && std::ranges::all_of(word, [](char c) { return is_one_of(c, "_@%+=:,./-"); }))
        return std::string(word);
    std::string text = "'";
    for (const char c : word) text += c == '\'' ? std::string("'\\''") : std::string(1, c);
    return text + "'";
}

std::string shell_path(std::string_view path) {
    return shell_word(path.starts_with('-') ? "./" + std::string(path) : std::string(path));
}

std::string percent_encoded(std::string_view path) {
    std::string text;
    for (const char c : path)
        text += is_one_of(c, "-._~/") ? std::string(1, c) : fmt::format("%{:02X}", static_cast<unsigned char>(c));
    return text;
}

}  // namespace cerebellum
