// Built files in other people's readers: PyPI's gguf package and npm's node-llama-cpp with its prebuilt binary. Slow:
// both are installed in a scratch folder, from lock files.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <nlohmann/json.hpp>

#include "cerebellum/llama/log.h"
#include "cerebellum/llama/model.h"
#include "tests/e2e/program.h"

namespace cerebellum {
namespace {

using testing::quoted;
using testing::run_program;
using testing::small_model;
using testing::TemporaryFolder;

namespace fs = std::filesystem;

fs::path reader(const std::string& name) {
    return fs::path(CEREBELLUM_SOURCE_DIR) / "tests" / "readers" / name;
}

class ReadersSlow : public ::testing::Test {
  protected:
    fs::path build(const std::string& preset) {
        const auto path = work_ / (preset + ".gguf");
        const auto result = run_program(
            {"build", small_model().string(), "--preset", preset, "--threads", "1", "-o", path.string()}, work_.path());
        EXPECT_EQ(result.code, 0) << result.errors;
        return path;
    }

    /// stdout of a shell line.
    std::string shell(const std::string& line) {
        const auto out = work_ / "shell-out", err = work_ / "shell-err";
        const int status = std::system(fmt::format("{} >{} 2>{}", line, quoted(out), quoted(err)).c_str());
        EXPECT_EQ(status, 0) << line << "\n" << read_file(err);
        return status == 0 ? read_file(out) : "";
    }

    static bool have(const char* program) {
        return std::system(fmt::format("command -v {} >/dev/null 2>&1", program).c_str()) == 0;
    }

    TemporaryFolder work_;
};

/// Numbers agree where they are the same up to single precision, which one side may have lost to text. Of long arrays
/// `inspect` shows the count and the first values.
bool same(const nlohmann::json& ours, const nlohmann::json& theirs) {
    if (ours.is_number() && theirs.is_number()) {
        const auto x = ours.get<double>(), y = theirs.get<double>();
        return std::abs(x - y) <= 1e-6 * std::max(std::abs(x), std::abs(y));
    }
    if (!theirs.is_array()) return ours == theirs;
    const auto& values = ours.is_object() ? ours.at("first") : ours;
    const auto count = ours.is_object() ? ours.at("count").get<std::size_t>() : ours.size();
    return count == theirs.size() && values.size() <= count &&
           std::equal(values.begin(), values.end(), theirs.begin(), same);
}

TEST_F(ReadersSlow, PyPisGgufReadsTheSame) {
    if (!have("python3")) GTEST_SKIP() << "there is no python3";
    const auto environment = work_ / "python";
    shell(
        fmt::format("python3 -m venv {0} && {0}/bin/python -m pip install --quiet --disable-pip-version-check "
                    "--require-hashes --only-binary :all: -r {1}",
                    quoted(environment), quoted(reader("requirements.txt"))));
    if (HasFailure()) return;
    for (const auto* preset : {"Q4_K_M", "IQ4_XS", "Q2_K", "Q8_0"}) {
        SCOPED_TRACE(preset);
        const auto file = build(preset);
        const auto ours = nlohmann::json::parse(run_program({"inspect", file.string(), "--json"}, work_.path()).output);
        const auto theirs = nlohmann::json::parse(
            shell(fmt::format("{}/bin/python {} {}", quoted(environment), quoted(reader("read.py")), quoted(file))));
        ASSERT_EQ(ours["tensors"].size(), theirs["tensors"].size());
        ASSERT_GT(ours["tensors"].size(), 40u);
        for (std::size_t i = 0; i < ours["tensors"].size(); ++i) {
            auto tensor = ours["tensors"][i];
            tensor.erase("bpw");
            auto type = tensor["type"].get<std::string>();
            std::ranges::transform(type, type.begin(), [](unsigned char c) { return std::tolower(c); });
            tensor["type"] = type;
            EXPECT_EQ(tensor, theirs["tensors"][i]);
        }
        ASSERT_EQ(ours["metadata"].size(), theirs["metadata"].size());
        for (const auto& [key, value] : ours["metadata"].items()) {
            ASSERT_TRUE(theirs["metadata"].contains(key)) << key;
            EXPECT_TRUE(same(value, theirs["metadata"][key])) << key;
        }
    }
}

/// What libllama generates greedily: the likeliest token, again and again.
std::vector<Token> generate(const fs::path& file, std::vector<Token> tokens, int count) {
    silence_llama_log();
    const auto model = Model::load(file);
    std::vector<Token> generated;
    for (int i = 0; i < count; ++i) {
        Decoder decoder(model, static_cast<int>(tokens.size()), 1);
        const auto logits = decoder.decode(tokens).last(static_cast<std::size_t>(model.n_vocab()));
        generated.push_back(static_cast<Token>(std::ranges::max_element(logits) - logits.begin()));
        tokens.push_back(generated.back());
    }
    return generated;
}

TEST_F(ReadersSlow, NodeLlamaCppGeneratesTheSame) {
    if (!have("npm") || !have("node")) GTEST_SKIP() << "there is no npm or no node";
    if (shell("uname -sm").find("Linux x86_64") != 0) GTEST_SKIP() << "the lock file is for Linux on x86-64";
    for (const auto* name : {"package.json", "package-lock.json", ".npmrc", "generate.mjs"})
        fs::copy_file(reader(name), work_ / name);
    shell(fmt::format("cd {} && npm install --silent --ignore-scripts --omit=optional --no-audit --no-fund",
                      quoted(work_.path())));
    if (HasFailure()) return;
    constexpr int count = 24;
    for (const auto* preset : {"Q4_K_M", "Q3_K_M", "Q8_0"}) {
        SCOPED_TRACE(preset);
        const auto file = build(preset);
        const std::vector<Token> prompt = [&] {
            silence_llama_log();
            const auto model = Model::load(file);
            auto tokens = model.tokenize("The history of the city begins in the");
            tokens.insert(tokens.begin(), model.first_token());
            return tokens;
        }();
        const auto theirs = shell(fmt::format("cd {} && node generate.mjs {} {} {}", quoted(work_.path()), quoted(file),
                                              count, fmt::join(prompt, " ")));
        EXPECT_EQ(nlohmann::json::parse(theirs).get<std::vector<Token>>(), generate(file, prompt, count));
    }
}

}  // namespace
}  // namespace cerebellum
