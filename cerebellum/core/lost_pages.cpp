#include "cerebellum/core/lost_pages.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

// A signal handler may call little: no locks, and no memory but its own.
namespace cerebellum {

namespace {

struct sigaction before;

/// Characters of /proc/self/maps, one by one.
class Mappings {
  public:
    Mappings() : descriptor_(::open("/proc/self/maps", O_RDONLY | O_CLOEXEC)) {}
    ~Mappings() {
        if (descriptor_ >= 0) ::close(descriptor_);
    }
    Mappings(const Mappings&) = delete;
    Mappings& operator=(const Mappings&) = delete;

    /// Into `path` what is mapped at the address, cut where it is longer; false where that is no file.
    template <std::size_t N>
    bool find(std::uintptr_t address, std::array<char, N>& path) {
        while (true) {
            const auto begin = hexadecimal(), end = hexadecimal();
            if (last_ < 0) return false;
            while (last_ >= 0 && last_ != '\n' && last_ != '/') next();
            std::size_t length = 0;
            for (; last_ >= 0 && last_ != '\n'; next())
                if (length + 1 < N) path[length++] = static_cast<char>(last_);
            path[length] = '\0';
            if (address >= begin && address < end) return length > 0;
        }
    }

  private:
    /// Up to the character behind it.
    std::uintptr_t hexadecimal() {
        std::uintptr_t value = 0;
        for (next(); true; next()) {
            if (last_ >= '0' && last_ <= '9')
                value = value * 16 + static_cast<std::uintptr_t>(last_ - '0');
            else if (last_ >= 'a' && last_ <= 'f')
                value = value * 16 + static_cast<std::uintptr_t>(last_ - 'a' + 10);
            else
                return value;
        }
    }
    void next() {
        if (at_ == size_) {
            const auto got = descriptor_ < 0 ? 0 : ::read(descriptor_, buffer_.data(), buffer_.size());
            size_ = got > 0 ? static_cast<std::size_t>(got) : 0;
            at_ = 0;
        }
        last_ = at_ < size_ ? static_cast<unsigned char>(buffer_[at_++]) : -1;
    }

    int descriptor_;
    std::array<char, 4096> buffer_{};
    std::size_t at_ = 0, size_ = 0;
    int last_ = 0;  // negative: there is no more
};

void say(const char* text) {
    for (std::size_t left = std::strlen(text); left > 0;) {
        const auto written = ::write(STDERR_FILENO, text, left);
        if (written <= 0) return;
        text += written;
        left -= static_cast<std::size_t>(written);
    }
}

void on_lost_page(int, siginfo_t* info, void*) {
    std::array<char, 512> path{};
    if (Mappings().find(reinterpret_cast<std::uintptr_t>(info->si_addr), path)) {
        say("\ncerebellum: ");
        say(path.data());
        say(" was cut short while it was read, or its disk fails; let nobody write to it and run the same command "
            "again\n");
        ::_exit(1);
    }
    // No file's: the instruction is tried again, and the signal does what it did before.
    ::sigaction(SIGBUS, &before, nullptr);
}

}  // namespace

void explain_lost_pages() {
    struct sigaction action {};
    action.sa_sigaction = &on_lost_page;
    action.sa_flags = SA_SIGINFO;
    ::sigemptyset(&action.sa_mask);
    ::sigaction(SIGBUS, &action, &before);
}

}  // namespace cerebellum
