#pragma once

// llama.cpp's own RPC server on this machine's loopback: a device whose memory is not ours to touch, with the CPU's
// arithmetic.

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <vector>

#include "cerebellum/evaluate/llama_server.h"
#include "tests/e2e/program.h"

namespace cerebellum::testing {

inline bool accepts(int port) {
    const int descriptor = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(static_cast<std::uint16_t>(port));
    const bool connected = connect(descriptor, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
    close(descriptor);
    return connected;
}

/// One with one thread that answers, on a port that is free; its output goes to `folder`.
inline std::unique_ptr<Program> start_rpc_server(const fs::path& folder, int& port) {
    port = free_port();
    auto server = std::make_unique<Program>(
        std::vector<std::string>{(fs::path(CEREBELLUM_REFEREE_BIN) / "ggml-rpc-server").string(), "-H", "127.0.0.1",
                                 "-p", std::to_string(port), "-t", "1"},
        folder);
    for (int i = 0; i < 500 && server->running() && !accepts(port); ++i)
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
    return server;
}

}  // namespace cerebellum::testing
