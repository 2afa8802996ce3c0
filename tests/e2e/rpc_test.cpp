// Replay on a device whose memory is not ours to touch: llama.cpp's own RPC server on this machine's loopback.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>

#include "cerebellum/journal/journal.h"
#include "cerebellum/llama/log.h"
#include "cerebellum/replay/engine.h"
#include "cerebellum/replay/replay_support_test.h"
#include "tests/e2e/rpc_server.h"

namespace cerebellum {
namespace {

using testing::decode;
using testing::difference;
using ::testing::HasSubstr;
using testing::Program;
using testing::random_tokens;
using testing::ReplayedWindow;
using testing::small_model;
using testing::TemporaryFolder;

namespace fs = std::filesystem;

class Rpc : public ::testing::Test {
  protected:
    void SetUp() override {
        if (!testing::have_referees()) GTEST_SKIP() << "llama.cpp's tools are not there (CEREBELLUM_REFEREE_BIN)";
        silence_llama_log();
        start();
    }
    void start() { start(port_, server_); }
    void start(int& port, std::unique_ptr<Program>& server) const {
        server = testing::start_rpc_server(folder_.path(), port);
        ASSERT_TRUE(server->running());
    }
    std::string endpoint() const { return fmt::format("127.0.0.1:{}", port_); }

    TemporaryFolder folder_;
    int port_ = 0;
    std::unique_ptr<Program> server_;
};

void expect_exact_from_every_layer(const Model& model, const std::string& device) {
    const auto tokens = random_tokens(model, 48, 2);
    const auto expected = decode(model, tokens);
    ReplayedWindow window(model, tokens, device);
    for (const int cut : window.layer_cuts())
        EXPECT_EQ(difference(window.logits_from(cut), expected), "") << model.path() << ", cut at " << cut;
}

TEST_F(Rpc, replays_are_bit_identical_to_llama_decode) {
    const auto model = Model::load(small_model());
    expect_exact_from_every_layer(model, endpoint());
    // A substitution, too, is what it is on the CPU: inside of a block, in the head, and in the embedding, which stays
    // on the host.
    const auto tokens = random_tokens(model, 48, 3);
    ReplayedWindow here(model, tokens), there(model, tokens, endpoint());
    for (const auto* name : {"blk.3.ffn_down.weight", "output.weight", "token_embd.weight"}) {
        const auto bytes = here.quantized(name, GGML_TYPE_Q4_K);
        const Substitutions substitutes = {{name, {GGML_TYPE_Q4_K, bytes}}};
        const auto expected = here.logits_from(0, substitutes);
        EXPECT_EQ(difference(there.logits_from(0, substitutes), expected), "") << name;
        EXPECT_NE(difference(here.logits_from(0), expected), "") << name;
    }
}

TEST_F(Rpc, replays_of_other_kinds_of_models_are_bit_identical_too) {
    const TemporaryFolder models;
    ASSERT_TRUE(testing::run_referee("test-llama-archs", "-o " + testing::quoted(models.path()), models.path()));
    for (const auto* name : {"llama-moe", "qwen35-dense", "mamba-dense", "gemma3-dense"})
        expect_exact_from_every_layer(Model::load(models / (std::string(name) + ".gguf")), endpoint());
}

TEST_F(Rpc, scores_are_computed_there_and_equal_those_of_the_cpu) {
    const auto model = Model::load(small_model());
    constexpr int n_tokens = 64;
    EngineOptions options;
    options.device = endpoint();
    ReplayEngine here(model, n_tokens, 1), there(model, n_tokens, options);
    EXPECT_FALSE(there.device().is_host());
    const auto tokens = random_tokens(model, n_tokens, 4);
    const auto check = there.self_check(std::vector{there.prepare(tokens)});
    EXPECT_EQ(check.largest_deviation, 0.0);
    EXPECT_LT(std::fabs(check.null_floor_kld), 1e-9);

    const TemporaryFolder folder;
    ReplayedWindow window(model, tokens);
    const auto score = [&](ReplayEngine& engine, const std::string& name, ggml_type type) {
        const auto recorded = engine.prepare(tokens);
        const auto bytes = window.quantized(name, type);
        Slice::Options substituted;
        substituted.substitutes = {{name, {type, bytes}}};
        const auto run = [&](const Slice::Options& body_options) {
            const auto body = engine.slice(0, engine.topology().head_cut(), body_options);
            body->run(recorded.inputs, {});
            return body->live_out({});
        };
        engine.set_reference(recorded, run({}));
        return engine.score(recorded, run(substituted));
    };
    for (const auto type : {GGML_TYPE_Q2_K, GGML_TYPE_Q4_K, GGML_TYPE_Q8_0}) {
        const auto expected = score(here, "blk.2.ffn_up.weight", type);
        const auto got = score(there, "blk.2.ffn_up.weight", type);
        EXPECT_EQ(got.count, expected.count);
        // ggml's CPU computes expm1(d) as e^d - 1, whose rounding depends on the processor's exponential function.
        EXPECT_NEAR(got.kld, expected.kld, 2e-3 * expected.kld + std::numeric_limits<float>::epsilon());
        EXPECT_NEAR(got.nll, expected.nll, 1e-5 * expected.nll);
        EXPECT_NEAR(got.reference_nll, expected.reference_nll, 1e-5 * expected.reference_nll);
        EXPECT_EQ(got.same_top, expected.same_top);
    }
}

TEST_F(Rpc, a_model_is_divided_among_servers) {
    int port = 0;
    std::unique_ptr<Program> second;
    start(port, second);
    const auto model = Model::load(small_model());
    constexpr int n_tokens = 64;
    EngineOptions options;
    options.device = endpoint();
    ReplayEngine one(model, n_tokens, options);
    options.more_devices = {fmt::format("127.0.0.1:{}", port)};
    ReplayEngine both(model, n_tokens, options);
    EXPECT_FALSE(both.is_host());
    EXPECT_THAT(both.device_names(), HasSubstr(options.more_devices.front()));
    const auto tokens = random_tokens(model, n_tokens, 4);
    const auto check = both.self_check(std::vector{both.prepare(tokens)});
    EXPECT_EQ(check.largest_deviation, 0.0);
    // Neither has all of it.
    one.self_check(std::vector{one.prepare(tokens)});
    EXPECT_GT(both.weights().placed_bytes(), 0U);
    EXPECT_LT(both.weights().placed_bytes(), one.weights().placed_bytes());
}

class RpcProgram : public Rpc {
  protected:
    void SetUp() override {
        Rpc::SetUp();
        if (IsSkipped()) return;
        write_file_atomically(folder_ / "text.txt", testing::some_text());
    }
    std::vector<std::string> ablate(const std::string& journal, const std::string& device) const {
        return {"ablate",    small_model().string(),
                "--journal", (folder_ / journal).string(),
                "--text",    (folder_ / "text.txt").string(),
                "--ctx",     "64",
                "--tokens",  "256",
                "--types",   "q2_K,q4_0",
                "--threads", "1",
                "--device",  device,
                "--json"};
    }
};

TEST_F(RpcProgram, measures_what_the_cpu_measures) {
    // With the same importance matrix: each sums its own in another order, and the last digits of that now and then
    // choose another scale of a block, which is another change of the weights.
    const auto imatrix = (folder_ / "imatrix.gguf").string();
    const auto computed =
        testing::run_program({"imatrix", "compute", small_model().string(), "--text", (folder_ / "text.txt").string(),
                              "--ctx", "64", "--threads", "1", "-o", imatrix},
                             folder_.path());
    ASSERT_EQ(computed.code, 0) << computed.errors;
    const auto measured = [&](const std::string& journal, const std::string& device) {
        auto arguments = ablate(journal, device);
        arguments.insert(arguments.end(), {"--imatrix", imatrix});
        return testing::run_program(arguments, folder_.path());
    };
    const auto here = measured("here.db", "CPU");
    ASSERT_EQ(here.code, 0) << here.errors;
    const auto there = measured("there.db", endpoint());
    ASSERT_EQ(there.code, 0) << there.errors;
    EXPECT_THAT(there.errors, HasSubstr("null floor"));
    const auto expected = nlohmann::json::parse(here.output), got = nlohmann::json::parse(there.output);
    ASSERT_EQ(got.size(), expected.size());
    ASSERT_GT(got.size(), 80U);
    for (std::size_t i = 0; i < got.size(); ++i) {
        EXPECT_EQ(got[i]["tensor"], expected[i]["tensor"]);
        EXPECT_EQ(got[i]["type"], expected[i]["type"]);
        const double kld = expected[i]["kld"];
        EXPECT_NEAR(got[i]["kld"].get<double>(), kld, 5e-3 * kld) << got[i]["tensor"];
    }
}

TEST_F(RpcProgram, several_servers_measure_what_one_measures) {
    int port = 0;
    std::unique_ptr<Program> second;
    start(port, second);
    const auto one = testing::run_program(ablate("one.db", endpoint()), folder_.path());
    ASSERT_EQ(one.code, 0) << one.errors;
    auto arguments = ablate("two.db", "CPU");
    arguments.resize(arguments.size() - 3);  // --device CPU --json
    for (const auto& more :
         {std::string("--json"), std::string("--rpc"), fmt::format("{},127.0.0.1:{}", endpoint(), port)})
        arguments.push_back(more);
    const auto two = testing::run_program(arguments, folder_.path());
    ASSERT_EQ(two.code, 0) << two.errors;
    const auto expected = nlohmann::json::parse(one.output), got = nlohmann::json::parse(two.output);
    ASSERT_EQ(got.size(), expected.size());
    for (std::size_t i = 0; i < got.size(); ++i) {
        const double kld = expected[i]["kld"];
        EXPECT_NEAR(got[i]["kld"].get<double>(), kld, 1e-9 + 1e-6 * kld) << got[i]["tensor"];
    }
    // With a local device in front: the CPU scores, and rounds as one process alone does.
    arguments.back() = endpoint();
    for (const auto* more : {"--device", "CPU", "-v"}) arguments.emplace_back(more);
    *std::ranges::find(arguments, (folder_ / "two.db").string()) = (folder_ / "both.db").string();
    const auto both = testing::run_program(arguments, folder_.path());
    ASSERT_EQ(both.code, 0) << both.errors;
    EXPECT_THAT(both.errors, HasSubstr("parts), " + endpoint()));
    const auto with_cpu = nlohmann::json::parse(both.output);
    ASSERT_EQ(with_cpu.size(), expected.size());
    for (std::size_t i = 0; i < with_cpu.size(); ++i) {
        const double kld = expected[i]["kld"];
        EXPECT_NEAR(with_cpu[i]["kld"].get<double>(), kld, 5e-3 * kld) << with_cpu[i]["tensor"];
    }
    arguments.resize(arguments.size() - 3);
    arguments.back() = "somewhere";
    EXPECT_EQ(testing::run_program(arguments, folder_.path()).code, 2);
}

TEST_F(RpcProgram, a_server_that_dies_leaves_a_journal_to_go_on_with) {
    const auto rows = [&]() -> std::size_t {
        try {
            return Journal::open_existing(folder_ / "j.db").measurements().size();
        } catch (const Error&) {
            return 0;  // not there yet
        }
    };
    // It is found dead when it is written to or when it does not answer, depending on the moment.
    for (const std::size_t at : {10U, 14U, 18U, 22U}) {
        const auto arguments = ablate("j.db", endpoint());
        Program program(testing::with_program(arguments), folder_.path());
        while (program.running() && rows() < at) std::this_thread::sleep_for(std::chrono::milliseconds(5));
        server_->send(SIGKILL);
        const auto result = program.wait();
        EXPECT_EQ(result.code, 1) << "signal " << result.signal << ": " << result.errors;
        EXPECT_THAT(result.errors, HasSubstr("run the same command again"));
        EXPECT_GE(rows(), at);

        const auto gone = testing::run_program(arguments, folder_.path());
        EXPECT_EQ(gone.code, 1);
        EXPECT_THAT(gone.errors, HasSubstr(endpoint()));
        start();
    }
    const auto resumed = testing::run_program(ablate("j.db", endpoint()), folder_.path());
    EXPECT_EQ(resumed.code, 0) << resumed.errors;
    EXPECT_GT(rows(), 80U);
}

#ifdef __linux__
TEST_F(RpcProgram, a_device_without_memory_left_is_said_and_the_run_goes_on_later) {
    // From now on the server gets no address space for anything as large as weights.
    std::size_t pages = 0;
    std::ifstream(fmt::format("/proc/{}/statm", server_->process())) >> pages;
    ASSERT_GT(pages, 0U);
    const auto limit = static_cast<rlim_t>(pages) * static_cast<rlim_t>(sysconf(_SC_PAGESIZE)) + (rlim_t{1} << 20);
    const rlimit limits{limit, limit};
    ASSERT_EQ(prlimit(server_->process(), RLIMIT_AS, &limits, nullptr), 0);
    const auto result = testing::run_program(ablate("j.db", endpoint()), folder_.path());
    EXPECT_EQ(result.code, 1) << "signal " << result.signal << ": " << result.errors;
    // ggml's server ends itself where it cannot allocate, so that is what the client sees.
    EXPECT_THAT(result.errors, HasSubstr("less --device-memory"));
    EXPECT_THAT(result.errors, HasSubstr("run the same command again"));

    start();
    const auto resumed = testing::run_program(ablate("j.db", endpoint()), folder_.path());
    EXPECT_EQ(resumed.code, 0) << resumed.errors;
}
#endif

TEST_F(RpcProgram, a_device_that_is_none_is_refused_with_those_there_are) {
    const auto result = testing::run_program(ablate("j.db", "TPU7"), folder_.path());
    EXPECT_EQ(result.code, 2);
    EXPECT_THAT(result.errors, HasSubstr("CPU"));
    EXPECT_FALSE(fs::exists(folder_ / "j.db"));
}

}  // namespace
}  // namespace cerebellum
