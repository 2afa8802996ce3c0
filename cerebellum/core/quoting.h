#pragma once

#include <string>
#include <string_view>

namespace cerebellum {

/// A word as a POSIX shell reads it: as it is where no character of it means anything to a shell, else in quotes.
std::string shell_word(std::string_view word);
/// The same for the name of a file, which must not be taken for an option either.
std::string shell_path(std::string_view path);

/// A path as a part of a URL or of a link in Markdown: everything but letters, digits and "-._~/" percent-encoded
/// (RFC 3986).
std::string percent_encoded(std::string_view path);

}  // namespace cerebellum
