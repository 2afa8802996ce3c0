#include "cerebellum/evaluate/http_client.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "cerebellum/core/error.h"
#include "cerebellum/core/progress.h"
#include "cerebellum/core/size.h"
#include "cerebellum/core/visible_text.h"

namespace cerebellum {

namespace {

using Clock = std::chrono::steady_clock;
using End = HttpReply::End;

constexpr auto slice = std::chrono::milliseconds(50);  // between two looks at whether to stop

/// Ends an exchange; turned into a reply where it began.
struct Trouble {
    End end;
    std::string problem;
};

Trouble broken(const char* what, int reason) {
    return {End::broken, fmt::format("{}: {}", what, std::strerror(reason))};
}

Clock::time_point after(double seconds) {
    return Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

// Addresses
// ------------------------------------------------------------------------------------------------------------

struct Address {
    int family = 0;
    sockaddr_storage storage{};
    socklen_t size = 0;
};

/// What a look-up came to; the thread that does it may outlive who asked.
struct LookUp {
    std::mutex mutex;
    std::condition_variable finished;
    bool done = false;
    int problem = 0;
    std::vector<Address> addresses;
};

void look_up(LookUp& result, const std::string& host, const std::string& port) {
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    addrinfo* list = nullptr;
    const int problem = getaddrinfo(host.c_str(), port.c_str(), &hints, &list);
    const std::lock_guard lock(result.mutex);
    for (const auto* each = list; each != nullptr; each = each->ai_next) {
        Address address{each->ai_family, {}, each->ai_addrlen};
        std::memcpy(&address.storage, each->ai_addr, std::min<std::size_t>(each->ai_addrlen, sizeof(address.storage)));
        result.addresses.push_back(address);
    }
    if (list != nullptr) freeaddrinfo(list);
    result.problem = problem;
    result.done = true;
    result.finished.notify_all();
}

/// In a thread of its own, as nothing interrupts a look-up.
std::vector<Address> addresses_of(const HttpUrl& url, Clock::time_point deadline) {
    const auto result = std::make_shared<LookUp>();
    std::thread([result, host = url.host, port = url.port] { look_up(*result, host, port); }).detach();
    std::unique_lock lock(result->mutex);
    while (!result->done) {
        NoProgress().check();
        if (Clock::now() > deadline) throw Trouble{End::broken, "its name is not found in time"};
        result->finished.wait_for(lock, slice);
    }
    if (result->problem != 0) throw Trouble{End::broken, gai_strerror(result->problem)};
    return result->addresses;
}

// Connections
// ----------------------------------------------------------------------------------------------------------

/// With this machine's certificates; SSL_CERT_FILE and SSL_CERT_DIR name others.
SSL_CTX* tls_context() {
    static const std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> context = [] {
        std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> made(SSL_CTX_new(TLS_client_method()), SSL_CTX_free);
        if (made) {
            SSL_CTX_set_min_proto_version(made.get(), TLS1_2_VERSION);
            SSL_CTX_set_verify(made.get(), SSL_VERIFY_PEER, nullptr);
            SSL_CTX_set_default_verify_paths(made.get());
        }
        return made;
    }();
    return context.get();
}

/// A socket, with TLS where the URL wants it. Not blocking: every wait looks at the deadline and at whether to stop.
class Connection {
  public:
    Connection(const HttpUrl& url, const HttpLimits& limits) : deadline_(after(limits.seconds)) {
        const auto connected = std::min(deadline_, after(limits.connect_seconds));
        try {
            connect_any(addresses_of(url, connected), connected);
            if (url.tls) begin_tls(url);
        } catch (...) {
            close_all();
            throw;
        }
    }
    ~Connection() { close_all(); }
    Connection(const Connection&) = delete;
    Connection& operator=(const Connection&) = delete;

    void write(std::string_view data) {
        while (!data.empty()) {
            const auto size = static_cast<int>(std::min<std::size_t>(data.size(), 1U << 20U));
            const auto written =
                ssl_ != nullptr
                    ? SSL_write(ssl_, data.data(), size)
                    : static_cast<int>(send(socket_, data.data(), static_cast<std::size_t>(size), MSG_NOSIGNAL));
            if (written > 0)
                data.remove_prefix(static_cast<std::size_t>(written));
            else
                wait_after(written, POLLOUT, "cannot send to it");
        }
    }
    /// At least one byte; 0 at the end of what it says.
    std::size_t read(char* buffer, std::size_t size) {
        while (true) {
            if (Clock::now() > deadline_) throw Trouble{End::out_of_time, "its answer was not complete in time"};
            NoProgress().check();
            const auto count = ssl_ != nullptr ? SSL_read(ssl_, buffer, static_cast<int>(size))
                                               : static_cast<int>(recv(socket_, buffer, size, 0));
            if (count > 0) return static_cast<std::size_t>(count);
            if (count == 0 && ssl_ == nullptr) return 0;
            if (ssl_ != nullptr && SSL_get_error(ssl_, count) == SSL_ERROR_ZERO_RETURN) return 0;
            wait_after(count, POLLIN, "it broke off");
        }
    }

  private:
    void close_all() {
        if (ssl_ != nullptr) SSL_free(ssl_);
        if (socket_ >= 0) ::close(socket_);
        ssl_ = nullptr;
        socket_ = -1;
    }

    void wait_for(short events, Clock::time_point deadline, End end, const char* problem) const {
        while (true) {
            NoProgress().check();
            const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now());
            if (left.count() <= 0) throw Trouble{end, problem};
            pollfd waiting{socket_, events, 0};
            if (poll(&waiting, 1, static_cast<int>(std::min<std::int64_t>(left.count(), slice.count()))) > 0) return;
        }
    }

    /// Behind a call that did nothing: waits where it only has to be made again.
    void wait_after(int result, short events, const char* what) {
        constexpr auto late = "its answer was not complete in time";
        if (ssl_ == nullptr) {
            if (errno == EINTR) return;
            if (errno != EAGAIN && errno != EWOULDBLOCK) throw broken(what, errno);
            return wait_for(events, deadline_, End::out_of_time, late);
        }
        const int reason = errno;
        switch (SSL_get_error(ssl_, result)) {
            case SSL_ERROR_WANT_READ:
                return wait_for(POLLIN, deadline_, End::out_of_time, late);
            case SSL_ERROR_WANT_WRITE:
                return wait_for(POLLOUT, deadline_, End::out_of_time, late);
            case SSL_ERROR_SYSCALL:
                throw broken(what, reason != 0 ? reason : ECONNRESET);
            default:
                throw Trouble{End::broken, fmt::format("{}: {}", what, tls_problem())};
        }
    }

    void connect_any(const std::vector<Address>& addresses, Clock::time_point deadline) {
        Trouble last{End::broken, "it has no address"};
        for (const auto& address : addresses) {
            try {
                return connect_to(address, deadline);
            } catch (const Trouble& trouble) {
                last = trouble;
                close_all();
            }
        }
        throw last;
    }

    void connect_to(const Address& address, Clock::time_point deadline) {
        socket_ = socket(address.family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (socket_ < 0) throw broken("cannot connect", errno);
        const int yes = 1;
        setsockopt(socket_, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
        if (connect(socket_, reinterpret_cast<const sockaddr*>(&address.storage), address.size) == 0) return;
        if (errno != EINPROGRESS) throw broken("cannot connect", errno);
        wait_for(POLLOUT, deadline, End::broken, "cannot connect in time");
        int problem = 0;
        socklen_t size = sizeof(problem);
        getsockopt(socket_, SOL_SOCKET, SO_ERROR, &problem, &size);
        if (problem != 0) throw broken("cannot connect", problem);
    }

    void begin_tls(const HttpUrl& url) {
        if (tls_context() != nullptr) ssl_ = SSL_new(tls_context());
        if (ssl_ == nullptr || SSL_set_fd(ssl_, socket_) != 1) throw Trouble{End::broken, "cannot begin TLS"};
        if (std::array<unsigned char, sizeof(in6_addr)> number{};
            inet_pton(AF_INET, url.host.c_str(), number.data()) == 1 ||
            inet_pton(AF_INET6, url.host.c_str(), number.data()) == 1) {
            X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl_), url.host.c_str());
        } else {
            SSL_set_tlsext_host_name(ssl_, url.host.c_str());
            SSL_set1_host(ssl_, url.host.c_str());
        }
        for (int result; (result = SSL_connect(ssl_)) != 1;) wait_after(result, POLLIN, "no TLS with it");
    }

    /// OpenSSL's words for the last problem; a certificate's come first.
    std::string tls_problem() const {
        const auto code = ERR_get_error();
        ERR_clear_error();
        if (const auto verdict = SSL_get_verify_result(ssl_); verdict != X509_V_OK)
            return fmt::format("its certificate is not accepted: {}", X509_verify_cert_error_string(verdict));
        const char* reason = ERR_reason_error_string(code);
        return reason != nullptr ? reason : "TLS failed";
    }

    Clock::time_point deadline_;
    int socket_ = -1;
    SSL* ssl_ = nullptr;
};

// The protocol
// ---------------------------------------------------------------------------------------------------------

/// What a connection says, line by line or in counted pieces.
class Reader {
  public:
    Reader(Connection& connection, const HttpLimits& limits) : connection_(connection), left_(limits.header_bytes) {}

    /// Without its end. All lines together are as long as the limit of the header allows.
    std::string line() {
        std::string text;
        while (true) {
            if (begin_ == end_ && !fill()) throw Trouble{End::broken, "it broke off in its answer's header"};
            const char c = buffer_[begin_++];
            if (left_-- == 0) throw Trouble{End::not_accepted, "the header of its answer does not end"};
            if (c == '\n') break;
            text += c;
        }
        if (text.ends_with('\r')) text.pop_back();
        return text;
    }
    /// Hands over `size` bytes, or all there are.
    template <typename Sink>
    void pass(std::optional<std::uint64_t> size, Sink&& sink) {
        while (!size || *size > 0) {
            if (begin_ == end_ && !fill()) {
                if (size) throw Trouble{End::broken, "it broke off in its answer"};
                return;
            }
            auto piece = std::string_view(buffer_.data() + begin_, end_ - begin_);
            if (size) piece = piece.substr(0, std::min<std::uint64_t>(piece.size(), *size));
            sink(piece);
            begin_ += piece.size();
            if (size) *size -= piece.size();
        }
    }

  private:
    bool fill() {
        begin_ = 0;
        end_ = connection_.read(buffer_.data(), buffer_.size());
        return end_ > 0;
    }

    Connection& connection_;
    std::size_t left_;
    std::array<char, 1U << 16U> buffer_{};
    std::size_t begin_ = 0, end_ = 0;
};

std::string lower(std::string_view text) {
    std::string result(text);
    std::ranges::transform(result, result.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    return result;
}

std::string_view trimmed(std::string_view text) {
    const auto begin = text.find_first_not_of(" \t");
    if (begin == std::string_view::npos) return {};
    return text.substr(begin, text.find_last_not_of(" \t") - begin + 1);
}

std::optional<std::uint64_t> number(std::string_view text, int base) {
    std::uint64_t value = 0;
    const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), value, base);
    if (problem != std::errc() || end != text.data() + text.size()) return std::nullopt;
    return value;
}

struct Head {
    int status = 0;
    bool chunked = false;
    std::optional<std::uint64_t> length;
};

/// The head of an answer, behind any that only say to wait for it.
Head read_head(Reader& reader) {
    while (true) {
        Head head;
        const auto first = reader.line();
        const auto status = first.starts_with("HTTP/1.") && first.size() >= 12 && first[8] == ' '
                                ? number(std::string_view(first).substr(9, 3), 10)
                                : std::nullopt;
        if (!status || *status < 100 || (first.size() > 12 && first[12] != ' '))
            throw Trouble{End::not_accepted, "what it answers is no HTTP/1"};
        head.status = static_cast<int>(*status);
        for (std::string line; !(line = reader.line()).empty();) {
            const auto colon = line.find(':');
            if (colon == std::string::npos) throw Trouble{End::not_accepted, "what it answers is no HTTP/1"};
            const auto name = lower(std::string_view(line).substr(0, colon));
            const auto value = trimmed(std::string_view(line).substr(colon + 1));
            if (name == "content-length") {
                const auto length = number(value, 10);
                if (!length || (head.length && *head.length != *length))
                    throw Trouble{End::not_accepted, "the length that it gives of its answer is none"};
                head.length = length;
            } else if (name == "transfer-encoding") {
                if (lower(value) != "chunked") throw Trouble{End::not_accepted, "its transfer encoding is not known"};
                head.chunked = true;
            } else if (name == "content-encoding" && lower(value) != "identity") {
                throw Trouble{End::not_accepted, "it compresses its answer, which it was not asked to"};
            }
        }
        if (head.status >= 200) return head;
    }
}

template <typename Sink>
void read_body(Reader& reader, const Head& head, Sink&& sink) {
    if (head.status == 204 || head.status == 304) return;
    if (!head.chunked) return reader.pass(head.length, sink);
    while (true) {
        const auto line = reader.line();
        const auto size = number(trimmed(std::string_view(line).substr(0, line.find(';'))), 16);
        if (!size) throw Trouble{End::not_accepted, "the pieces of its answer have no length"};
        if (*size == 0) break;
        reader.pass(*size, sink);
        if (!reader.line().empty()) throw Trouble{End::not_accepted, "the pieces of its answer have another length"};
    }
    while (!reader.line().empty()) {
    }  // fields behind the body
}

std::string request_text(const HttpUrl& url, std::string_view path, std::string_view body, std::string_view bearer) {
    const auto host = url.origin().substr(url.tls ? 8 : 7);
    auto text =
        fmt::format("{} {}{} HTTP/1.1\r\nHost: {}\r\nAccept: */*\r\nConnection: close\r\nUser-Agent: cerebellum\r\n",
                    body.empty() ? "GET" : "POST", url.path, path, host);
    if (!bearer.empty()) text += fmt::format("Authorization: Bearer {}\r\n", bearer);
    if (!body.empty()) text += fmt::format("Content-Type: application/json\r\nContent-Length: {}\r\n", body.size());
    return text + "\r\n";
}

}  // namespace

std::string HttpUrl::origin() const {
    const bool brackets = host.find(':') != std::string::npos;
    return fmt::format("{}://{}{}{}:{}", tls ? "https" : "http", brackets ? "[" : "", host, brackets ? "]" : "", port);
}

HttpUrl parse_url(std::string_view text, std::string_view what) {
    const auto refuse = [&] {
        return UsageError(fmt::format("{} {} is no URL; write it as http://127.0.0.1:8080", what, visible(text)));
    };
    HttpUrl url;
    url.tls = text.starts_with("https://");
    if (!url.tls && !text.starts_with("http://")) throw refuse();
    if (std::ranges::any_of(text, [](unsigned char c) { return c <= ' ' || c == 0x7F; })) throw refuse();
    auto rest = text.substr(url.tls ? 8 : 7);
    const auto slash = std::min(rest.find('/'), rest.size());
    url.path = rest.substr(slash);
    while (url.path.ends_with('/')) url.path.pop_back();
    rest = rest.substr(0, slash);
    const auto close = rest.starts_with('[') ? rest.find(']') : std::string_view::npos;
    const auto colon = close != std::string_view::npos ? rest.find(':', close) : rest.find(':');
    url.host = close != std::string_view::npos ? rest.substr(1, close - 1) : rest.substr(0, colon);
    url.port = colon != std::string_view::npos ? std::string(rest.substr(colon + 1)) : url.tls ? "443" : "80";
    const auto port = number(url.port, 10);
    if (url.host.empty() || url.host.find('@') != std::string::npos || !port || *port == 0 || *port > 65535)
        throw refuse();
    return url;
}

HttpReply http_exchange(const HttpUrl& url, std::string_view path, std::string_view body, std::string_view bearer,
                        const HttpLimits& limits, const std::function<bool(std::string_view)>& receiver) {
    HttpReply reply;
    try {
        Connection connection(url, limits);
        connection.write(request_text(url, path, body, bearer));
        connection.write(body);
        Reader reader(connection, limits);
        const auto head = read_head(reader);
        reply.status = head.status;
        std::uint64_t size = 0;
        const auto too_long = [&] {
            return Trouble{End::not_accepted,
                           fmt::format("its answer is longer than {}", format_bytes(limits.body_bytes))};
        };
        if (head.length && *head.length > limits.body_bytes) throw too_long();
        read_body(reader, head, [&](std::string_view piece) {
            if ((size += piece.size()) > limits.body_bytes) throw too_long();
            if (!receiver || head.status != 200)
                reply.body += piece;
            else if (!receiver(piece))
                throw Trouble{End::not_accepted, "its answer was not understood"};
        });
    } catch (const Trouble& trouble) {
        reply.end = trouble.end;
        reply.problem = trouble.problem;
    }
    return reply;
}

}  // namespace cerebellum
