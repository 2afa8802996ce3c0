#include "cerebellum/llama/runtime_memory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/gguf/gguf_support_test.h"

namespace cerebellum {
namespace {

using testing::small_model;

// The embedded model: 6 blocks, 2 KV heads of 64.
constexpr std::uint64_t values_per_token = 6 * 2 * 64 * 2;

std::uint64_t cache_of(int context, int parallel, ggml_type type) {
    return runtime_memory(small_model(), {context, parallel, type, 0}).front().cache;
}

TEST(RuntimeMemory, counts_the_cache_exactly) {
    EXPECT_EQ(cache_of(1024, 1, GGML_TYPE_F16), 1024 * values_per_token * 2);
    EXPECT_EQ(cache_of(4096, 4, GGML_TYPE_F16), 4096 * values_per_token * 2);
    EXPECT_EQ(cache_of(1024, 1, GGML_TYPE_Q8_0), 1024 * values_per_token / 32 * 34);
}

TEST(RuntimeMemory, counts_the_weights_without_loading_them) {
    const auto file = GgufFile::open(small_model());
    const auto memory = runtime_memory(small_model(), {});
    ASSERT_EQ(memory.size(), 1U);  // no GPU layers, so all of it is host memory
    EXPECT_EQ(memory[0].device, "host");
    const auto data = file.file_size() - file.data_offset();
    EXPECT_GE(memory[0].weights, data * 99 / 100);
    EXPECT_LE(memory[0].weights, data * 11 / 10);
    EXPECT_GT(memory[0].compute, 0U);
}

TEST(RuntimeMemory, finds_the_largest_context_that_fits) {
    const RuntimeShape shape{0, 1, GGML_TYPE_F16, 0};
    const auto bytes = [&](int context) {
        auto at = shape;
        at.context = context;
        return limited_bytes(runtime_memory(small_model(), at));
    };
    EXPECT_EQ(largest_context(small_model(), shape, bytes(2048), 8192), 2048);
    EXPECT_EQ(largest_context(small_model(), shape, bytes(2048) - 1, 8192), 2048 - 256);
    EXPECT_EQ(largest_context(small_model(), shape, bytes(8192) * 2, 8192), 8192);
    EXPECT_EQ(largest_context(small_model(), shape, 1000, 8192), 0);
}

TEST(RuntimeMemory, says_why_it_cannot_be) {
    EXPECT_THAT(testing::error_of([] { runtime_memory("nowhere.gguf", {}); }), ::testing::HasSubstr("nowhere.gguf"));
}

}  // namespace
}  // namespace cerebellum
