// What is asked for is done, or refused, or said to have another outcome; and that before the work, not behind it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "cerebellum/build/recipe.h"
#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/gguf/imatrix_file.h"
#include "tests/e2e/program.h"

namespace cerebellum {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::run_program;
using testing::small_model;
using testing::TemporaryFolder;

class SaidBefore : public ::testing::Test {
  protected:
    void SetUp() override { write_file_atomically(work_ / "text.txt", testing::some_text()); }

    std::string path(const std::string& name) const { return (work_ / name).string(); }
    testing::ProgramResult run(std::vector<std::string> arguments) const {
        return run_program(arguments, work_.path(), std::chrono::minutes(3));
    }
    /// What quantize says until a stage of the work has begun; it is interrupted then.
    std::string said_first(const std::string& model, const std::string& size, const std::string& text = "text.txt") {
        testing::Program program(
            testing::with_program({"quantize", model, "--size", size, "--text", path(text), "--ctx", "64", "--tokens",
                                   "64", "--types", "q4_K,q8_0", "--threads", "1", "-o", path("out.gguf"), "--force"}),
            work_.path());
        const auto begun = [&] { return program.errors().find("measuring") != std::string::npos; };
        for (const auto start = std::chrono::steady_clock::now();
             program.running() && !begun() && std::chrono::steady_clock::now() - start < std::chrono::minutes(1);)
            std::this_thread::sleep_for(std::chrono::milliseconds(20));
        program.send(SIGINT);
        const auto said = program.wait().errors;
        return said.substr(0, said.find("measuring"));
    }

    TemporaryFolder work_;
};

TEST_F(SaidBefore, a_source_that_is_quantized_already_and_a_size_that_is_no_less) {
    const auto q8 = path("q8.gguf");
    ASSERT_EQ(run({"build", small_model().string(), "--preset", "Q8_0", "-o", q8}).code, 0);
    const auto said = said_first(q8, std::to_string(GgufFile::open(q8).file_size() + 1));
    EXPECT_THAT(said.substr(0, said.find("importance matrix")),
                AllOf(HasSubstr("quantized already"), HasSubstr("is no less than q8.gguf's own")));
}

TEST_F(SaidBefore, special_tokens_of_a_chat_in_a_text) {
    write_file_atomically(work_ / "chat.txt", "<|endoftext|>" + testing::some_text());
    EXPECT_THAT(said_first(small_model(), "5MB", "chat.txt"), HasSubstr("are read as plain text"));
    EXPECT_THAT(said_first(small_model(), "5MB"), Not(HasSubstr("are read as plain text")));
}

TEST_F(SaidBefore, a_pattern_of_a_type_file_that_matches_nothing) {
    const auto taken = [&](const std::string& content) {
        write_file_atomically(work_ / "types.txt", content);
        return run({"recipe", "from-type-file", small_model().string(), path("types.txt"), "--base", "Q4_K_M", "-o",
                    path("recipe.json"), "--force"});
    };
    const auto marked = taken("\xef\xbb\xbf# ours\nattn_v=q6_k\n");
    ASSERT_EQ(marked.code, 0) << marked.errors;
    EXPECT_EQ(read_recipe(path("recipe.json")).types.at("blk.0.attn_v.weight").type, GGML_TYPE_Q6_K);
    const auto missed = taken("attn_v=q6_k\nattn_w=q6_k\n");
    EXPECT_EQ(missed.code, 1);
    EXPECT_THAT(missed.errors, HasSubstr("types.txt:2: 'attn_w' matches no tensor"));
}

TEST_F(SaidBefore, windows_longer_than_the_models_context) {
    const auto trained = GgufFile::open(small_model()).uint_value("llama.context_length");
    ASSERT_TRUE(trained);
    for (const std::string command : {"ppl", "kld"}) {
        std::vector<std::string> arguments = {"eval", command, small_model().string()};
        if (command == "kld") arguments.push_back(small_model().string());
        for (const auto& more :
             {std::string("--text"), path("text.txt"), std::string("--ctx"), std::to_string(*trained + 1)})
            arguments.push_back(more);
        const auto result = run(arguments);
        EXPECT_EQ(result.code, 2) << command << result.errors;
        EXPECT_THAT(result.errors, HasSubstr("was trained for"));
    }
}

TEST_F(SaidBefore, importance_that_is_zero_over_whole_blocks) {
    const auto matrix = path("imatrix.gguf");
    ASSERT_EQ(run({"imatrix", "compute", small_model().string(), "--text", path("text.txt"), "--ctx", "64", "--windows",
                   "1", "--threads", "1", "-o", matrix})
                  .code,
              0);
    auto imatrix = read_imatrix(matrix);
    auto& importance = imatrix.entries.at("blk.0.ffn_down.weight").in_sum2;
    std::fill_n(importance.begin(), 256, 0.0f);
    write_imatrix(path("gap.gguf"), imatrix);
    const auto result = run({"build", small_model().string(), "--preset", "Q4_K_M", "--imatrix", path("gap.gguf"), "-o",
                             path("filled.gguf")});
    ASSERT_EQ(result.code, 0) << result.errors;
    EXPECT_THAT(result.errors, HasSubstr("blk.0.ffn_down.weight"));
}

TEST_F(SaidBefore, no_error_is_printed_where_there_is_none) {
    const auto result =
        run({"ablate", small_model().string(), "--text", path("text.txt"), "--ctx", "64", "--tokens", "64", "--threads",
             "1", "--types", "q4_K", "--tensors", "blk.0.attn_*", "--journal", path("j.db")});
    ASSERT_EQ(result.code, 0) << result.errors;
    EXPECT_THAT(result.output, Not(HasSubstr("nan")));
    EXPECT_THAT(result.output, HasSubstr("blk.0.attn_q.weight"));
}

}  // namespace
}  // namespace cerebellum
