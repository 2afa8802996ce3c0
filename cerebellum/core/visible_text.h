#pragma once

#include <string>
#include <string_view>

namespace cerebellum {

/// A text that is not ours (a model's answer, a name out of a file, a server's words) as it may stand in a terminal or
/// a message of one line: what a terminal would obey or what would change the order of what is read (C0 and C1 control
/// characters, DEL, bidirectional marks and overrides, line separators, tags) is written as \n, \u001b, \u202e; a byte
/// that is no UTF-8 as \xff. Everything else is as it was. Output of an output is the same.
std::string visible(std::string_view text);

/// The same, but line feeds stay: for texts of several lines. JSON that this changes is the same JSON still, as what is
/// escaped can only stand in its strings.
std::string visible_lines(std::string_view text);

/// Whether all of it is UTF-8, as JSON has to be.
bool is_utf8(std::string_view text);

/// At most so many bytes of the text, cut between two characters of UTF-8.
std::string_view cut_utf8(std::string_view text, std::size_t bytes);

/// A part of a file's name made from a text that is not ours: letters, digits and what else has no meaning to a file
/// system, a shell or a terminal; everything else becomes '_'. Neither empty nor hidden, at most 100 bytes.
std::string file_name_from(std::string_view text);

}  // namespace cerebellum
