#include "cerebellum/llama/memory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/gguf/gguf_support_test.h"

namespace cerebellum {
namespace {

using testing::error_of;
using ::testing::HasSubstr;
using testing::small_model;
using testing::TemporaryFolder;

/// Bytes of keys and values of the embedded model, from its metadata: blocks x tokens x 2 x width.
std::uint64_t cache_bytes(const GgufFile& model, std::uint64_t tokens, double bytes_per_value) {
    const auto value = [&](const char* key) { return model.uint_value(model.architecture() + key).value(); };
    const auto width = value(".embedding_length") / value(".attention.head_count") * value(".attention.head_count_kv");
    return static_cast<std::uint64_t>(static_cast<double>(value(".block_count") * tokens * 2 * width) *
                                      bytes_per_value);
}

TEST(ServingMemory, counts_weights_and_cache_of_a_plain_transformer) {
    const auto model = GgufFile::open(small_model());
    std::uint64_t weights = 0;
    for (const auto& tensor : model.tensors()) weights += tensor.size_bytes;
    const auto f16 = serving_memory(small_model(), {.device = "CPU", .context = 512, .parallel = 1});
    EXPECT_NEAR(static_cast<double>(f16.device.model_bytes), static_cast<double>(weights),
                0.01 * static_cast<double>(weights));
    EXPECT_EQ(f16.device.context_bytes, cache_bytes(model, 512, 2.0));
    EXPECT_GT(f16.device.compute_bytes, 0U);
    EXPECT_EQ(f16.host.total(), 0U);
    const auto q8 =
        serving_memory(small_model(), {.device = "CPU", .context = 1024, .parallel = 2, .cache_type = GGML_TYPE_Q8_0});
    EXPECT_EQ(q8.device.context_bytes, cache_bytes(model, 1024, 34.0 / 32.0));
}

TEST(ServingMemory, does_not_look_at_weights) {
    const TemporaryFolder folder;
    const auto model = GgufFile::open(small_model());
    const auto header = read_file(small_model()).substr(0, model.data_offset());
    std::ofstream(folder / "holes.gguf", std::ios::binary) << header;
    std::filesystem::resize_file(folder / "holes.gguf", model.file_size());
    const ServingSetup setup{.device = "CPU", .context = 256, .parallel = 1};
    EXPECT_EQ(serving_memory(folder / "holes.gguf", setup).device.total(),
              serving_memory(small_model(), setup).device.total());
}

TEST(ServingMemory, says_what_is_wrong) {
    EXPECT_THAT(error_of([] { serving_memory(small_model(), {.device = "NOGPU7"}); }), HasSubstr("there are CPU"));
    EXPECT_THAT(error_of([] { serving_memory("nowhere.gguf", {.device = "CPU"}); }), HasSubstr("nowhere.gguf"));
}

}  // namespace
}  // namespace cerebellum
