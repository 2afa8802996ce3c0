#pragma once

#include <string>
#include <string_view>

namespace cerebellum {

/// While it lives, an assertion of ggml's or llama.cpp's that fails in this thread is put down to this file: that is
/// what is being read, and its metadata is what the code that failed goes by.
class AbortBlame {
  public:
    /// Of the file; it must outlive the object.
    explicit AbortBlame(const std::string& file);
    ~AbortBlame();
    AbortBlame(const AbortBlame&) = delete;
    AbortBlame& operator=(const AbortBlame&) = delete;

  private:
    const std::string* previous_;
};

/// Whether ggml computes on anything but the CPU from now on.
void note_device_use();

/// What to tell the user about a text with which ggml ends the program: about the file that is being read, the device
/// that failed, or ggml itself.
std::string abort_message(std::string_view ggml_text);

}  // namespace cerebellum
