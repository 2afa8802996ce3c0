#include "cerebellum/core/ggml_abort.h"

#include <fmt/format.h>

#include <atomic>

#include "cerebellum/core/visible_text.h"

namespace cerebellum {

namespace {

thread_local const std::string* blamed = nullptr;
std::atomic<bool> device_in_use = false;

/// The first line, without the place in ggml's source in front of it.
std::string_view essence(std::string_view text) {
    if (const auto words = text.find(": ");
        text.find(".cpp:") < words || text.find(".c:") < words || text.find(".cu:") < words)
        text.remove_prefix(words + 2);
    return text.substr(0, text.find('\n'));
}

}  // namespace

AbortBlame::AbortBlame(const std::string& file) : previous_(blamed) {
    blamed = &file;
}
AbortBlame::~AbortBlame() {
    blamed = previous_;
}

void note_device_use() {
    device_in_use = true;
}

std::string abort_message(std::string_view ggml_text) {
    const auto line = visible(essence(ggml_text));
    // Assertions are about what a file says; a device that is gone or full has words of its own.
    if (blamed != nullptr && line.starts_with("GGML_ASSERT"))
        return fmt::format(
            "cannot use {}: llama.cpp gives up on it ({}); its metadata contradict its tensors or are none that "
            "llama.cpp can run: convert or fetch it again",
            visible(*blamed), line);
    if (device_in_use)
        return fmt::format(
            "the device stopped working: {}; what was measured is kept, run the same command again to go on (with "
            "less --device-memory if it ran out of it)",
            line);
    return fmt::format(
        "ggml gave up: {}; what was measured is kept, run the same command again to go on, and report this where it "
        "happens again",
        line);
}

}  // namespace cerebellum
