// Replaying is exact for every generative architecture that libllama can run, from every cut between blocks, and so is
// substituting a tensor of each role: llama-quantize and llama_decode are the referees.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <optional>
#include <regex>
#include <set>

#include "cerebellum/core/quant_type.h"
#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/llama/log.h"
#include "cerebellum/llama/presets.h"
#include "cerebellum/quantize/scale_rows.h"
#include "cerebellum/replay/replay_support_test.h"
#include "cerebellum/replay/scalable_channels.h"
#include "tests/e2e/generated_model.h"
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
        // Without a seed every run would write other weights.
        if (!testing::run_referee("test-llama-archs", "-s 1 -o " + testing::quoted(folder_->path()), folder_->path()))
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

/// A model and one window of it: what libllama computes, and what a replay makes of it.
class Subject {
  public:
    explicit Subject(const fs::path& path)
        : model_(Model::load(path)),
          source_(GgufFile::open(path)),
          window_(model_, random_tokens(model_, n_tokens, 2)),
          baseline_(decode(model_, window_.tokens())) {}

    std::string architecture() const { return source_.architecture(); }
    int n_blocks() const { return static_cast<int>(window_.topology().layers().size()); }

    /// Returns the number of cuts that were tried.
    int expect_exact_from_every_layer() {
        SCOPED_TRACE(source_.path().filename().string());
        EXPECT_TRUE(std::ranges::all_of(baseline_, [](float logit) { return std::isfinite(logit); }));
        const auto cuts = window_.layer_cuts();
        EXPECT_GE(cuts.size(), 2U);
        for (const int cut : cuts) EXPECT_EQ(difference(window_.logits_from(cut), baseline_), "") << "cut at " << cut;
        return static_cast<int>(cuts.size());
    }

    /// Has llama-quantize give only `tensor` another type, and compares that file with a replay of the source.
    void expect_exact_substitution(const std::string& tensor, ggml_type type, const TemporaryFolder& folder) {
        SCOPED_TRACE(source_.path().filename().string() + ": " + tensor + " as " + type_name(type));
        // Every other matrix keeps the type it has. The files at hand have one type for all of them.
        const auto others = type_name(source_.find(tensor)->type);
        const auto type_of = [&](const std::string& name) { return name == tensor ? type_name(type) : others; };
        const bool tied = source_.find("output.weight") == nullptr;
        const auto file = folder / "substituted.gguf";
        const auto arguments = fmt::format(
            "--allow-requantize --tensor-type '^{}$={}' --tensor-type '.*={}' --output-tensor-type {} "
            "--token-embedding-type {} {} {} Q8_0 1",
            std::regex_replace(tensor, std::regex(R"(\.)"), R"(\.)"), type_name(type), others,
            type_of(tied ? "token_embd.weight" : "output.weight"), type_of("token_embd.weight"),
            testing::quoted(source_.path()), testing::quoted(file));
        ASSERT_TRUE(testing::run_referee("llama-quantize", arguments, folder.path()));
        const auto built = GgufFile::open(file);
        for (const auto& info : source_.tensors())
            ASSERT_EQ(type_name(built.find(info.name)->type),
                      info.name == tensor ? type_name(type) : type_name(info.type))
                << info.name;

        const auto expected = decode(Model::load(file), window_.tokens());
        const auto bytes = window_.quantized(tensor, type);
        const Substitutions substitutes = {{tensor, {type, bytes}}};
        EXPECT_EQ(difference(window_.logits_from(0, substitutes), expected), "");
        const int first = window_.topology().weights().at(tensor).first;
        EXPECT_EQ(difference(window_.logits_from(first, substitutes), expected), "");
        EXPECT_GT(largest_change(expected, baseline_), 1e-3);
    }

    /// Scales every place where the graph permits it, another factor for each channel, and compares the logits: weights
    /// in F32 are scaled without rounding. Returns the number of places.
    int expect_same_when_scaled() {
        SCOPED_TRACE(source_.path().filename().string());
        std::vector<ChannelScaling> scalings;
        for (const auto& place : find_scalable_channels(window_.topology())) {
            auto& scaling = scalings.emplace_back(ChannelScaling{place.producer, place.offsets, place.readers, {}});
            for (std::int64_t i = 0; i < place.n_channels; ++i)
                scaling.exponents.push_back(static_cast<std::int8_t>(i * 7 % 5 - 2));
        }
        std::map<std::string, std::vector<std::byte>> data;
        Substitutions substitutes;
        for (const auto& [name, scaling] : scaling_by_tensor(scalings)) {
            const auto& tensor = *source_.find(name);
            data[name] = scaled_data(source_, tensor, scaling);
            substitutes[name] = {tensor.type, data[name]};
        }
        EXPECT_EQ(difference(window_.logits_from(0, substitutes), baseline_), "");
        return static_cast<int>(scalings.size());
    }

    /// The tensors that may be quantized, that the graph reads, that ggml can compute with, and whose rows can be cut
    /// into blocks of 32.
    std::vector<std::string> tensors() const {
        std::vector<std::string> names;
        for (const auto& name : quantizable_tensors(source_.path()))
            if (window_.topology().takes_any_type(name) &&
                type_fits_row(GGML_TYPE_Q4_0, source_.find(name)->row_length()))
                names.push_back(name);
        return names;
    }

    /// The first of tensors() in each role: a role is a name without the number of the block.
    std::map<std::string, std::string> one_tensor_per_role() const {
        std::map<std::string, std::string> result;
        for (const auto& name : tensors()) result.emplace(role_of(name), name);
        return result;
    }

    /// Roles that may be quantized and are read, but have none of tensors().
    std::set<std::string> other_roles() const {
        std::set<std::string> result;
        const auto tried = one_tensor_per_role();
        for (const auto& name : quantizable_tensors(source_.path()))
            if (window_.topology().weights().contains(name) && !tried.contains(role_of(name)))
                result.insert(role_of(name));
        return result;
    }

    /// The first of tensors() whose name matches.
    std::optional<std::string> find_tensor(const std::string& pattern) const {
        for (const auto& name : tensors())
            if (std::regex_search(name, std::regex(pattern))) return name;
        return std::nullopt;
    }

  private:
    static std::string role_of(const std::string& name) {
        return std::regex_replace(name, std::regex(R"(^blk\.\d+\.|\.weight$)"), "");
    }

    Model model_;
    GgufFile source_;
    ReplayedWindow window_;
    std::vector<float> baseline_;
};

/// A copy with weights as a trained model might have them. What test-llama-archs writes is noise of standard deviation
/// 0.1 everywhere, norms included: a block changes little of what passes by it, a substitution would hardly show in the
/// logits, and a test that hardly sees it proves little. Signs stay as they are; some vectors must be negative.
fs::path settled(const fs::path& path, const TemporaryFolder& folder) {
    auto content = read_file(path);
    const auto source = GgufFile::open(path);
    for (const auto& tensor : source.tensors()) {
        if (tensor.type != GGML_TYPE_F32) throw Error(fmt::format("{} is no float", tensor.name));
        std::vector<float> values(static_cast<std::size_t>(tensor.n_weights()));
        std::memcpy(values.data(), content.data() + tensor.file_offset, tensor.size_bytes);
        for (float& value : values) value *= 10.0F;
        testing::settle(tensor.name, tensor.shape, values);
        std::memcpy(content.data() + tensor.file_offset, values.data(), tensor.size_bytes);
    }
    // Sparse attention that selects everything never uses the weights that it selects by.
    const std::string key = source.architecture() + ".attention.indexer.top_k";
    if (const auto at = content.find(key); at != std::string::npos) {
        const std::uint32_t n_selected = 4;
        std::memcpy(content.data() + at + key.size() + sizeof(std::uint32_t), &n_selected, sizeof n_selected);
    }
    write_file_atomically(folder / "settled.gguf", content);
    return folder / "settled.gguf";
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
        Subject(folder_->path() / (file + ".gguf")).expect_exact_from_every_layer();
        const TemporaryFolder work;
        Subject subject(settled(folder_->path() / (file + ".gguf"), work));
        subject.expect_exact_from_every_layer();
        for (const auto& pattern : patterns) {
            const auto tensor = subject.find_tensor(pattern);
            EXPECT_TRUE(tensor.has_value()) << "no tensor " << pattern;
            if (tensor) subject.expect_exact_substitution(*tensor, GGML_TYPE_Q4_0, work);
        }
    }
}

/// What was checked of one model.
struct Findings {
    std::string architecture;
    int n_blocks = 0;
    int n_cuts = 0;
    int n_roles = 0;
    int n_scaled = 0;
    std::set<std::string> other_roles;
    std::string result;
};

/// Replays from every layer, with one tensor of each role substituted, and with all places scaled. Failures are
/// reported, and noted in the result.
Findings examine(const fs::path& path, const TemporaryFolder& work) {
    Findings findings;
    const auto* running = ::testing::UnitTest::GetInstance()->current_test_info()->result();
    const int failures_before = running->total_part_count();
    try {
        Subject subject(path);
        findings.architecture = subject.architecture();
        findings.n_blocks = subject.n_blocks();
        findings.n_cuts = subject.expect_exact_from_every_layer();
        findings.other_roles = subject.other_roles();
        for (const auto& [role, tensor] : subject.one_tensor_per_role()) {
            subject.expect_exact_substitution(tensor, GGML_TYPE_Q4_0, work);
            ++findings.n_roles;
        }
        findings.n_scaled = subject.expect_same_when_scaled();
    } catch (const Error& refusal) {
        ADD_FAILURE() << refusal.what();
    }
    const int n_failures = running->total_part_count() - failures_before;
    findings.result = n_failures == 0 ? "exact" : fmt::format("{} failures", n_failures);
    return findings;
}

/// Architectures for which test-llama-archs writes no file: its own fixtures do not suffice there.
class GeneratedArchitectures : public ::testing::TestWithParam<std::string> {};

TEST_P(GeneratedArchitectures, replay_and_substitute_exactly) {
    if (!testing::have_referees()) GTEST_SKIP() << "llama.cpp's tools are not there (CEREBELLUM_REFEREE_BIN)";
    silence_llama_log();
    const TemporaryFolder work;
    testing::write_generated_model(GetParam(), work / "generated.gguf");
    const auto findings = examine(work / "generated.gguf", work);
    EXPECT_GE(findings.n_blocks, 3);
    EXPECT_GE(findings.n_roles, 6);
}

INSTANTIATE_TEST_SUITE_P(All, GeneratedArchitectures, ::testing::ValuesIn(testing::generated_models()),
                         [](const auto& test) { return std::regex_replace(test.param, std::regex("-"), "_"); });

class SlowArchitectures : public Architectures {};

/// docs/architectures.md. `rows` are named after the file, in its order.
std::string table_of(const std::map<std::string, Findings>& rows) {
    std::set<std::string> architectures;
    for (const auto& [file, findings] : rows) architectures.insert(findings.architecture);
    std::string text = fmt::format(
        "# Architectures that are replayed exactly\n\n"
        "Written by `make architectures`; do not edit.\n\n"
        "{} models of {} architectures: tiny ones with random weights, written by llama.cpp's own test program or, "
        "where "
        "it has none, by ours (tests/e2e/generated_model.h, which also says what is left out and why).\n\n"
        "- *Cuts*: replaying started there gives logits that equal those of `llama_decode` in every bit.\n"
        "- *Roles*: a tensor of each role (its name without the block's number) was replaced by its Q4_0 form. The "
        "logits of the replay equal in every bit those of a file in which `llama-quantize` had changed that tensor "
        "alone, and differ from the original's by more than 0.001.\n"
        "- *Not substituted*: roles that llama-quantize would change, but whose rows are no multiple of 32 here, or "
        "with which ggml cannot compute in a quantized type (such a file ends llama.cpp with an assertion).\n"
        "- *Scaled*: places where channels were scaled (`--scaling auto`), all at once; the logits are the same in "
        "every bit.\n\n"
        "| architecture | file | blocks | cuts | roles | not substituted | scaled | result |\n"
        "|---|---|---:|---:|---:|---|---:|---|\n",
        rows.size(), architectures.size());
    for (const auto& [file, findings] : rows)
        text += fmt::format("| {} | {} | {} | {} | {} | {} | {} | {} |\n", findings.architecture, file,
                            findings.n_blocks, findings.n_cuts, findings.n_roles, fmt::join(findings.other_roles, ", "),
                            findings.n_scaled, findings.result);
    return text;
}

TEST_F(SlowArchitectures, all_generative_ones_replay_and_substitute_exactly) {
    std::vector<fs::path> files;
    for (const auto& entry : fs::directory_iterator(folder_->path()))
        if (entry.path().extension() == ".gguf") files.push_back(entry.path());
    std::ranges::sort(files);
    int others = 0;
    std::map<std::string, Findings> rows;  // by what is shown as the file
    for (const auto& file : files) {
        SCOPED_TRACE(file.filename().string());
        const TemporaryFolder work;
        try {
            Model::load(file);
        } catch (const Error& encoder) {
            EXPECT_NE(std::string(encoder.what()).find("does not predict"), std::string::npos) << encoder.what();
            ++others;
            continue;
        }
        rows[file.filename().string()] = examine(settled(file, work), work);
    }
    EXPECT_GE(rows.size(), 127U);
    EXPECT_LE(others, 10);
    for (const auto& name : testing::generated_models()) {
        SCOPED_TRACE(name);
        const TemporaryFolder work;
        testing::write_generated_model(name, work / "generated.gguf");
        rows[name + ", generated"] = examine(work / "generated.gguf", work);
    }
    if (const char* path = std::getenv("CEREBELLUM_WRITE_ARCHITECTURES"); path != nullptr)
        write_file_atomically(path, table_of(rows));
}

TEST(SlowSmolLM2, replays_and_substitutes_exactly) {
    if (!testing::have_referees()) GTEST_SKIP() << "llama.cpp's tools are not there (CEREBELLUM_REFEREE_BIN)";
    silence_llama_log();
    const TemporaryFolder folder;
    const auto fetched =
        testing::Program(
            {"bash", (fs::path(CEREBELLUM_SOURCE_DIR) / "scripts/fetch-model.sh").string(), "smollm2-135m"},
            folder.path())
            .wait();
    if (fetched.code != 0) GTEST_SKIP() << "SmolLM2 cannot be fetched: " << fetched.errors;
    auto path = fetched.output.substr(0, fetched.output.find_last_not_of('\n') + 1);
    path.erase(0, path.find_last_of('\n') + 1);
    Subject subject(path);
    subject.expect_exact_from_every_layer();
    for (const auto* tensor : {"blk.12.attn_q.weight", "blk.29.ffn_down.weight", "token_embd.weight"})
        subject.expect_exact_substitution(tensor, GGML_TYPE_Q4_0, folder);
}

}  // namespace
}  // namespace cerebellum
