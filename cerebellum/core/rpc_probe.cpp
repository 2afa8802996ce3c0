#include "cerebellum/core/rpc_probe.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <ggml-rpc.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <condition_variable>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string_view>
#include <thread>

#include "cerebellum/core/error.h"
#include "cerebellum/core/progress.h"

namespace cerebellum {

namespace {

using Clock = std::chrono::steady_clock;

constexpr auto slice = std::chrono::milliseconds(50);  // between two looks at whether to stop

// Of ggml-rpc.cpp: a request is a byte, the length of what follows, and that; an answer is its length and that.
constexpr std::uint8_t command_hello = 14, command_device_count = 15;
constexpr std::size_t capability_bytes = 24, hello_bytes = 4 + capability_bytes;

struct LookUp {
    std::mutex mutex;
    std::condition_variable finished;
    bool done = false;
    std::optional<sockaddr_in> address;
};

/// An IPv4 address, as ggml takes no other. In a thread of its own, which may outlive who asked: nothing interrupts a
/// look-up.
std::optional<sockaddr_in> address_of(const std::string& host, std::uint16_t port, Clock::time_point deadline) {
    const auto result = std::make_shared<LookUp>();
    std::thread([result, host] {
        addrinfo hints{};
        hints.ai_family = AF_INET;
        hints.ai_socktype = SOCK_STREAM;
        addrinfo* list = nullptr;
        const bool found = getaddrinfo(host.c_str(), nullptr, &hints, &list) == 0 && list != nullptr;
        const std::lock_guard lock(result->mutex);
        if (found) std::memcpy(&result->address.emplace(), list->ai_addr, sizeof(sockaddr_in));
        if (list != nullptr) freeaddrinfo(list);
        result->done = true;
        result->finished.notify_all();
    }).detach();
    std::unique_lock lock(result->mutex);
    while (!result->done && Clock::now() < deadline) {
        NoProgress().check();
        result->finished.wait_for(lock, slice);
    }
    auto address = result->done ? result->address : std::nullopt;
    if (address) address->sin_port = htons(port);
    return address;
}

/// A connection of which every wait looks at the deadline and at whether to stop.
class Conversation {
  public:
    Conversation(const std::string& endpoint, Clock::time_point deadline, std::chrono::milliseconds limit)
        : endpoint_(endpoint), deadline_(deadline), limit_(limit) {}
    ~Conversation() {
        if (socket_ >= 0) ::close(socket_);
    }
    Conversation(const Conversation&) = delete;
    Conversation& operator=(const Conversation&) = delete;

    void connect(const sockaddr_in& address) {
        socket_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (socket_ < 0) nobody();
        if (::connect(socket_, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) return;
        if (errno != EINPROGRESS) nobody();
        wait(POLLOUT);
        int problem = 0;
        socklen_t size = sizeof problem;
        if (::getsockopt(socket_, SOL_SOCKET, SO_ERROR, &problem, &size) != 0 || problem != 0) nobody();
    }

    void ask(std::uint8_t command, std::span<const std::uint8_t> content) {
        std::array<std::uint8_t, 1 + sizeof(std::uint64_t) + capability_bytes> request{command};
        const std::uint64_t size = content.size();
        std::memcpy(request.data() + 1, &size, sizeof size);
        std::copy(content.begin(), content.end(), request.begin() + 1 + sizeof size);
        const auto all = std::span(request).first(1 + sizeof size + content.size());
        for (std::size_t sent = 0; sent < all.size();) {
            const auto count = ::send(socket_, all.data() + sent, all.size() - sent, MSG_NOSIGNAL);
            if (count > 0)
                sent += static_cast<std::size_t>(count);
            else if (!goes_on(POLLOUT))
                stranger();
        }
    }

    template <std::size_t Size>
    std::array<std::uint8_t, Size> answer() {
        std::uint64_t size = 0;
        std::array<std::uint8_t, sizeof size> length{};
        receive(length);
        std::memcpy(&size, length.data(), sizeof size);
        if (size != Size) stranger();
        std::array<std::uint8_t, Size> content{};
        receive(content);
        return content;
    }

    [[noreturn]] void nobody() const {
        throw Error(fmt::format("no RPC server answers at {}; start 'ggml-rpc-server' there first", endpoint_));
    }
    [[noreturn]] void stranger() const {
        throw Error(
            fmt::format("what listens at {} is no ggml RPC server (it answers in another way); name the port of a "
                        "'ggml-rpc-server' of the llama.cpp that this program is built with",
                        endpoint_));
    }

  private:
    void receive(std::span<std::uint8_t> bytes) {
        while (!bytes.empty()) {
            const auto count = ::recv(socket_, bytes.data(), bytes.size(), 0);
            if (count > 0)
                bytes = bytes.subspan(static_cast<std::size_t>(count));
            else if (count == 0 || !goes_on(POLLIN))
                stranger();
        }
    }

    /// Waits where the last call only was too early; false where it failed.
    bool goes_on(short event) {
        if (errno == EINTR) return true;
        if (errno != EAGAIN && errno != EWOULDBLOCK) return false;
        wait(event);
        return true;
    }

    void wait(short event) {
        while (true) {
            NoProgress().check();
            if (Clock::now() > deadline_)
                throw Error(fmt::format(
                    "the RPC server at {} does not answer within {:g} s; it serves one client at a time, so end the "
                    "run that uses it, or start 'ggml-rpc-server' there again",
                    endpoint_, std::chrono::duration<double>(limit_).count()));
            pollfd descriptor{socket_, event, 0};
            if (::poll(&descriptor, 1, static_cast<int>(slice.count())) > 0) return;
        }
    }

    const std::string& endpoint_;
    Clock::time_point deadline_;
    std::chrono::milliseconds limit_;
    int socket_ = -1;
};

std::uint16_t port_of(const std::string& endpoint, std::string_view digits) {
    std::uint16_t port = 0;
    const auto [end, problem] = std::from_chars(digits.data(), digits.data() + digits.size(), port);
    if (problem != std::errc() || end != digits.data() + digits.size() || port == 0)
        throw UsageError(
            fmt::format("{} is no RPC server: write host:port, the port as a number up to 65535", endpoint));
    return port;
}

}  // namespace

void probe_rpc_server(const std::string& endpoint, std::chrono::milliseconds limit) {
    const auto colon = endpoint.find(':');
    if (colon == std::string::npos || colon == 0)
        throw UsageError(fmt::format("{} is no RPC server: write host:port", endpoint));
    const auto port = port_of(endpoint, std::string_view(endpoint).substr(colon + 1));
    const auto deadline = Clock::now() + limit;
    Conversation server(endpoint, deadline, limit);
    const auto address = address_of(endpoint.substr(0, colon), port, deadline);
    if (!address) server.nobody();
    server.connect(*address);
    // Of no capabilities: that is plain TCP.
    server.ask(command_hello, std::array<std::uint8_t, capability_bytes>{});
    const auto hello = server.answer<hello_bytes>();
    if (hello[0] != RPC_PROTO_MAJOR_VERSION || hello[1] > RPC_PROTO_MINOR_VERSION)
        throw Error(
            fmt::format("the RPC server at {} speaks version {}.{}.{} of its protocol, and this program {}.{}.{}; run "
                        "the 'ggml-rpc-server' of the llama.cpp that it is built with",
                        endpoint, hello[0], hello[1], hello[2], RPC_PROTO_MAJOR_VERSION, RPC_PROTO_MINOR_VERSION,
                        RPC_PROTO_PATCH_VERSION));
    server.ask(command_device_count, {});
    if (server.answer<sizeof(std::uint32_t)>() == std::array<std::uint8_t, sizeof(std::uint32_t)>{})
        throw Error(fmt::format("the RPC server at {} has no device; start it with one", endpoint));
}

}  // namespace cerebellum
