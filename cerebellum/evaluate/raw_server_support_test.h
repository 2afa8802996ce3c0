#pragma once

// For tests only: a server that says what no server should, byte by byte.

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

namespace cerebellum::testing {

/// Listens on a port of this machine, and lets `serve` answer each connection in a thread of its own.
class RawServer {
  public:
    /// One connection, of which a request has been read.
    class Peer {
      public:
        Peer(int socket, const std::atomic<bool>& ends) : socket_(socket), ends_(ends) {}
        /// False where nobody listens any more.
        bool say(std::string_view text) const {
            while (!text.empty() && !ends_) {
                const auto sent = ::send(socket_, text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
                if (sent > 0)
                    text.remove_prefix(static_cast<std::size_t>(sent));
                else if (sent < 0 && errno != EAGAIN && errno != EWOULDBLOCK)
                    return false;
                else
                    std::this_thread::sleep_for(std::chrono::milliseconds(1));
            }
            return text.empty();
        }
        /// Says the same again and again, until nobody listens.
        void say_without_end(std::string_view text, std::chrono::milliseconds pause) const {
            while (say(text)) std::this_thread::sleep_for(pause);
        }
        /// Until the other side closes, or the server ends.
        void stay_silent() const {
            char byte = 0;
            while (!ends_ && ::recv(socket_, &byte, 1, MSG_DONTWAIT) != 0)
                std::this_thread::sleep_for(std::chrono::milliseconds(5));
        }

      private:
        int socket_;
        const std::atomic<bool>& ends_;
    };
    using Serve = std::function<void(const Peer& peer, const std::string& request)>;

    explicit RawServer(Serve serve) : serve_(std::move(serve)), socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        socklen_t size = sizeof(address);
        ::bind(socket_, reinterpret_cast<sockaddr*>(&address), sizeof(address));
        ::getsockname(socket_, reinterpret_cast<sockaddr*>(&address), &size);
        ::listen(socket_, 64);
        port_ = ntohs(address.sin_port);
        listener_ = std::thread([this] { listen(); });
    }
    /// Answers everybody with this text and closes.
    explicit RawServer(const std::string& text)
        : RawServer([text](const Peer& peer, const std::string&) { peer.say(text); }) {}
    ~RawServer() {
        ends_ = true;
        listener_.join();
        for (auto& thread : threads_) thread.join();
        ::close(socket_);
    }
    RawServer(const RawServer&) = delete;
    RawServer& operator=(const RawServer&) = delete;
    std::string url() const { return "http://127.0.0.1:" + std::to_string(port_); }
    int connections() const { return connections_; }

  private:
    void listen() {
        while (!ends_) {
            pollfd waiting{socket_, POLLIN, 0};
            if (::poll(&waiting, 1, 20) <= 0) continue;
            const int peer = ::accept(socket_, nullptr, nullptr);
            if (peer < 0) continue;
            ++connections_;
            threads_.emplace_back([this, peer] {
                serve_(Peer(peer, ends_), request_of(peer));
                ::shutdown(peer, SHUT_WR);
                Peer(peer, ends_).stay_silent();
                ::close(peer);
            });
        }
    }
    /// Up to the end of its header, and of its body where that is announced.
    std::string request_of(int peer) const {
        std::string request;
        char piece[4096];
        while (!ends_) {
            const auto end = request.find("\r\n\r\n");
            const auto length = request.find("Content-Length: ");
            if (end != std::string::npos &&
                (length == std::string::npos || request.size() >= end + 4 + std::stoul(request.substr(length + 16))))
                break;
            pollfd waiting{peer, POLLIN, 0};
            if (::poll(&waiting, 1, 20) <= 0) continue;
            const auto size = ::recv(peer, piece, sizeof(piece), 0);
            if (size <= 0) break;
            request.append(piece, static_cast<std::size_t>(size));
        }
        return request;
    }

    Serve serve_;
    int socket_;
    int port_ = 0;
    std::atomic<bool> ends_{false};
    std::atomic<int> connections_{0};
    std::thread listener_;
    std::vector<std::thread> threads_;  // of the listener alone until it ends
};

inline std::string http_answer(std::string_view body) {
    return "HTTP/1.1 200 OK\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" + std::string(body);
}

}  // namespace cerebellum::testing
