#include "cerebellum/core/rpc_probe.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <thread>

#include "cerebellum/core/error.h"

namespace cerebellum {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

constexpr auto short_time = std::chrono::milliseconds(200);

/// Listens; what connects is accepted by the system, and hears nothing, or what is said to it from the beginning.
class Listener {
  public:
    Listener() : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        socklen_t size = sizeof address;
        ::bind(socket_, reinterpret_cast<sockaddr*>(&address), sizeof address);
        ::getsockname(socket_, reinterpret_cast<sockaddr*>(&address), &size);
        ::listen(socket_, 8);
        endpoint_ = "127.0.0.1:" + std::to_string(ntohs(address.sin_port));
    }
    ~Listener() { stop(); }
    Listener(const Listener&) = delete;
    Listener& operator=(const Listener&) = delete;
    void stop() {
        if (socket_ >= 0) ::close(socket_);
        socket_ = -1;
    }
    /// To the next that connects.
    std::thread say(const std::string& text) {
        return std::thread([this, text] {
            const int peer = ::accept(socket_, nullptr, nullptr);
            ::send(peer, text.data(), text.size(), MSG_NOSIGNAL);
            char bytes[256];
            while (::recv(peer, bytes, sizeof bytes, 0) > 0) {
            }
            ::close(peer);
        });
    }
    const std::string& endpoint() const { return endpoint_; }

  private:
    int socket_;
    std::string endpoint_;
};

TEST(RpcProbe, gives_a_silent_server_up_at_the_deadline) {
    const Listener listener;
    const auto begin = std::chrono::steady_clock::now();
    EXPECT_THAT([&] { probe_rpc_server(listener.endpoint(), short_time); },
                ThrowsMessage<Error>(AllOf(HasSubstr(listener.endpoint()), HasSubstr("does not answer within 0.2 s"))));
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(5));
}

TEST(RpcProbe, knows_what_is_no_rpc_server) {
    for (const std::string text : {"HTTP/1.1 400 Bad Request\r\n\r\n", "\x05\0\0\0\0\0\0\0hello", "SSH-2.0-x\r\n"}) {
        Listener listener;
        auto server = listener.say(text);
        EXPECT_THAT([&] { probe_rpc_server(listener.endpoint(), short_time); },
                    ThrowsMessage<Error>(HasSubstr(listener.endpoint())));
        server.join();
    }
    Listener other;
    auto server = other.say("HTTP/1.1 400 Bad Request\r\n\r\n");
    EXPECT_THAT([&] { probe_rpc_server(other.endpoint()); }, ThrowsMessage<Error>(HasSubstr("no ggml RPC server")));
    server.join();
}

TEST(RpcProbe, says_which_version_the_other_side_speaks) {
    Listener listener;
    auto server = listener.say(std::string("\x1c\0\0\0\0\0\0\0\x63\x01\x02", 11) + std::string(25, '\0'));
    EXPECT_THAT([&] { probe_rpc_server(listener.endpoint()); }, ThrowsMessage<Error>(HasSubstr("version 99.1.2")));
    server.join();
}

TEST(RpcProbe, refuses_where_nobody_listens_and_what_is_no_endpoint) {
    Listener listener;
    listener.stop();
    EXPECT_THAT([&] { probe_rpc_server(listener.endpoint()); },
                ThrowsMessage<Error>(HasSubstr("no RPC server answers")));
    for (const auto* endpoint : {"host", ":5", "host:", "host:x", "host:70000", "host:0", "host:5x"})
        EXPECT_THROW(probe_rpc_server(endpoint, short_time), UsageError) << endpoint;
}

}  // namespace
}  // namespace cerebellum
