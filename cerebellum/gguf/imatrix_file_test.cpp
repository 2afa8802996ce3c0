#include "cerebellum/gguf/imatrix_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <limits>
#include <random>

#include "cerebellum/gguf/gguf_support_test.h"

namespace cerebellum {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using testing::error_of;
using ::testing::HasSubstr;
using testing::have_referees;
using testing::quoted;
using testing::run_referee;
using testing::small_model;
using testing::TemporaryFolder;

Imatrix example() {
    Imatrix imatrix;
    imatrix.datasets = {"one.txt", "two.txt"};
    imatrix.chunk_count = 5;
    imatrix.chunk_size = 512;
    imatrix.entries["blk.0.attn_q.weight"] = {{1.0f, 2.0f, 3.0f, 4.5f}, {2.0f}, 4};
    imatrix.entries["blk.0.ffn_up_exps.weight"] = {{1.0f, 2.0f, 0.0f, 0.0f, 6.0f, 9.0f}, {1.0f, 0.0f, 3.0f}, 2};
    return imatrix;
}

TEST(ImatrixFile, comes_back_as_it_was_written) {
    const TemporaryFolder folder;
    const auto path = folder / "imatrix.gguf";
    write_imatrix(path, example());
    const auto imatrix = read_imatrix(path);
    EXPECT_EQ(imatrix.datasets, example().datasets);
    EXPECT_EQ(imatrix.chunk_count, 5u);
    EXPECT_EQ(imatrix.chunk_size, 512u);
    ASSERT_EQ(imatrix.entries.size(), 2u);
    for (const auto& [name, entry] : example().entries) {
        EXPECT_EQ(imatrix.entries.at(name).in_sum2, entry.in_sum2);
        EXPECT_EQ(imatrix.entries.at(name).counts, entry.counts);
        EXPECT_EQ(imatrix.entries.at(name).n_cols, entry.n_cols);
    }
}

TEST(ImatrixFile, weights_are_means_and_one_where_nothing_was_seen) {
    EXPECT_THAT(quantization_weights(example().entries.at("blk.0.attn_q.weight")),
                ElementsAre(0.5f, 1.0f, 1.5f, 2.25f));
    EXPECT_THAT(quantization_weights(example().entries.at("blk.0.ffn_up_exps.weight")),
                ElementsAre(1.0f, 2.0f, 1.0f, 1.0f, 2.0f, 3.0f));
}

TEST(ImatrixFile, gaps_get_equal_importance) {
    const auto entry_of = [](float counts, auto&& value) {
        ImatrixEntry entry;
        entry.n_cols = 64;
        entry.counts = {counts};
        for (int i = 0; i < 64; ++i) entry.in_sum2.push_back(value(i));
        return entry;
    };
    Imatrix imatrix;
    imatrix.entries["whole"] =
        entry_of(10, [](int i) { return i % 16 == 3 ? 1.0f : 0.0f; });  // something in each block
    imatrix.entries["gap"] = entry_of(10, [](int i) { return i >= 16 && i < 32 ? 0.0f : 2.0f; });
    imatrix.entries["nothing"] = entry_of(10, [](int) { return 0.0f; });
    imatrix.entries["unseen"] = entry_of(0, [](int) { return 0.0f; });
    const auto before = imatrix;
    EXPECT_THAT(fill_gaps(imatrix), ElementsAre("gap", "nothing"));
    EXPECT_EQ(imatrix.entries["whole"].in_sum2, before.entries.at("whole").in_sum2);
    EXPECT_EQ(imatrix.entries["unseen"].in_sum2, before.entries.at("unseen").in_sum2);
    const auto weights = quantization_weights(imatrix.entries["gap"]);
    for (int i = 0; i < 64; ++i)
        EXPECT_FLOAT_EQ(weights[static_cast<std::size_t>(i)], i >= 16 && i < 32 ? 0.00015f : 0.2f) << i;
    for (const float weight : quantization_weights(imatrix.entries["nothing"])) EXPECT_FLOAT_EQ(weight, 1.0f);
    EXPECT_THAT(describe_gaps({"gap", "nothing"}), HasSubstr("gap, nothing"));
    // Once is enough.
    EXPECT_TRUE(fill_gaps(imatrix).empty());
}

TEST(ImatrixFile, weights_of_a_tensor) {
    const Imatrix imatrix = example();
    TensorInfo tensor;
    tensor.name = "blk.0.attn_q.weight";
    tensor.shape = {4, 7, 1, 1};
    EXPECT_EQ(quantization_weights(&imatrix, tensor).size(), 4u);
    EXPECT_TRUE(quantization_weights(nullptr, tensor).empty());
    tensor.shape = {8, 7, 1, 1};
    EXPECT_THAT(error_of([&] { quantization_weights(&imatrix, tensor); }), HasSubstr("blk.0.attn_q.weight"));
    tensor.name = "blk.9.attn_q.weight";
    EXPECT_TRUE(quantization_weights(&imatrix, tensor).empty());
}

TEST(ImatrixFile, says_what_is_wrong) {
    const TemporaryFolder folder;
    const auto path = folder / "imatrix.dat";
    EXPECT_THAT(error_of([&] { read_imatrix(path); }), HasSubstr("no such file"));
    EXPECT_THAT(error_of([&] { read_imatrix(small_model()); }), HasSubstr("may be a model"));
    write_file_atomically(path, std::string("\x02\0\0\0\x13\0\0\0blk.0.attn_q.weight", 27));
    EXPECT_THAT(error_of([&] { read_imatrix(path); }), AllOf(HasSubstr("imatrix.dat"), HasSubstr("neither")));
    Imatrix bad = example();
    bad.entries["blk.0.attn_q.weight"].in_sum2[1] = std::numeric_limits<float>::quiet_NaN();
    write_imatrix(path, bad);
    EXPECT_THAT(error_of([&] { read_imatrix(path); }), HasSubstr("blk.0.attn_q.weight.in_sum2"));
    bad.entries["blk.0.attn_q.weight"].counts.clear();
    EXPECT_THAT(error_of([&] { write_imatrix(path, bad); }), HasSubstr("blk.0.attn_q.weight"));
    bad = example();
    bad.entries[std::string(60, 'x')] = {{1.0f}, {1.0f}, 1};
    EXPECT_THAT(error_of([&] { write_imatrix(path, bad); }), HasSubstr("63"));
}

TEST(ImatrixFile, comes_back_from_the_older_format) {
    const TemporaryFolder folder;
    const auto path = folder / "imatrix.dat";
    Imatrix imatrix = example();
    imatrix.entries["blk.1.unseen.weight"] = {{0.0f, 0.0f}, {0.0f}, 2};
    write_legacy_imatrix(path, imatrix);
    const auto legacy = read_imatrix(path);
    EXPECT_EQ(legacy.chunk_count, 5u);
    EXPECT_EQ(legacy.chunk_size, 0u);
    EXPECT_THAT(legacy.datasets, ElementsAre("two.txt"));
    ASSERT_EQ(legacy.entries.size(), 2u);
    // The weights for quantizing are what the format is about.
    for (const auto& [name, entry] : legacy.entries)
        EXPECT_EQ(quantization_weights(entry), quantization_weights(imatrix.entries.at(name))) << name;
}

TEST(ImatrixFile, survives_any_damage_to_the_older_format) {
    const TemporaryFolder folder;
    const auto path = folder / "imatrix.dat";
    write_legacy_imatrix(path, example());
    const std::string good = read_file(path);
    std::mt19937 random(3);
    int refused = 0;
    for (int trial = 0; trial < 400; ++trial) {
        std::string bytes = good;
        bytes[random() % bytes.size()] = static_cast<char>(random());
        if (random() % 2 == 0) bytes.resize(random() % bytes.size());
        std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
        try {
            read_imatrix(path);
        } catch (const Error&) {
            ++refused;
        }
    }
    EXPECT_GT(refused, 100);
}

TEST(ImatrixFile, is_llama_imatrix_s_older_format_byte_for_byte) {
    if (!have_referees()) GTEST_SKIP() << "llama.cpp's tools are not there (CEREBELLUM_REFEREE_BIN)";
    const TemporaryFolder folder;
    write_imatrix(folder / "imatrix.gguf", example());
    // It believes that the file is of chunks as long as its own context.
    ASSERT_TRUE(run_referee("llama-imatrix",
                            "-m unused.gguf --in-file imatrix.gguf -c 512 -b 512 --output-format dat -o theirs.dat",
                            folder.path()));
    Imatrix imatrix = example();
    imatrix.chunk_count = 0;  // llama-imatrix counts whole chunks of what it has read
    write_legacy_imatrix(folder / "ours.dat", imatrix);
    EXPECT_TRUE(read_file(folder / "ours.dat") == read_file(folder / "theirs.dat"));
}

TEST(ImatrixFile, is_llama_imatrix_s_own_format_byte_for_byte) {
    if (!have_referees()) GTEST_SKIP() << "llama.cpp's tools are not there (CEREBELLUM_REFEREE_BIN)";
    const TemporaryFolder folder;
    std::string text;
    for (int i = 0; i < 200; ++i) text += "The river runs through the valley and the town. ";
    write_file_atomically(folder / "text.txt", text);
    ASSERT_TRUE(run_referee("llama-imatrix",
                            "-m " + quoted(small_model()) + " -f text.txt -o theirs.gguf -c 128 --chunks 3 -t 2 -ngl 0",
                            folder.path()));
    const auto imatrix = read_imatrix(folder / "theirs.gguf");
    EXPECT_EQ(imatrix.chunk_count, 3u);
    EXPECT_EQ(imatrix.chunk_size, 128u);
    EXPECT_THAT(imatrix.datasets, ElementsAre("text.txt"));
    const auto& entry = imatrix.entries.at("blk.2.ffn_down.weight");
    EXPECT_EQ(entry.n_cols, 768);
    EXPECT_THAT(entry.counts, ElementsAre(384.0f));  // tokens
    write_imatrix(folder / "ours.gguf", imatrix);
    EXPECT_TRUE(read_file(folder / "ours.gguf") == read_file(folder / "theirs.gguf"));
    EXPECT_TRUE(run_referee("llama-quantize", "--imatrix ours.gguf " + quoted(small_model()) + " out.gguf IQ2_XXS 2",
                            folder.path()));
}

}  // namespace
}  // namespace cerebellum
