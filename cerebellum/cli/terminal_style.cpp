#include "cerebellum/cli/terminal_style.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdlib>
#include <string_view>

namespace cerebellum::cli {

bool is_terminal(int descriptor) {
    const char* term = std::getenv("TERM");
    return isatty(descriptor) == 1 && (term == nullptr || std::string_view(term) != "dumb");
}

int columns_of(int descriptor) {
    winsize size = {};
    return ioctl(descriptor, TIOCGWINSZ, &size) == 0 && size.ws_col >= 40 ? size.ws_col : 80;
}

TextStyle stdout_style() {
    if (!is_terminal(STDOUT_FILENO)) return {};
    const char* no_colour = std::getenv("NO_COLOR");
    return {columns_of(STDOUT_FILENO), no_colour == nullptr || *no_colour == '\0'};
}

}  // namespace cerebellum::cli
