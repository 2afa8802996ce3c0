// What `cerebellum memory` says, against a llama-server that runs.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <regex>

#include "cerebellum/evaluate/llama_server.h"
#include "cerebellum/httplib.h"
#include "tests/e2e/program.h"

namespace cerebellum {
namespace {

namespace fs = std::filesystem;
using testing::Program;
using testing::run_program;
using testing::small_model;
using testing::TemporaryFolder;

struct Shape {
    int context, slots;
    std::string cache;
};

struct Figures {
    double weights_mib = 0.0, cache_mib = 0.0, compute_mib = 0.0;
    double resident_mib = 0.0;  // of a process
};

/// Sums up what a kind of buffer has in all devices.
double sum_of(const std::string& log, const std::string& kind) {
    const std::regex line(kind + R"( buffer size =\s*([0-9.]+) MiB)");
    double sum = 0.0;
    for (std::sregex_iterator match(log.begin(), log.end(), line), end; match != end; ++match)
        sum += std::stod((*match)[1]);
    return sum;
}

double resident_mib(const Program& program) {
    std::ifstream status(fmt::format("/proc/{}/status", program.process()));
    for (std::string line; std::getline(status, line);)
        if (line.starts_with("VmRSS:")) return std::stod(line.substr(6)) / 1024.0;
    return 0.0;
}

Figures served(const Shape& shape, const fs::path& folder) {
    const int port = free_port();
    Program server({(fs::path(CEREBELLUM_REFEREE_BIN) / "llama-server").string(),
                    "--model",
                    small_model().string(),
                    "--host",
                    "127.0.0.1",
                    "--port",
                    std::to_string(port),
                    "--ctx-size",
                    std::to_string(shape.context),
                    "--parallel",
                    std::to_string(shape.slots),
                    "--cache-type-k",
                    shape.cache,
                    "--cache-type-v",
                    shape.cache,
                    "--threads",
                    "1",
                    "--no-repack",
                    "--load-mode",
                    "none",
                    "--device",
                    "none",
                    "--verbosity",
                    "4"},
                   folder);
    httplib::Client client("127.0.0.1", port);
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(5);
    bool ready = false;
    while (!ready && server.running() && std::chrono::steady_clock::now() < deadline) {
        const auto answer = client.Get("/health");
        ready = answer && answer->status == 200;
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    Figures figures;
    figures.resident_mib = resident_mib(server);
    server.send(SIGTERM);
    const auto ended = server.wait();
    EXPECT_TRUE(ready) << ended.errors;
    const auto log = ended.output + ended.errors;
    figures.weights_mib = sum_of(log, "model");
    figures.cache_mib = sum_of(log, "KV");
    figures.compute_mib = sum_of(log, "compute");
    return figures;
}

Figures predicted(const Shape& shape, const fs::path& folder) {
    const auto result = run_program({"memory", small_model().string(), "--ctx", std::to_string(shape.context),
                                     "--parallel", std::to_string(shape.slots), "--kv", shape.cache, "--json"},
                                    folder);
    EXPECT_EQ(result.code, 0) << result.errors;
    const auto device = nlohmann::json::parse(result.output)[0]["devices"][0];
    constexpr double mib = 1024.0 * 1024.0;
    return {device["weights"].get<double>() / mib, device["cache"].get<double>() / mib,
            device["compute"].get<double>() / mib, 0.0};
}

TEST(Memory, is_what_a_llama_server_allocates_and_has) {
    if (!testing::have_referees()) GTEST_SKIP() << "no llama.cpp tools";
    const TemporaryFolder folder;
    const Shape small{4096, 1, "f16"}, large{131072, 4, "q8_0"};
    const auto small_has = served(small, folder.path()), large_has = served(large, folder.path());
    const auto small_said = predicted(small, folder.path()), large_said = predicted(large, folder.path());
    for (const auto& [has, said] : {std::pair{small_has, small_said}, {large_has, large_said}}) {
        constexpr double rounding = 0.02;  // it prints hundredths
        EXPECT_NEAR(said.weights_mib, has.weights_mib, rounding);
        EXPECT_NEAR(said.cache_mib, has.cache_mib, rounding);
        EXPECT_NEAR(said.compute_mib, has.compute_mib, rounding);
    }
    // The process itself: what it needs beside its buffers is the same for both. Buffers of the graph are only touched
    // as far as they were used.
    const double more = large_has.resident_mib - small_has.resident_mib;
    EXPECT_GT(more, 0.95 * (large_said.cache_mib - small_said.cache_mib));
    EXPECT_LT(more, 1.05 * (large_said.cache_mib + large_said.compute_mib - small_said.cache_mib));
}

}  // namespace
}  // namespace cerebellum
