#include "cerebellum/calibrate/imatrix_tools.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <sstream>

#include "cerebellum/gguf/gguf_support_test.h"

namespace cerebellum {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using testing::error_of;
using ::testing::HasSubstr;
using testing::have_referees;
using testing::run_referee;
using testing::small_model;
using testing::TemporaryFolder;

/// Blocks with a dense tensor and experts, of which one is never reached.
Imatrix random_imatrix(unsigned seed, float tokens, int blocks = 3) {
    Imatrix imatrix;
    imatrix.datasets = {"text " + std::to_string(seed)};
    imatrix.chunk_size = 64;
    imatrix.chunk_count = 4;
    std::mt19937 random(seed);
    std::gamma_distribution<float> gamma(0.4f, 5.0f);
    for (int block = 0; block < blocks; ++block)
        for (const int experts : {1, 3}) {
            ImatrixEntry entry;
            entry.n_cols = 32;
            entry.counts.assign(static_cast<std::size_t>(experts), tokens);
            if (experts > 1) entry.counts[1] = 0.0f;
            for (const float count : entry.counts)
                for (int i = 0; i < 32; ++i) entry.in_sum2.push_back(count * gamma(random));
            imatrix.entries[(experts > 1 ? "blk." + std::to_string(block) + ".ffn_up_exps.weight"
                                         : "blk." + std::to_string(block) + ".attn_q.weight")] = entry;
        }
    return imatrix;
}

TEST(ImatrixTools, merge_as_llama_imatrix_does) {
    if (!have_referees()) GTEST_SKIP() << "llama.cpp's tools are not there (CEREBELLUM_REFEREE_BIN)";
    const TemporaryFolder folder;
    const auto a = random_imatrix(1, 256.0f), b = random_imatrix(2, 128.0f);
    write_imatrix(folder / "a.gguf", a);
    write_imatrix(folder / "b.gguf", b);
    ASSERT_TRUE(run_referee(
        "llama-imatrix", "-m unused.gguf --in-file a.gguf --in-file b.gguf -c 64 -b 64 -o theirs.gguf", folder.path()));
    write_imatrix(folder / "ours.gguf", merge_imatrices({a, b}, 512));
    EXPECT_TRUE(read_file(folder / "ours.gguf") == read_file(folder / "theirs.gguf"));
}

TEST(ImatrixTools, merge_takes_the_older_format_in) {
    if (!have_referees()) GTEST_SKIP() << "llama.cpp's tools are not there (CEREBELLUM_REFEREE_BIN)";
    const TemporaryFolder folder;
    write_legacy_imatrix(folder / "a.dat", random_imatrix(1, 256.0f));
    ASSERT_TRUE(
        run_referee("llama-imatrix", "-m unused.gguf --in-file a.dat -c 64 -b 64 -o theirs.gguf", folder.path()));
    write_imatrix(folder / "ours.gguf", merge_imatrices({read_imatrix(folder / "a.dat")}, 64));
    EXPECT_TRUE(read_file(folder / "ours.gguf") == read_file(folder / "theirs.gguf"));
}

TEST(ImatrixTools, merge_refuses_matrices_of_other_models) {
    auto other = random_imatrix(2, 64.0f);
    auto& entry = other.entries.at("blk.1.attn_q.weight");
    entry.in_sum2.resize(16);
    entry.n_cols = 16;
    EXPECT_THAT(error_of([&] {
                    merge_imatrices({random_imatrix(1, 64.0f), other}, 512);
                }),
                AllOf(HasSubstr("blk.1.attn_q.weight"), HasSubstr("different models")));
}

TEST(ImatrixTools, statistics_of_a_small_example) {
    Imatrix imatrix;
    imatrix.entries["blk.0.a.weight"] = {{2.0f, 2.0f, 0.0f, 4.0f}, {2.0f}, 4};
    imatrix.entries["blk.1.a.weight"] = {{0.0f, 0.0f, 3.0f, 0.0f}, {1.0f}, 4};
    const auto statistics = imatrix_statistics(imatrix);
    ASSERT_EQ(statistics.size(), 2u);
    const auto& one = statistics.front();
    EXPECT_DOUBLE_EQ(one.total, 4.0);
    EXPECT_DOUBLE_EQ(one.mean, 1.0);
    EXPECT_DOUBLE_EQ(one.min, 0.0);
    EXPECT_DOUBLE_EQ(one.max, 2.0);
    EXPECT_DOUBLE_EQ(one.active, 0.75);
    EXPECT_DOUBLE_EQ(one.entropy, 1.5);
    EXPECT_DOUBLE_EQ(one.deviation, std::sqrt(0.5));
    EXPECT_DOUBLE_EQ(one.outliers, 0.25);
    EXPECT_EQ(one.cosine, 0.0);
    EXPECT_EQ(statistics.back().cosine, 0.0);  // no column in common
}

TEST(ImatrixTools, statistics_are_those_of_llama_imatrix) {
    if (!have_referees()) GTEST_SKIP() << "llama.cpp's tools are not there (CEREBELLUM_REFEREE_BIN)";
    const TemporaryFolder folder;
    // When it ends, llama-imatrix loses what it has logged and not yet written: at most 512 lines, its queue's length.
    constexpr int blocks = 400, lost = 520;
    const auto imatrix = random_imatrix(3, 256.0f, blocks);
    write_imatrix(folder / "imatrix.gguf", imatrix);
    ASSERT_TRUE(run_referee("llama-imatrix",
                            "-m unused.gguf --in-file imatrix.gguf -c 64 --show-statistics --log-file theirs.txt",
                            folder.path()));
    const auto statistics = imatrix_statistics(imatrix);
    std::istringstream lines(read_file(folder / "theirs.txt"));
    int compared = 0;
    for (std::string line; std::getline(lines, line);) {
        for (char& c : line)
            if (c == '%') c = ' ';
        // Behind the time and an I for information.
        const auto begin = line.find(" I ");
        std::istringstream fields(begin == std::string::npos ? "" : line.substr(begin + 3));
        std::string layer, name;
        double total = 0, min = 0, max = 0, mean = 0, deviation = 0, active = 0, n = 0, entropy = 0, norm = 0, zd = 0,
               cosine = 0;
        if (!(fields >> layer >> name >> total >> min >> max >> mean >> deviation >> active >> n >> entropy >> norm >>
              zd >> cosine))
            continue;
        const auto wanted = fmt::format("blk.{}.{}.weight", layer, name);
        const auto found = std::ranges::find(statistics, wanted, &ImatrixStatistics::tensor);
        ASSERT_NE(found, statistics.end()) << line;
        EXPECT_NEAR(found->total, total, 0.02) << line;
        EXPECT_NEAR(found->min, min, 1e-4) << line;
        EXPECT_NEAR(found->max, max, 1e-3) << line;
        EXPECT_NEAR(found->mean, mean, 0.006) << line;
        EXPECT_NEAR(found->deviation, deviation, 0.006) << line;
        EXPECT_NEAR(100.0 * found->active, active, 0.006) << line;
        EXPECT_EQ(static_cast<double>(found->columns), n) << line;
        EXPECT_NEAR(found->entropy, entropy, 1e-3) << line;
        EXPECT_NEAR(100.0 * found->outliers, zd, 0.006) << line;
        EXPECT_NEAR(found->cosine, cosine, 1e-4) << line;
        ++compared;
    }
    EXPECT_GE(compared, 2 * blocks - lost);
}

TEST(ImatrixTools, reports_what_is_not_covered) {
    const auto source = GgufFile::open(small_model());
    Imatrix imatrix;
    TypeMap types = {{"blk.0.ffn_up.weight", GGML_TYPE_Q4_K}, {"token_embd.weight", GGML_TYPE_Q4_K}};
    EXPECT_THAT(coverage_warning(imatrix, source, types), HasSubstr("1 tensors have no entry"));
    imatrix.entries["blk.0.ffn_up.weight"] = {{1.0f, 1.0f}, {3.0f, 4.0f}, 1};
    EXPECT_EQ(coverage_warning(imatrix, source, types), "");
    imatrix.entries["blk.0.ffn_up.weight"].counts[1] = 0.0f;
    EXPECT_THAT(coverage_warning(imatrix, source, types),
                AllOf(HasSubstr("1 of 2 matrices"), HasSubstr("blk.0.ffn_up.weight"), HasSubstr("llama-quantize")));
    EXPECT_THAT(coverage_warning(imatrix, source, types), HasSubstr("more text"));
    types["blk.0.ffn_up.weight"] = GGML_TYPE_F16;  // as in the source
    EXPECT_EQ(coverage_warning(imatrix, source, types), "");
}

TEST(ImatrixTools, asks_for_more_text_only_where_it_helps) {
    const testing::TemporaryFolder folder;
    const auto path = folder / "m.gguf";
    const auto further = "blk.1.ffn_up.weight", in_block = "blk.0.ffn_up.weight", head = "output.weight";
    testing::write_test_gguf(path,
                             {{in_block, GGML_TYPE_F16, {256, 4, 1, 1}},
                              {further, GGML_TYPE_F16, {256, 4, 1, 1}},
                              {head, GGML_TYPE_F16, {256, 4, 1, 1}}},
                             [](gguf_context* context) {
                                 gguf_set_val_u32(context, "llama.block_count", 2);
                                 gguf_set_val_u32(context, "llama.nextn_predict_layers", 1);
                             });
    const auto source = GgufFile::open(path);
    const auto warning = [&](const char* tensor) { return coverage_warning({}, source, {{tensor, GGML_TYPE_Q4_K}}); };
    EXPECT_THAT(warning(further), HasSubstr("(MTP) run on no text"));
    EXPECT_THAT(warning(head), HasSubstr("--process-output"));
    EXPECT_THAT(warning(in_block), HasSubstr("no text adds it"));
    for (const auto* tensor : {further, in_block, head})
        EXPECT_THAT(warning(tensor), ::testing::Not(HasSubstr("more text"))) << tensor;
}

}  // namespace
}  // namespace cerebellum
