#include "cerebellum/llama/presets.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "cerebellum/core/quant_type.h"
#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/gguf/gguf_support_test.h"
#include "cerebellum/gguf/imatrix_file.h"
#include "cerebellum/llama/log.h"

namespace cerebellum {
namespace {

using testing::small_model;
using testing::TemporaryFolder;

/// The same importance for every column.
void write_flat_imatrix(const std::filesystem::path& path) {
    Imatrix imatrix;
    imatrix.datasets = {"flat"};
    imatrix.chunk_count = imatrix.chunk_size = 1;
    const auto source = GgufFile::open(small_model());
    for (const auto& tensor : source.tensors()) {
        if (tensor.n_dims < 2 || tensor.name == "token_embd.weight") continue;
        ImatrixEntry entry;
        entry.n_cols = tensor.row_length();
        entry.counts = {1.0F};
        entry.in_sum2.assign(static_cast<std::size_t>(entry.n_cols), 1.0F);
        imatrix.entries[tensor.name] = entry;
    }
    write_imatrix(path, imatrix);
}

TypeMap types_of(const std::filesystem::path& path) {
    TypeMap types;
    const auto file = GgufFile::open(path);
    for (const auto& tensor : file.tensors()) types[tensor.name] = tensor.type;
    return types;
}

TEST(DryRun, names_the_types_that_llama_quantize_really_gives) {
    if (!testing::have_referees()) GTEST_SKIP() << "llama.cpp's tools are not there (CEREBELLUM_REFEREE_BIN)";
    silence_llama_log();
    const TemporaryFolder folder;
    write_flat_imatrix(folder / "imatrix.gguf");
    for (const bool has_imatrix : {false, true})
        for (const auto* name : {"Q4_K_M", "Q2_K", "Q4_0", "Q3_K_S"}) {
            SCOPED_TRACE(fmt::format("{}, {} importance matrix", name, has_imatrix ? "with" : "without"));
            const auto out = folder / "out.gguf";
            const auto arguments = fmt::format("{} {} {} {} 1", has_imatrix ? "--imatrix imatrix.gguf" : "",
                                               testing::quoted(small_model()), testing::quoted(out), name);
            ASSERT_TRUE(testing::run_referee("llama-quantize", arguments, folder.path()));
            const auto outcome =
                dry_run(small_model(), {.file_type = find_preset(name)->file_type, .has_imatrix = has_imatrix});
            EXPECT_EQ(outcome.types, types_of(out));
            std::vector<std::string> order;
            const auto built = GgufFile::open(out);
            for (const auto& tensor : built.tensors()) order.push_back(tensor.name);
            EXPECT_EQ(outcome.order, order);
        }
}

TEST(DryRun, of_a_pure_file_gives_one_type_and_the_embedding_its_own) {
    silence_llama_log();
    const auto outcome =
        dry_run(small_model(),
                {.file_type = *file_type_of(GGML_TYPE_Q4_0), .pure = true, .token_embedding_type = GGML_TYPE_Q8_0});
    const auto quantizable = quantizable_tensors(small_model());
    EXPECT_EQ(quantizable.size(), 44U);
    for (const auto& name : quantizable) {
        const auto type = outcome.types.at(name);
        EXPECT_EQ(type, name == "token_embd.weight" ? GGML_TYPE_Q8_0 : GGML_TYPE_Q4_0) << name;
    }
    EXPECT_EQ(outcome.types.at("output_norm.weight"), GGML_TYPE_F32);
}

TEST(DryRun, says_what_is_wrong_with_a_file) {
    const TemporaryFolder folder;
    EXPECT_THAT(
        testing::error_of([&] { dry_run(folder / "nowhere.gguf", {.file_type = find_preset("Q4_0")->file_type}); }),
        ::testing::HasSubstr("nowhere.gguf"));
}

TEST(Presets, have_names_and_numbers_of_their_own) {
    std::set<std::string> names;
    std::set<int> numbers;
    for (const auto& preset : stock_presets()) {
        EXPECT_TRUE(names.insert(preset.name).second) << preset.name;
        EXPECT_TRUE(numbers.insert(preset.file_type).second) << preset.name;
    }
    for (const auto type : default_types()) EXPECT_TRUE(file_type_of(type).has_value()) << type_name(type);
    EXPECT_FALSE(find_preset("Q9_K").has_value());
}

}  // namespace
}  // namespace cerebellum
