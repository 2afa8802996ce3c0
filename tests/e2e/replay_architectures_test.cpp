// Replaying is exact for the architectures that llama.cpp's own test program can write, from every cut between blocks,
// and so is substituting: llama-quantize and llama_decode are the referees.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <regex>

#include "cerebellum/core/quant_type.h"
#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/llama/log.h"
#include "cerebellum/llama/presets.h"
#include "cerebellum/replay/replay_support_test.h"
#include "tests/e2e/program.h"

namespace cerebellum {
namespace {

using testing::decode;
using testing::difference;
using testing::largest_change;
using testing::random_tokens;
using testing::ReplayedWindow;
using testing::TemporaryFolder;

namespace fs = std::filesystem;

constexpr int n_tokens = 64;

/// The files that test-llama-archs writes, in a folder that goes with the tests.
class Architectures : public ::testing::Test {
  protected:
    static void SetUpTestSuite() {
        silence_llama_log();
        if (!testing::have_referees()) return;
        folder_ = std::make_unique<TemporaryFolder>();
        if (!testing::run_referee("test-llama-archs", "-o " + testing::quoted(folder_->path()), folder_->path()))
            folder_.reset();
    }
    static void TearDownTestSuite() { folder_.reset(); }
    void SetUp() override {
        if (!testing::have_referees()) GTEST_SKIP() << "llama.cpp's tools are not there (CEREBELLUM_REFEREE_BIN)";
        ASSERT_NE(folder_, nullptr);
    }

    static std::unique_ptr<TemporaryFolder> folder_;
};

std::unique_ptr<TemporaryFolder> Architectures::folder_;

void expect_exact_from_every_layer(const Model& model) {
    const auto tokens = random_tokens(model, n_tokens, 2);
    const auto expected = decode(model, tokens);
    ReplayedWindow window(model, tokens);
    EXPECT_GE(window.layer_cuts().size(), 2U) << model.path();
    for (const int cut : window.layer_cuts())
        EXPECT_EQ(difference(window.logits_from(cut), expected), "") << model.path() << ", cut at " << cut;
}

/// Has llama-quantize give only `tensor` another type, and compares that file with a replay of the source.
void expect_exact_substitution(const Model& model, const std::string& tensor, ggml_type type,
                               const TemporaryFolder& folder) {
    SCOPED_TRACE(model.path().filename().string() + ": " + tensor + " as " + type_name(type));
    const auto source = GgufFile::open(model.path());
    // Every other matrix keeps the type it has. The files at hand have one type for all of them.
    const auto others = type_name(source.find(tensor)->type);
    const auto type_of = [&](const std::string& name) { return name == tensor ? type_name(type) : others; };
    const bool tied = source.find("output.weight") == nullptr;
    const auto file = folder / "substituted.gguf";
    const auto arguments = fmt::format(
        "--allow-requantize --tensor-type '^{}$={}' --tensor-type '.*={}' --output-tensor-type {} "
        "--token-embedding-type {} {} {} Q8_0 1",
        std::regex_replace(tensor, std::regex(R"(\.)"), R"(\.)"), type_name(type), others,
        type_of(tied ? "token_embd.weight" : "output.weight"), type_of("token_embd.weight"),
        testing::quoted(model.path()), testing::quoted(file));
    ASSERT_TRUE(testing::run_referee("llama-quantize", arguments, folder.path()));
    const auto built = GgufFile::open(file);
    for (const auto& info : source.tensors())
        ASSERT_EQ(type_name(built.find(info.name)->type), info.name == tensor ? type_name(type) : type_name(info.type))
            << info.name;

    const auto tokens = random_tokens(model, n_tokens, 3);
    const auto expected = decode(Model::load(file), tokens);
    const auto baseline = decode(model, tokens);
    ReplayedWindow window(model, tokens);
    const auto bytes = window.quantized(tensor, type);
    const Substitutions substitutes = {{tensor, {type, bytes}}};
    EXPECT_EQ(difference(window.logits_from(0, substitutes), expected), "");
    EXPECT_EQ(difference(window.logits_from(window.topology().weights().at(tensor).first, substitutes), expected), "");
    EXPECT_GT(largest_change(expected, baseline), 1e-3);
}

/// The first quantizable tensor whose name matches, if the graph reads it and its rows can be cut into blocks of 32.
std::optional<std::string> find_tensor(const fs::path& path, const std::string& pattern) {
    const auto source = GgufFile::open(path);
    for (const auto& name : quantizable_tensors(path))
        if (std::regex_search(name, std::regex(pattern)) &&
            type_fits_row(GGML_TYPE_Q4_0, source.find(name)->row_length()))
            return name;
    return std::nullopt;
}

/// A copy with all quantizable matrices scaled up. The random weights are so small that a block changes little of what
/// passes by it: a substitution would hardly show in the logits, and a test that hardly sees it proves little.
fs::path amplified(const fs::path& path, const TemporaryFolder& folder) {
    auto content = read_file(path);
    const auto source = GgufFile::open(path);
    for (const auto& name : quantizable_tensors(path)) {
        const auto* tensor = source.find(name);
        if (tensor->type != GGML_TYPE_F32) throw Error(fmt::format("{} is no float", name));
        std::vector<float> values(static_cast<std::size_t>(tensor->n_weights()));
        std::memcpy(values.data(), content.data() + tensor->file_offset, tensor->size_bytes);
        const float factor = name == "output.weight" ? 600.0F : 12.0F;  // logits are linear in the output weight
        for (float& value : values) value *= factor;
        std::memcpy(content.data() + tensor->file_offset, values.data(), tensor->size_bytes);
    }
    write_file_atomically(folder / "amplified.gguf", content);
    return folder / "amplified.gguf";
}

TEST_F(Architectures, of_each_kind_replay_and_substitute_exactly) {
    struct Case {
        std::string file;
        std::vector<std::string> tensors;  // patterns; each must be found
    };
    const Case cases[] = {{"llama-dense", {R"(blk\.1\.attn_q)", R"(blk\.0\.ffn_down)", "token_embd", "^output"}},
                          {"qwen3-dense", {R"(blk\.0\.attn_output)", R"(blk\.1\.ffn_up)"}},
                          {"qwen35-dense", {"ssm_out", "attn_q", R"(ffn_down)"}},
                          {"llama-moe", {R"(blk\.0\.ffn_down_exps)", R"(blk\.1\.ffn_gate_exps)"}},
                          {"qwen3moe-moe", {R"(blk\.0\.ffn_up_exps)"}},
                          {"mamba-dense", {"ssm_in", "ssm_out"}},
                          {"gemma3-dense", {"attn_v", "ffn_gate", "token_embd"}}};
    for (const auto& [file, patterns] : cases) {
        SCOPED_TRACE(file);
        expect_exact_from_every_layer(Model::load(folder_->path() / (file + ".gguf")));
        const TemporaryFolder work;
        const auto path = amplified(folder_->path() / (file + ".gguf"), work);
        const auto model = Model::load(path);
        expect_exact_from_every_layer(model);
        for (const auto& pattern : patterns) {
            const auto tensor = find_tensor(path, pattern);
            EXPECT_TRUE(tensor.has_value()) << "no tensor " << pattern;
            if (tensor) expect_exact_substitution(model, *tensor, GGML_TYPE_Q4_0, work);
        }
    }
}

class SlowArchitectures : public Architectures {};

TEST_F(SlowArchitectures, all_generative_ones_replay_exactly) {
    int replayed = 0, others = 0;
    std::vector<fs::path> files;
    for (const auto& entry : fs::directory_iterator(folder_->path()))
        if (entry.path().extension() == ".gguf") files.push_back(entry.path());
    std::ranges::sort(files);
    for (const auto& file : files) {
        std::optional<Model> model;
        try {
            model = Model::load(file);
        } catch (const Error& encoder) {
            EXPECT_NE(std::string(encoder.what()).find("does not predict"), std::string::npos) << encoder.what();
            ++others;
            continue;
        }
        try {
            expect_exact_from_every_layer(*model);
            ++replayed;
        } catch (const Error& refusal) {
            ADD_FAILURE() << refusal.what();
        }
    }
    EXPECT_GE(replayed, 115);
    EXPECT_LE(others, 10);
}

TEST(SlowSmolLM2, replays_and_substitutes_exactly) {
    if (!testing::have_referees()) GTEST_SKIP() << "llama.cpp's tools are not there (CEREBELLUM_REFEREE_BIN)";
    silence_llama_log();
    const TemporaryFolder folder;
    const auto fetched =
        testing::Program({"bash", (fs::path(CEREBELLUM_SOURCE_DIR) / "scripts/fetch-smollm2.sh").string()},
                         folder.path())
            .wait();
    if (fetched.code != 0) GTEST_SKIP() << "SmolLM2 cannot be fetched: " << fetched.errors;
    auto path = fetched.output.substr(0, fetched.output.find_last_not_of('\n') + 1);
    path.erase(0, path.find_last_of('\n') + 1);
    const auto model = Model::load(path);
    expect_exact_from_every_layer(model);
    for (const auto* tensor : {"blk.12.attn_q.weight", "blk.29.ffn_down.weight", "token_embd.weight"})
        expect_exact_substitution(model, tensor, GGML_TYPE_Q4_0, folder);
}

}  // namespace
}  // namespace cerebellum
