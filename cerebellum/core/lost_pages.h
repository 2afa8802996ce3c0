#pragma once

namespace cerebellum {

/// From here on, SIGBUS in memory that a file is mapped into ends the program with exit code 1 and one line on standard
/// error that names the file: somebody has shortened it, or its disk fails or is full. Whoever has mapped it, libllama
/// too: the system's own list of mappings is asked. Elsewhere the signal does what it did before. For programs: a
/// library's user may have a handler of their own.
void explain_lost_pages();

}  // namespace cerebellum
