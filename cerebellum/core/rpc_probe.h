#pragma once

#include <chrono>
#include <string>

namespace cerebellum {

constexpr auto rpc_answer_time = std::chrono::seconds(10);

/// Speaks to what listens at "host:port" as a client of ggml's RPC does first, and hangs up: ggml's own client waits
/// for ever for a server that says nothing, and ends the program where one says something else. Throws Error naming the
/// endpoint where that is no ggml RPC server of this version, or not heard from within `limit`; UsageError where
/// it cannot be an endpoint; Interrupted when the user asked to stop.
void probe_rpc_server(const std::string& endpoint, std::chrono::milliseconds limit = rpc_answer_time);

}  // namespace cerebellum
