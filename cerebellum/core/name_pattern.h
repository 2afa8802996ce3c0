#pragma once

#include <regex>
#include <string_view>

namespace cerebellum {

/// A regular expression for names of tensors, as llama-quantize reads it from a file: std::regex, but only such as end
/// in time whatever the name. That engine tries all ways in turn, and a short pattern from anybody's file could keep it
/// busy for years, overflow its stack or its numbers. Throws Error that says what is not taken: more than 1,000
/// characters, references to groups, a repeated group with repetitions or alternatives in it, more than 3 repetitions
/// ('*', '+', '{n}') or more than 4 '?', and what is no regular expression.
std::regex name_pattern(std::string_view pattern);

}  // namespace cerebellum
