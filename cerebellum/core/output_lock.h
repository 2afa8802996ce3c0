#pragma once

#include <filesystem>

namespace cerebellum {

/// Keeps other processes from writing the same output: a lock on the file OUTPUT.lock, which is there as long as the
/// object. The system lets go of it however the process ends; a file that was left behind is no lock.
class OutputLock {
  public:
    /// Throws Error where another process writes `output`, or where nothing can be made in its folder. A folder that is
    /// missing, and a file system without locks, are no matter of this class.
    explicit OutputLock(std::filesystem::path output);
    ~OutputLock();
    OutputLock(OutputLock&& other) noexcept;
    OutputLock& operator=(OutputLock&& other) = delete;

    /// From here on the outputs get their names, one after the other.
    void finishing();
    /// Whether an earlier process ended between that and its end: what lies there is its own and not complete.
    bool was_left_finishing() const { return was_left_finishing_; }

  private:
    std::filesystem::path path_;
    int descriptor_ = -1;
    bool was_left_finishing_ = false;
};

}  // namespace cerebellum
