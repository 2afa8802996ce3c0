// What we build is llama-quantize's file, byte for byte: every mix that it offers, with and without an importance
// matrix, for a dense model, a mixture of experts and a hybrid one, whole and split.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

#include "cerebellum/gguf/imatrix_file.h"
#include "cerebellum/llama/presets.h"
#include "tests/e2e/program.h"

namespace cerebellum {
namespace {

using testing::quoted;
using testing::run_program;
using testing::run_referee;
using testing::small_model;
using testing::TemporaryFolder;

namespace fs = std::filesystem;

/// Weights for every matrix but the token embedding, which llama-imatrix never sees; one expert is never reached.
Imatrix some_imatrix(const fs::path& model) {
    const auto source = GgufFile::open(model);
    Imatrix imatrix;
    imatrix.datasets = {"some text.txt"};
    imatrix.chunk_count = 4;
    imatrix.chunk_size = 64;
    std::mt19937 random(5);
    std::gamma_distribution<float> gamma(0.5F, 100.0F);
    for (const auto& tensor : source.tensors()) {
        if (tensor.n_dims < 2 || tensor.name == "token_embd.weight") continue;
        ImatrixEntry entry;
        entry.n_cols = tensor.row_length();
        entry.counts.assign(static_cast<std::size_t>(tensor.shape[2]), 256.0F);
        if (tensor.shape[2] > 1) entry.counts.back() = 0.0F;
        entry.in_sum2.resize(static_cast<std::size_t>(entry.n_cols * tensor.shape[2]));
        for (float& value : entry.in_sum2) value = gamma(random);
        imatrix.entries[tensor.name] = std::move(entry);
    }
    return imatrix;
}

/// Every name of llama-quantize's table but COPY.
std::vector<std::string> all_mixes() {
    std::vector<std::string> names;
    for (const auto& preset : stock_presets()) names.push_back(preset.name);
    for (const auto* name :
         {"Q1_0", "Q2_0", "TQ1_0", "TQ2_0", "MXFP4_MOE", "Q3_K", "Q4_K", "Q5_K", "F16", "BF16", "F32"})
        names.emplace_back(name);
    return names;
}

std::map<std::string, std::string> files_of(const fs::path& folder) {
    std::map<std::string, std::string> files;
    for (const auto& entry : fs::directory_iterator(folder))
        files[entry.path().filename().string()] = read_file(entry.path());
    return files;
}

class Parity : public ::testing::Test {
  protected:
    void SetUp() override {
        if (!testing::have_referees()) GTEST_SKIP() << "llama.cpp's tools are not there (CEREBELLUM_REFEREE_BIN)";
    }

    /// A random model that llama.cpp's own test program writes.
    fs::path architecture(const std::string& name) {
        if (!run_referee("test-llama-archs", fmt::format("-s 1 -a {} -o .", name), work_.path())) return {};
        for (const auto& entry : fs::directory_iterator(work_.path()))
            if (entry.path().filename().string().starts_with(name) && entry.path().extension() == ".gguf")
                return entry.path();
        ADD_FAILURE() << "test-llama-archs has written no " << name;
        return {};
    }

    /// Whether llama-quantize makes a file; both must refuse the same.
    bool expect_same(const fs::path& model, const std::string& mix, bool with_imatrix,
                     const std::string& more_theirs = "", const std::vector<std::string>& more_ours = {}) {
        SCOPED_TRACE(fmt::format("{} as {} {} importance matrix", model.filename().string(), mix,
                                 with_imatrix ? "with" : "without"));
        const auto theirs = work_ / "theirs", ours = work_ / "ours";
        for (const auto& folder : {theirs, ours}) {
            fs::remove_all(folder);
            fs::create_directory(folder);
        }
        if (with_imatrix) write_imatrix(work_ / "imatrix.gguf", some_imatrix(model));
        // The name of the importance matrix goes into the file as it is given.
        const auto imatrix = (work_ / "imatrix.gguf").string();
        const auto command =
            fmt::format("{} --allow-requantize {} {} {} {} {} 1 >{} 2>&1 </dev/null",
                        quoted(fs::path(CEREBELLUM_REFEREE_BIN) / "llama-quantize"),
                        with_imatrix ? "--imatrix " + quoted(fs::path(imatrix)) : "", more_theirs, quoted(model),
                        quoted(theirs / "out.gguf"), mix, quoted(work_ / "llama-quantize.log"));
        const bool made = std::system(command.c_str()) == 0;
        std::vector<std::string> arguments = {"build",
                                              model.string(),
                                              "--preset",
                                              mix,
                                              "--no-provenance",
                                              "-o",
                                              (ours / "out.gguf").string(),
                                              "--threads",
                                              "1"};
        if (with_imatrix) arguments.insert(arguments.end(), {"--imatrix", imatrix});
        arguments.insert(arguments.end(), more_ours.begin(), more_ours.end());
        const auto result = run_program(arguments, work_.path(), std::chrono::minutes(10));
        EXPECT_EQ(result.code == 0, made) << result.errors << read_file(work_ / "llama-quantize.log");
        if (made) {
            EXPECT_TRUE(files_of(ours) == files_of(theirs));
        }
        return made;
    }

    void expect_same_in_all_mixes(const fs::path& model) {
        if (model.empty()) return;
        int made = 0;
        for (const auto& mix : all_mixes())
            for (const bool with_imatrix : {false, true}) made += expect_same(model, mix, with_imatrix);
        // Only what needs an importance matrix, and has none, may be refused.
        EXPECT_GE(made, 2 * std::ssize(all_mixes()) - 12);
    }

    TemporaryFolder work_;
};

using ParitySlow = Parity;

TEST_F(Parity, of_some_mixes) {
    for (const auto* mix : {"Q4_K_M", "Q8_0"}) EXPECT_TRUE(expect_same(small_model(), mix, false));
    EXPECT_TRUE(expect_same(small_model(), "Q2_K_S", true));
    EXPECT_FALSE(expect_same(small_model(), "IQ2_XXS", false));
    const auto experts = architecture("qwen3moe");
    EXPECT_TRUE(expect_same(experts, "Q4_K_M", true));
    EXPECT_TRUE(expect_same(architecture("jamba"), "Q4_K_M", true));
}

TEST_F(Parity, of_a_source_that_is_quantized_already) {
    ASSERT_TRUE(run_referee("llama-quantize", quoted(small_model()) + " q5.gguf Q5_K_M 1", work_.path()));
    EXPECT_TRUE(expect_same(work_ / "q5.gguf", "Q4_0", false));
}

TEST_F(ParitySlow, of_every_mix_of_a_dense_model) {
    expect_same_in_all_mixes(small_model());
}

TEST_F(ParitySlow, of_every_mix_of_a_mixture_of_experts) {
    expect_same_in_all_mixes(architecture("qwen3moe"));
}

TEST_F(ParitySlow, of_every_mix_of_a_hybrid_model) {
    expect_same_in_all_mixes(architecture("jamba"));
}

TEST_F(ParitySlow, of_split_models) {
    for (const auto& model : {small_model(), architecture("qwen3moe"), architecture("jamba")}) {
        ASSERT_FALSE(model.empty());
        const auto parts = work_ / "parts";
        fs::remove_all(parts);
        fs::create_directory(parts);
        ASSERT_TRUE(run_referee("llama-gguf-split",
                                fmt::format("--split --split-max-tensors 15 {} parts/source", quoted(model)),
                                work_.path()));
        fs::path first;
        for (const auto& entry : fs::directory_iterator(parts))
            if (entry.path().filename().string().starts_with("source-00001-of-")) first = entry.path();
        ASSERT_FALSE(first.empty());
        for (const bool with_imatrix : {false, true}) {
            EXPECT_TRUE(expect_same(first, "Q4_K_M", with_imatrix));
            EXPECT_TRUE(expect_same(first, "IQ4_XS", with_imatrix, "--keep-split", {"--keep-split"}));
        }
    }
}

}  // namespace
}  // namespace cerebellum
