#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>

namespace cerebellum {

/// http://host:port/path or https://…
struct HttpUrl {
    bool tls = false;
    std::string host;  // a name or an address; IPv6 without brackets
    std::string port;
    std::string path;  // without a slash at its end; may be empty

    /// "http://host:port", for messages and the Host field.
    std::string origin() const;
};

/// Throws UsageError where the text is none; `what` names it ("--server").
HttpUrl parse_url(std::string_view text, std::string_view what);

struct HttpLimits {
    double seconds = 600.0;  // for the whole exchange, from the first look-up to the last byte
    double connect_seconds = 10.0;
    std::size_t body_bytes = std::size_t{16} << 20U;
    std::size_t header_bytes = std::size_t{64} << 10U;  // status line and header fields together
};

struct HttpReply {
    enum class End {
        answered,      // with `status`, whatever that is
        broken,        // no connection, or one that ended too early: worth another try
        out_of_time,   // the deadline passed
        not_accepted,  // longer than the limits, or no HTTP/1
    };
    End end = End::answered;
    int status = 0;
    std::string body;
    std::string problem;  // one line, where the end is not `answered`
};

/// One request over a connection of its own: GET where `body` is empty, else a POST of JSON. The server is trusted in
/// nothing: neither slow bytes nor endless header fields nor a large body get beyond the limits. (cpp-httplib has no
/// deadline for a whole answer, and its client overflows the stack on a status line of 200 kB.) Follows no redirections
/// and takes no compression. TLS checks the server's certificate. With a `receiver`, the body of an answer with status
/// 200 goes to it piece by piece, as it comes, and not into the reply; false ends the exchange as not_accepted.
/// Throws Interrupted within a tenth of a second after the user asked to stop. Callable from several threads.
HttpReply http_exchange(const HttpUrl& url, std::string_view path, std::string_view body, std::string_view bearer,
                        const HttpLimits& limits, const std::function<bool(std::string_view)>& receiver = {});

}  // namespace cerebellum
