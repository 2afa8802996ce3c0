#pragma once

#include <string>

namespace cerebellum {

/// While alive, collects what llama.cpp and ggml log in this process instead of letting it reach stderr.
/// One at a time per process; the previous logger comes back on destruction.
class LogCapture {
  public:
    LogCapture();
    ~LogCapture();
    LogCapture(const LogCapture&) = delete;
    LogCapture& operator=(const LogCapture&) = delete;

    /// Everything logged so far, all levels.
    const std::string& text() const;
    /// The last error logged, without the function name in front and in one line; `fallback` where there was none.
    std::string last_error(const std::string& fallback) const;
    /// The first one: where llama.cpp reports on several levels, this is the reason and the others its consequences.
    std::string first_error(const std::string& fallback) const;
};

/// From now on llama.cpp's own messages are dropped. Called once by whoever starts the library.
void silence_llama_log();

}  // namespace cerebellum
