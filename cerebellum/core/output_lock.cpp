#include "cerebellum/core/output_lock.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string_view>
#include <utility>

#include "cerebellum/core/error.h"
#include "cerebellum/core/leftovers.h"

namespace cerebellum {

namespace fs = std::filesystem;

namespace {

constexpr std::string_view mark = "finishing\n";

fs::path lock_path(fs::path output) {
    output += ".lock";
    return output;
}

}  // namespace

OutputLock::OutputLock(fs::path output) : path_(lock_path(output)) {
    while (true) {
        // Never through a link: the name may be somebody else's.
        descriptor_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666);
        if (descriptor_ < 0 && errno == ENOENT) return;
        struct stat info {};
        if (descriptor_ < 0 || ::fstat(descriptor_, &info) != 0 || !S_ISREG(info.st_mode)) {
            const int reason = descriptor_ < 0 ? errno : EEXIST;
            if (descriptor_ >= 0) ::close(std::exchange(descriptor_, -1));
            throw Error(fmt::format("cannot write {}: {}; choose another folder or mend its permissions",
                                    path_.string(), std::strerror(reason)));
        }
        if (::flock(descriptor_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
            ::close(std::exchange(descriptor_, -1));
            throw Error(fmt::format("another run is writing {} and holds {}; wait for it, or choose another name",
                                    output.string(), path_.string()));
        }
        // The one who held it may have removed it before the lock was ours.
        if (::fstat(descriptor_, &info) == 0 && info.st_nlink > 0) {
            was_left_finishing_ = info.st_size == static_cast<off_t>(mark.size());
            if (!was_left_finishing_) remember_leftover(path_);
            return;
        }
        ::close(std::exchange(descriptor_, -1));
    }
}

OutputLock::OutputLock(OutputLock&& other) noexcept
    : path_(std::move(other.path_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      was_left_finishing_(other.was_left_finishing_) {}

OutputLock::~OutputLock() {
    if (descriptor_ < 0) return;
    forget_leftover(path_);
    ::unlink(path_.c_str());  // while it is locked, so that nobody holds a lock on what has no name
    ::close(descriptor_);
}

void OutputLock::finishing() {
    if (descriptor_ < 0 || was_left_finishing_) return;
    forget_leftover(path_);  // the mark has to be found again
    if (::pwrite(descriptor_, mark.data(), mark.size(), 0) != static_cast<ssize_t>(mark.size()) ||
        ::fsync(descriptor_) != 0)
        throw Error(fmt::format("cannot write {}: {}", path_.string(), std::strerror(errno)));
}

}  // namespace cerebellum
