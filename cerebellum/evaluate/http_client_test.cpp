#include "cerebellum/evaluate/http_client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <cstdlib>
#include <memory>

#include "cerebellum/core/error.h"
#include "cerebellum/core/progress.h"
#include "cerebellum/evaluate/raw_server_support_test.h"
#include "cerebellum/gguf/gguf_support_test.h"
#include "cerebellum/httplib.h"

namespace cerebellum {
namespace {

using End = HttpReply::End;
using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;
using ::testing::HasSubstr;
using testing::http_answer;
using testing::RawServer;

double seconds_since(Clock::time_point begun) {
    return std::chrono::duration<double>(Clock::now() - begun).count();
}

HttpReply get(const std::string& url, HttpLimits limits = {}) {
    return http_exchange(parse_url(url, "--server"), "/x", "", "", limits);
}

TEST(HttpUrl, is_taken_apart) {
    const auto url = parse_url("http://127.0.0.1:8080/v1//", "--server");
    EXPECT_EQ(url.origin() + url.path, "http://127.0.0.1:8080/v1");
    EXPECT_EQ(parse_url("https://example.org", "x").origin(), "https://example.org:443");
    EXPECT_EQ(parse_url("http://[::1]:81/a/b", "x").origin(), "http://[::1]:81");
    EXPECT_EQ(parse_url("http://[::1]:81/a/b", "x").host, "::1");
    EXPECT_EQ(parse_url("http://a", "x").port, "80");
    for (const auto* text : {"localhost", "http://", "ftp://a", "http:// a", "http://a:b", "http://a:0",
                             "http://a:99999", "http://u:p@a", "http://a/\r\nX: y", "http://\x7f"})
        EXPECT_THROW(parse_url(text, "x"), UsageError) << text;
}

TEST(HttpExchange, asks_and_reads_what_a_server_answers) {
    std::string seen;
    const RawServer server([&](const RawServer::Peer& peer, const std::string& request) {
        seen = request;
        peer.say("HTTP/1.1 100 Continue\r\n\r\n" + http_answer("hello"));
    });
    auto reply = http_exchange(parse_url(server.url() + "/v1", "x"), "/models", "", "secret", {});
    EXPECT_EQ(reply.end, End::answered) << reply.problem;
    EXPECT_EQ(reply.status, 200);
    EXPECT_EQ(reply.body, "hello");
    EXPECT_THAT(seen, ::testing::StartsWith("GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1:"));
    EXPECT_THAT(seen, HasSubstr("Authorization: Bearer secret\r\n"));
    reply = http_exchange(parse_url(server.url(), "x"), "/chat", "{}", "", {});
    EXPECT_THAT(seen, ::testing::StartsWith("POST /chat HTTP/1.1\r\n"));
    EXPECT_THAT(seen, ::testing::EndsWith("Content-Length: 2\r\n\r\n{}"));
}

TEST(HttpExchange, reads_every_form_of_body) {
    for (const auto* text :
         {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n06\r\n world\r\n0\r\nX: y\r\n\r\n",
          "HTTP/1.0 200\r\n\r\nhello world",  // until it closes
          "HTTP/1.1 200 OK\ncontent-LENGTH:11\n\nhello world and more"}) {
        const RawServer server{std::string(text)};
        const auto reply = get(server.url());
        EXPECT_EQ(reply.body, "hello world") << text << reply.problem;
        EXPECT_EQ(reply.end, End::answered);
    }
    const RawServer server(std::string("HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nwait"));
    EXPECT_EQ(get(server.url()).status, 503);
    EXPECT_EQ(get(server.url()).body, "wait");
}

TEST(HttpExchange, is_interoperable_with_another_server) {
    httplib::Server server;
    server.Post("/echo", [](const httplib::Request& request, httplib::Response& response) {
        const auto body = std::make_shared<std::string>(request.body);
        response.set_chunked_content_provider("text/plain", [body](std::size_t offset, httplib::DataSink& sink) {
            if (offset < body->size())
                return sink.write(body->data() + offset, std::min<std::size_t>(body->size() - offset, 99'991));
            sink.done();
            return true;
        });
    });
    const int port = server.bind_to_any_port("127.0.0.1");
    std::thread thread([&] { server.listen_after_bind(); });
    std::string body;
    for (int i = 0; body.size() < 3'000'000; ++i) body += std::to_string(i) + " ";
    const auto url = parse_url("http://127.0.0.1:" + std::to_string(port), "x");
    const auto reply = http_exchange(url, "/echo", body, "", {});
    EXPECT_EQ(reply.status, 200) << reply.problem;
    EXPECT_TRUE(reply.body == body);
    std::string received;
    EXPECT_EQ(http_exchange(url, "/echo", body, "", {},
                            [&](std::string_view piece) {
                                received += piece;
                                return true;
                            })
                  .body,
              "");
    EXPECT_TRUE(received == body);
    EXPECT_EQ(http_exchange(url, "/none", body, "", {}).status, 404);
    server.stop();
    thread.join();
}

struct Hostile {
    const char* what;
    RawServer::Serve serve;
    End end;
};

void PrintTo(const Hostile& hostile, std::ostream* out) {
    *out << hostile.what;
}

class HostileHttp : public ::testing::TestWithParam<Hostile> {};

/// Each ends within its deadline, as what it is, and takes no more memory than the limits say.
TEST_P(HostileHttp, ends_in_time) {
    const RawServer server(GetParam().serve);
    HttpLimits limits;
    limits.seconds = 1.0;
    limits.body_bytes = 1'000'000;
    const auto begun = Clock::now();
    const auto reply = get(server.url(), limits);
    EXPECT_LT(seconds_since(begun), 2.5);
    EXPECT_EQ(reply.end, GetParam().end) << reply.problem;
    EXPECT_NE(reply.problem, "");
    EXPECT_EQ(reply.problem.find('\n'), std::string::npos);
    EXPECT_LE(reply.body.size(), limits.body_bytes);
}

const std::string head = "HTTP/1.1 200 OK\r\n";
using Peer = RawServer::Peer;

RawServer::Serve says(const std::string& text) {
    return [text](const Peer& peer, const std::string&) { peer.say(text); };
}

RawServer::Serve drips(const std::string& begin, const std::string& piece, int pause_ms) {
    return [=](const Peer& peer, const std::string&) {
        if (peer.say(begin)) peer.say_without_end(piece, milliseconds(pause_ms));
    };
}

INSTANTIATE_TEST_SUITE_P(
    Servers, HostileHttp,
    ::testing::Values(
        Hostile{"silence", [](const Peer& peer, const std::string&) { peer.stay_silent(); }, End::out_of_time},
        Hostile{"a drip of a status line", drips("HTTP/1.1 200 ", "A", 20), End::out_of_time},
        Hostile{"a drip of header fields", drips(head, "X: y\r\n", 20), End::out_of_time},
        Hostile{"a drip of a body", drips(head + "Content-Length: 1000\r\n\r\n", "x", 20), End::out_of_time},
        Hostile{"a drip of a body without length", drips(head + "\r\n", "x", 20), End::out_of_time},
        Hostile{"a drip of pieces", drips(head + "Transfer-Encoding: chunked\r\n\r\n", "1\r\nx\r\n", 20),
                End::out_of_time},
        Hostile{"endless header fields", drips(head, "X: " + std::string(1000, 'y') + "\r\n", 0), End::not_accepted},
        Hostile{"an endless header field", drips(head + "X: ", std::string(1000, 'y'), 0), End::not_accepted},
        Hostile{"a status line of 200 kB", says("HTTP/1.1 200 " + std::string(200'000, 'A') + "\r\n\r\n"),
                End::not_accepted},
        Hostile{"a status line of blanks", says("HTTP/1.1 200" + std::string(200'000, ' ') + "\r\n\r\n"),
                End::not_accepted},
        Hostile{"endless interim answers", drips("", "HTTP/1.1 100 Continue\r\n\r\n", 0), End::not_accepted},
        Hostile{"an endless body", drips(head + "\r\n", std::string(10'000, 'x'), 0), End::not_accepted},
        Hostile{"a body of 16 EB", drips(head + "Content-Length: 18446744073709551615\r\n\r\n", "x", 0),
                End::not_accepted},
        Hostile{"an endless piece",
                drips(head + "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n", std::string(10'000, 'x'), 0),
                End::not_accepted},
        Hostile{"endless fields behind the body",
                drips(head + "Transfer-Encoding: chunked\r\n\r\n0\r\n", "X: " + std::string(1000, 'y') + "\r\n", 0),
                End::not_accepted},
        Hostile{"an endless length of a piece", drips(head + "Transfer-Encoding: chunked\r\n\r\n", "0000000000", 0),
                End::not_accepted},
        Hostile{"a negative length", says(head + "Content-Length: -1\r\n\r\nx"), End::not_accepted},
        Hostile{"two lengths", says(head + "Content-Length: 1\r\nContent-Length: 2\r\n\r\nxy"), End::not_accepted},
        Hostile{"a length beyond all numbers", says(head + "Content-Length: 99999999999999999999999\r\n\r\nx"),
                End::not_accepted},
        Hostile{"pieces without a length", says(head + "Transfer-Encoding: chunked\r\n\r\nzz\r\n"), End::not_accepted},
        Hostile{"pieces of another length", says(head + "Transfer-Encoding: chunked\r\n\r\n1\r\nxyz\r\n0\r\n\r\n"),
                End::not_accepted},
        Hostile{"compression", says(head + "Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x8b"),
                End::not_accepted},
        Hostile{"no HTTP", says("SSH-2.0-OpenSSH_9.2\r\n"), End::not_accepted},
        Hostile{"HTTP/2", says("HTTP/2 200\r\n\r\n"), End::not_accepted},
        Hostile{"zeros", says(std::string(5000, '\0')), End::broken},
        Hostile{"a field without a colon", says(head + "nothing\r\n\r\n"), End::not_accepted},
        Hostile{"an end before all", says(""), End::broken},
        Hostile{"an end in the header", says(head + "X: y\r\n"), End::broken},
        Hostile{"an end in the body", says(head + "Content-Length: 10\r\n\r\nabc"), End::broken},
        Hostile{"an end in a piece", says(head + "Transfer-Encoding: chunked\r\n\r\n5\r\nab"), End::broken}));

TEST(HttpExchange, ends_within_a_second_when_the_user_asks_to_stop) {
    for (const bool drip : {false, true}) {
        const RawServer server([drip](const Peer& peer, const std::string&) {
            if (drip) peer.say_without_end("x", milliseconds(1));
            peer.stay_silent();
        });
        std::jthread user([] {
            std::this_thread::sleep_for(milliseconds(200));
            Progress::stop_requested = true;
        });
        const auto begun = Clock::now();
        EXPECT_THROW(get(server.url()), Interrupted);
        EXPECT_LT(seconds_since(begun), 1.2);
        user.join();
        Progress::stop_requested = false;
    }
}

TEST(HttpExchange, says_why_nobody_answers) {
    auto url = std::make_unique<RawServer>("")->url();  // gone by now
    auto reply = get(url);
    EXPECT_EQ(reply.end, End::broken);
    EXPECT_THAT(reply.problem, HasSubstr("refused"));
    reply = get("http://no-such-host.invalid");
    EXPECT_EQ(reply.end, End::broken);
}

// TLS
// ------------------------------------------------------------------------------------------------------------------

/// A certificate for 127.0.0.1 that signs itself.
void write_certificate(const std::filesystem::path& certificate_file, const std::filesystem::path& key_file) {
    const std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> key(EVP_EC_gen("P-256"), EVP_PKEY_free);
    const std::unique_ptr<X509, decltype(&X509_free)> certificate(X509_new(), X509_free);
    X509_set_version(certificate.get(), 2);
    ASN1_INTEGER_set(X509_get_serialNumber(certificate.get()), 1);
    X509_gmtime_adj(X509_getm_notBefore(certificate.get()), -3600);
    X509_gmtime_adj(X509_getm_notAfter(certificate.get()), 3600);
    X509_set_pubkey(certificate.get(), key.get());
    auto* name = X509_get_subject_name(certificate.get());
    X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, reinterpret_cast<const unsigned char*>("a test"), -1, -1, 0);
    X509_set_issuer_name(certificate.get(), name);
    auto* names = X509V3_EXT_conf_nid(nullptr, nullptr, NID_subject_alt_name, "IP:127.0.0.1");
    X509_add_ext(certificate.get(), names, -1);
    X509_EXTENSION_free(names);
    X509_sign(certificate.get(), key.get(), EVP_sha256());
    for (const bool of_key : {false, true}) {
        auto* file = std::fopen((of_key ? key_file : certificate_file).c_str(), "w");
        ASSERT_NE(file, nullptr);
        if (of_key)
            PEM_write_PrivateKey(file, key.get(), nullptr, nullptr, 0, nullptr, nullptr);
        else
            PEM_write_X509(file, certificate.get());
        std::fclose(file);
    }
}

class TlsServer {
  public:
    TlsServer(const std::filesystem::path& certificate, const std::filesystem::path& key)
        : server_(certificate.c_str(), key.c_str()) {
        server_.Get("/x", [](const httplib::Request&, httplib::Response& response) {
            response.set_content("hello", "text/plain");
        });
        port_ = server_.bind_to_any_port("127.0.0.1");
        thread_ = std::thread([this] { server_.listen_after_bind(); });
    }
    ~TlsServer() {
        server_.stop();
        thread_.join();
    }
    std::string url(const std::string& host) const { return "https://" + host + ":" + std::to_string(port_); }

  private:
    httplib::SSLServer server_;
    int port_ = 0;
    std::thread thread_;
};

TEST(HttpExchange, checks_who_answers_over_tls) {
    const testing::TemporaryFolder folder;
    write_certificate(folder / "known.pem", folder / "known.key");
    write_certificate(folder / "other.pem", folder / "other.key");
    ::setenv("SSL_CERT_FILE", (folder / "known.pem").c_str(), 1);
    const TlsServer known(folder / "known.pem", folder / "known.key"),
        other(folder / "other.pem", folder / "other.key");
    const auto reply = get(known.url("127.0.0.1"));
    EXPECT_EQ(reply.body, "hello") << reply.problem;
    EXPECT_THAT(get(known.url("localhost")).problem, HasSubstr("certificate"));  // it is for the address
    const auto refused = get(other.url("127.0.0.1"));
    EXPECT_EQ(refused.end, End::broken);
    EXPECT_THAT(refused.problem, HasSubstr("its certificate is not accepted"));
    const RawServer plain([](const Peer& peer, const std::string&) { peer.say("HTTP/1.1 200 OK\r\n\r\n"); });
    auto url = plain.url();
    EXPECT_EQ(get("https" + url.substr(4), {.seconds = 1.0}).end,
              End::out_of_time);  // waits for a request as we for TLS
    ::unsetenv("SSL_CERT_FILE");
}

}  // namespace
}  // namespace cerebellum
