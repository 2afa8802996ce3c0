#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace cerebellum {

/// Version of parse_choice: answers parsed by an older one may be judged again.
constexpr int answer_parser_version = 2;

/// The reply without what a model thought aloud: everything up to the last </think>, or from a <think> on that was
/// never closed.
std::string without_reasoning(std::string_view reply);

/// Which of the choices a reply names, by letter, by number where letters were offered and the reply is but a number,
/// or by the text of exactly one choice. Empty where it names none, or several without deciding.
std::optional<int> parse_choice(std::string_view reply, const std::vector<std::string>& choices);

}  // namespace cerebellum
