// Everything that runs a model runs on --device: llama.cpp's RPC server stands for one here.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "cerebellum/calibrate/imatrix.h"
#include "cerebellum/calibrate/second_moments.h"
#include "cerebellum/evaluate/built_file.h"
#include "cerebellum/journal/journal.h"
#include "cerebellum/llama/log.h"
#include "cerebellum/replay/replay_support_test.h"
#include "tests/e2e/generated_model.h"
#include "tests/e2e/rpc_server.h"

namespace cerebellum {
namespace {

using ::testing::HasSubstr;
using testing::Program;
using testing::random_tokens;
using testing::small_model;
using testing::TemporaryFolder;

namespace fs = std::filesystem;
using nlohmann::json;

class OnDevice : public ::testing::Test {
  protected:
    void SetUp() override {
        if (!testing::have_referees()) GTEST_SKIP() << "llama.cpp's tools are not there (CEREBELLUM_REFEREE_BIN)";
        silence_llama_log();
        server_ = testing::start_rpc_server(work_.path(), port_);
        ASSERT_TRUE(server_->running());
        write_file_atomically(path("text.txt"), testing::some_text());
    }
    fs::path path(const std::string& name) const { return work_ / name; }
    std::string endpoint() const { return fmt::format("127.0.0.1:{}", port_); }
    RunPlace place() const {
        const std::string devices[] = {endpoint()};
        return place_on(devices);
    }
    /// Clock ticks of processor time that the server has used.
    long work_done() const {
        std::ifstream file(fmt::format("/proc/{}/stat", server_->process()));
        std::string word;
        long user = 0, system = 0;
        for (int i = 0; i < 13; ++i) file >> word;
        file >> user >> system;
        return user + system;
    }
    /// Runs the program with the server as its device. It must have worked there.
    std::string on_device(std::vector<std::string> arguments) const {
        const auto before = work_done();
        arguments.insert(arguments.end(), {"--device", endpoint()});
        auto output = here(arguments);
        EXPECT_GT(work_done(), before + 2) << arguments.front();
        return output;
    }
    std::string here(std::vector<std::string> arguments) const {
        arguments.insert(arguments.end(), {"--threads", "1", "-q"});
        const auto result = testing::run_program(arguments, work_.path(), std::chrono::minutes(10));
        EXPECT_EQ(result.code, 0) << result.errors;
        return result.output;
    }
    std::string quantized(const std::string& type) const {
        const auto file = path(type + ".gguf");
        EXPECT_TRUE(testing::run_referee(
            "llama-quantize", fmt::format("{} {} {} 1", testing::quoted(small_model()), testing::quoted(file), type),
            work_.path()));
        return file.string();
    }

    TemporaryFolder work_;
    int port_ = 0;
    std::unique_ptr<Program> server_;
};

double relative_difference(const Imatrix& a, const Imatrix& b) {
    EXPECT_EQ(a.entries.size(), b.entries.size());
    double worst = 0.0;
    for (const auto& [name, entry] : a.entries) {
        const auto& other = b.entries.at(name);
        EXPECT_EQ(entry.counts, other.counts) << name;
        EXPECT_EQ(entry.n_cols, other.n_cols) << name;
        EXPECT_EQ(entry.in_sum2.size(), other.in_sum2.size()) << name;
        for (std::size_t i = 0; i < entry.in_sum2.size(); ++i) {
            const auto x = static_cast<double>(entry.in_sum2[i]), y = static_cast<double>(other.in_sum2[i]);
            if (x != y) worst = std::max(worst, std::fabs(x - y) / std::max(std::fabs(x), std::fabs(y)));
        }
    }
    return worst;
}

TEST_F(OnDevice, importance_matrices_of_replays_and_of_evaluations_are_the_cpu_s) {
    testing::write_generated_model("gemma4-moe", path("mixture.gguf"));
    constexpr int n_tokens = 48;
    NoProgress silent;
    for (const auto& file : {fs::path(small_model()), path("mixture.gguf")}) {
        const auto model = Model::load(file);
        TokenWindows tokens;
        for (const unsigned seed : {1U, 2U}) tokens.push_back(random_tokens(model, n_tokens, seed));
        const auto replayed_on = [&](const std::string& device) {
            EngineOptions options;
            options.device = device;
            ReplayEngine engine(model, n_tokens, options);
            std::vector<Window> windows;
            for (const auto& window : tokens) windows.push_back(engine.prepare(window));
            return compute_imatrix(engine, windows, "", silent);
        };
        const auto expected = replayed_on("CPU");
        const bool has_experts =
            std::ranges::any_of(expected.entries, [](const auto& entry) { return entry.second.counts.size() > 1; });
        EXPECT_EQ(has_experts, file != fs::path(small_model()));
        EXPECT_LT(relative_difference(expected, replayed_on(endpoint())), 1e-5) << file;
        const auto there = Model::load_to_run(file, place());
        EXPECT_TRUE(there.on_devices());
        EXPECT_LT(relative_difference(expected, compute_imatrix(there, tokens, 1, "", silent)), 1e-5) << file;
    }
}

class Kept final : public MomentSink {
  public:
    bool has(const std::string& input, std::int64_t matrix) const override { return moments.contains({input, matrix}); }
    void put(const std::string& input, std::int64_t matrix, std::span<const float> lower_triangle) override {
        moments[{input, matrix}].assign(lower_triangle.begin(), lower_triangle.end());
    }
    std::map<std::pair<std::string, std::int64_t>, std::vector<float>> moments;
};

TEST_F(OnDevice, second_moments_are_the_cpu_s) {
    const auto model = Model::load(small_model());
    constexpr int n_tokens = 48;
    NoProgress silent;
    const auto collect = [&](const EngineOptions& options) {
        ReplayEngine engine(model, n_tokens, options);
        std::vector<Window> windows;
        for (const unsigned seed : {1U, 2U, 3U})
            windows.push_back(engine.prepare(random_tokens(model, n_tokens, seed)));
        const auto inputs =
            find_inputs(engine.topology(), {"blk.1.attn_q.weight", "blk.1.attn_output.weight", "blk.1.ffn_up.weight",
                                            "blk.4.ffn_down.weight", "output.weight"});
        Kept kept;
        collect_second_moments(engine, windows, inputs, 1U << 30, 1, kept, silent);
        return kept.moments;
    };
    EngineOptions there;
    there.device = endpoint();
    const auto expected = collect({});
    const auto got = collect(there);
    ASSERT_EQ(got.size(), 5U);
    EXPECT_NE(got, expected) << "the sums were not made on the device";
    const auto expect_near = [&](const auto& others) {
        ASSERT_EQ(others.size(), expected.size());
        for (const auto& [key, moments] : expected) {
            const auto& other = others.at(key);
            ASSERT_EQ(other.size(), moments.size()) << key.first;
            const auto scale = static_cast<double>(*std::ranges::max_element(moments));
            for (std::size_t i = 0; i < moments.size(); ++i)
                ASSERT_NEAR(static_cast<double>(other[i]), static_cast<double>(moments[i]), 2e-6 * scale) << key.first;
        }
    };
    expect_near(got);
    // With so little memory that the states have to leave it and the largest sums are made on the host.
    auto tight = there;
    tight.limits.device_bytes = std::size_t{14} << 20;
    expect_near(collect(tight));
}

TEST_F(OnDevice, files_that_do_not_fit_there_together_are_scored_in_turn) {
    const auto source = Model::load(small_model());
    const std::vector<fs::path> files = {quantized("Q3_K_S"), quantized("Q4_K_M"), quantized("Q8_0")};
    TokenWindows windows;
    for (const unsigned seed : {1U, 2U}) windows.push_back(random_tokens(source, 48, seed));
    NoProgress silent;
    const auto expected = score_files(source, files, windows, 1, silent);
    auto two_at_a_time = place(), partly = place();
    two_at_a_time.device_bytes = std::size_t{3 * 256 + 64 + 256} << 20;
    partly.device_bytes = std::size_t{2 * 256 + 8 + 256} << 20;
    for (const auto& where : {place(), two_at_a_time, partly}) {
        const auto before = work_done();
        const auto scores = score_files(source, files, windows, 1, silent, where);
        EXPECT_GT(work_done(), before);
        for (std::size_t f = 0; f < files.size(); ++f)
            for (std::size_t w = 0; w < windows.size(); ++w) {
                EXPECT_NEAR(scores[f][w].kld, expected[f][w].kld, 1e-3 * expected[f][w].kld) << where.device_bytes;
                EXPECT_NEAR(scores[f][w].nll, expected[f][w].nll, 1e-4 * expected[f][w].nll);
            }
    }
}

TEST_F(OnDevice, evaluations_say_there_what_they_say_on_the_cpu) {
    const auto text = path("text.txt").string();
    const std::vector<std::string> ppl = {
        "eval", "ppl", small_model().string(), "--text", text, "--ctx", "128", "--windows", "6", "--json"};
    const auto a = json::parse(here(ppl)), b = json::parse(on_device(ppl));
    EXPECT_EQ(a.at("gpu_layers"), 0);
    EXPECT_FALSE(a.contains("device"));
    EXPECT_EQ(b.at("device"), endpoint());
    const double expected = a["files"][0]["perplexity"];
    EXPECT_NEAR(b["files"][0]["perplexity"].get<double>(), expected, 1e-3 * expected);

    const std::vector<std::string> kld = {
        "eval", "kld",   small_model().string(), quantized("Q3_K_S"), "--text", text, "--ctx", "128", "--windows",
        "6",    "--json"};
    const auto here_kld = json::parse(here(kld))["files"][0]["kld"]["mean"].get<double>();
    EXPECT_NEAR(json::parse(on_device(kld))["files"][0]["kld"]["mean"].get<double>(), here_kld, 5e-3 * here_kld);

    std::string lines;
    for (int i = 0; i < 20; ++i)
        lines += fmt::format(R"({{"question": "What comes behind {}?", "choices": ["{}", "nothing"], "answer": 0}})"
                             "\n",
                             i, i + 1);
    write_file_atomically(path("own.jsonl"), lines);
    const auto choice = [&](const char* out) {
        return std::vector<std::string>{
            "eval",  "choice",           "choice", small_model().string(), "--questions", path("own.jsonl").string(),
            "--out", path(out).string(), "--json"};
    };
    const auto scores = [&](const std::string& output) {
        return json::parse(output)[0]["metrics"]["acc_norm"]["score"].get<double>();
    };
    EXPECT_NEAR(scores(on_device(choice("there"))), scores(here(choice("here"))), 0.051);  // a near tie may turn

    const auto speed = json::parse(on_device({"eval", "speed", small_model().string(), "--prompt", "64", "--generate",
                                              "8", "--repetitions", "1", "--json"}));
    EXPECT_GT(speed["files"][0]["prompt_per_second"]["median"].get<double>(), 0.0);
    EXPECT_EQ(speed["device"], endpoint());
}

TEST_F(OnDevice, imatrix_compute_gives_the_cpu_s_matrix) {
    const auto command = [&](const char* output) {
        return std::vector<std::string>{
            "imatrix",  "compute", small_model().string(), "--text", path("text.txt").string(), "--ctx", "128",
            "--chunks", "4",       "--process-output",     "-o",     path(output).string()};
    };
    here(command("here.gguf"));
    on_device(command("there.gguf"));
    EXPECT_LT(relative_difference(read_imatrix(path("here.gguf")), read_imatrix(path("there.gguf"))), 1e-3);
}

TEST_F(OnDevice, verify_writes_its_text_there_and_compares_files_there) {
    const auto command = [&](const char* journal) {
        return std::vector<std::string>{"verify",
                                        small_model().string(),
                                        quantized("Q3_K_S"),
                                        "--ctx",
                                        "64",
                                        "--tokens",
                                        "128",
                                        "--journal",
                                        path(journal).string(),
                                        "--json"};
    };
    const auto there = json::parse(on_device(command("there.db")));
    const auto here_too = json::parse(here(command("here.db")));
    // The server rounds as the CPU does, so that even the text is the same.
    const auto text_of = [&](const char* journal) {
        return Journal::open_existing(path(journal)).get_artifact("text").value();
    };
    EXPECT_EQ(text_of("there.db"), text_of("here.db"));
    const double kld = here_too[0]["kld"];
    EXPECT_GT(kld, 0.001);
    EXPECT_NEAR(there[0]["kld"].get<double>(), kld, 1e-3 * kld);
}

using OnDeviceSlow = OnDevice;

TEST_F(OnDeviceSlow, the_main_job_and_verify_run_there_from_the_first_token_on) {
    const auto run = [&](std::vector<std::string> arguments) {
        arguments.insert(arguments.end(), {"--ctx", "64", "--tokens", "128", "--types", "q4_K,q6_K", "--json"});
        return arguments;
    };
    const auto journal = path("j.db").string(), output = path("out.gguf").string();
    const auto results = json::parse(
        on_device(run({"quantize", small_model().string(), "--size", "4MB", "-o", output, "--journal", journal})));
    EXPECT_THAT(results.at("text").get<std::string>(), HasSubstr("self-sampled"));
    EXPECT_THAT(Journal::open_existing(journal).identity().fields.at("device"), HasSubstr("RPC"));
    const auto row = std::ranges::find(results.at("files"), results.at("delivered"),
                                       [](const json& file) { return file.at("name"); });
    const double kld = row->at("kld").at("mean");
    const auto verified = json::parse(on_device(run({"verify", small_model().string(), output, "--journal", journal})));
    EXPECT_NEAR(verified[0]["kld"].get<double>(), kld, 1e-4 * kld);
}

TEST_F(OnDevice, what_is_no_device_is_refused_before_anything_is_done) {
    const auto refused = [&](std::vector<std::string> arguments, const std::string& device, int code) {
        arguments.insert(arguments.end(), {"--device", device, "--threads", "1"});
        const auto result = testing::run_program(arguments, work_.path());
        EXPECT_EQ(result.code, code) << result.errors;
        EXPECT_EQ(std::ranges::count(result.errors, '\n'), 1) << result.errors;
        return result.errors;
    };
    const auto model = small_model().string(), text = path("text.txt").string();
    const std::vector<std::string> imatrix = {
        "imatrix", "compute", model, "--text", text, "-o", path("i.gguf").string()};
    EXPECT_THAT(refused(imatrix, "TPU7", 2), HasSubstr("there is no device TPU7; there are CPU"));
    EXPECT_THAT(refused({"eval", "ppl", model, "--text", text}, "TPU7", 2), HasSubstr("there are CPU"));
    EXPECT_THAT(refused({"eval", "kld", model, model, "--text", text}, "TPU7", 2), HasSubstr("there are CPU"));
    EXPECT_THAT(refused({"eval", "speed", model}, "TPU7", 2), HasSubstr("there are CPU"));
    EXPECT_THAT(refused({"eval", "ppl", model, "--text", text, "--gpu-layers", "3"}, "CPU", 2),
                HasSubstr("--gpu-layers 3"));
    server_.reset();
    EXPECT_THAT(refused(imatrix, endpoint(), 1), HasSubstr(endpoint()));
    EXPECT_FALSE(fs::exists(path("i.gguf")));
}

}  // namespace
}  // namespace cerebellum
