#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "cerebellum/core/error.h"
#include "cerebellum/core/progress.h"
#include "cerebellum/evaluate/http_client.h"

namespace cerebellum {

struct ChatSettings {
    std::string server;   // http://host:port, with or without /v1
    std::string api_key;  // empty: none
    double temperature = 0.0;
    int max_tokens = 512;
    std::uint64_t seed = 1;
    bool thinking = false;  // asked of the chat template; templates that know no such switch ignore it
    int timeout_s = 600;    // of one answer, from the first try to its last byte
    int retries = 4;        // after a refused or broken connection, a full server (429) or one in trouble (5xx)
    int concurrency = 4;
};

struct ChatReply {
    std::string text;       // what it answered
    std::string reasoning;  // what the server took for thinking aloud, where it parts them
    std::string finish;     // "stop", "length", …
    int prompt_tokens = 0;
    int completion_tokens = 0;
    double milliseconds = 0.0;
    std::string failure;  // why there is no answer, where there is none
};

/// The server does not answer any more, after all retries. What was answered before is not touched.
class ServerGone : public Error {
  public:
    using Error::Error;
};

/// What the server answered is no answer: not complete in time, too long, or no chat completion.
class BadReply : public Error {
  public:
    using Error::Error;
};

/// A chat with any server that speaks OpenAI's protocol. Callable from several threads.
class ChatClient {
  public:
    /// Throws UsageError where the URL is none.
    explicit ChatClient(ChatSettings settings);

    /// The first model that the server lists, as it calls it. Throws ServerGone where it does not answer.
    std::string model_name() const;
    /// One reply to one message of a user. Throws ServerGone; BadReply; Error with the server's words where it refuses
    /// the request; Interrupted as soon as the user asks to stop.
    ChatReply ask(const std::string& message) const;
    /// Asks all messages, `concurrency` at a time. `done` is called as replies come in, one at a time, from any thread.
    /// A bad reply is one with a `failure`; it is handed over when a good one has come in behind it or all is asked.
    /// Many in a row mean that this is no chat server: then ServerGone is thrown, and they are not handed over. The
    /// first other problem ends it, after the replies under way have come in, and is thrown.
    void ask_all(const std::vector<std::string>& messages,
                 const std::function<void(std::size_t, const ChatReply&)>& done, Progress& progress) const;

    const ChatSettings& settings() const { return settings_; }

  private:
    ChatReply ask_or_fail(const std::string& message) const;
    std::string exchange(const std::string& path, const std::string& body) const;

    ChatSettings settings_;
    HttpUrl url_;  // its path is "/v1" or another one
};

}  // namespace cerebellum
