#pragma once

#include <sys/types.h>

#include <filesystem>

namespace cerebellum {

/// A temporary file or folder, or a group of processes, that must not outlive this process. Whoever makes one takes it
/// away in their own destructor; the object only says that it is there, for remove_leftovers().
class Leftover {
  public:
    explicit Leftover(std::filesystem::path path);
    explicit Leftover(pid_t process_group);
    ~Leftover();
    Leftover(const Leftover&) = delete;
    Leftover& operator=(const Leftover&) = delete;

  private:
    std::filesystem::path path_;
    pid_t group_ = 0;
};

/// The same for who has no object to keep. Names that hold the number of this process need not be forgotten.
void remember_leftover(const std::filesystem::path& path);
void forget_leftover(const std::filesystem::path& path);

/// For a program that ends without unwinding, as its work does not answer: takes away what is known. Processes that
/// were asked to end have a moment for it. From any thread, not from a signal handler.
void remove_leftovers() noexcept;

}  // namespace cerebellum
