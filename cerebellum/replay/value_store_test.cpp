#include "cerebellum/replay/value_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <csignal>

#include "cerebellum/core/error.h"
#include "cerebellum/gguf/gguf_support_test.h"
#include "cerebellum/replay/device.h"

namespace cerebellum {
namespace {

std::vector<std::byte> bytes_of(std::size_t size, int seed) {
    std::vector<std::byte> bytes(size);
    for (std::size_t i = 0; i < size; ++i)
        bytes[i] = static_cast<std::byte>((i * 7 + static_cast<std::size_t>(seed)) % 251);
    return bytes;
}

TEST(ValueStore, gives_back_what_was_kept_wherever_it_lies) {
    const testing::TemporaryFolder folder;
    ValueStore store(ggml_backend_cpu_buffer_type());
    // Host memory is the device's memory here, so there are two places: 3,000 bytes of memory, then the file.
    store.set_limits({3000, 5000, folder.path()});
    std::vector<Value> values;
    for (int i = 0; i < 6; ++i) values.push_back(store.keep(bytes_of(1000, i)));
    EXPECT_EQ(store.usage().device_bytes, 3000U);
    EXPECT_EQ(store.usage().scratch_bytes, 3000U);
    for (int i = 0; i < 6; ++i) EXPECT_EQ(read(*values[static_cast<std::size_t>(i)]), bytes_of(1000, i)) << i;

    const auto context = make_tensor_context(1);
    auto* tensor = ggml_new_tensor_1d(context.get(), GGML_TYPE_I8, 1000);
    Device device(1);
    const auto buffer = device.allocate(context.get());
    for (std::size_t i = 0; i < values.size(); ++i) {
        load(*values[i], tensor);
        EXPECT_EQ(read(*store.keep(tensor)), bytes_of(1000, static_cast<int>(i)));
    }
    EXPECT_TRUE(std::filesystem::is_empty(folder.path())) << "the scratch file must have no name";
}

TEST(ValueStore, uses_memory_of_released_values_again) {
    ValueStore store(ggml_backend_cpu_buffer_type());
    for (int i = 0; i < 50; ++i) {
        const auto a = store.keep(bytes_of(4096, i));
        const auto b = store.keep(bytes_of(4096, i + 1));
        EXPECT_EQ(read(*a), bytes_of(4096, i));
    }
    EXPECT_EQ(store.usage().device_bytes, 2U * 4096U);
    // What is ready for reuse in one size makes way for another.
    store.set_limits({8192, 8192, {}});
    const auto other = store.keep(bytes_of(8000, 3));
    EXPECT_EQ(store.usage().device_bytes, 8000U);
    EXPECT_EQ(store.usage().scratch_bytes, 0U);
}

TEST(ValueStore, values_may_outlive_the_store) {
    Value value;
    {
        ValueStore store(ggml_backend_cpu_buffer_type());
        value = store.keep(bytes_of(100, 1));
    }
    EXPECT_EQ(read(*value), bytes_of(100, 1));
}

TEST(ValueStore, a_scratch_file_that_cannot_grow_is_an_error_that_says_what_to_do) {
    const testing::TemporaryFolder folder;
    ValueStore store(ggml_backend_cpu_buffer_type());
    store.set_limits({0, 0, folder.path()});
    const auto first = store.keep(bytes_of(1000, 1));
    rlimit before{};
    getrlimit(RLIMIT_FSIZE, &before);
    const auto handler = std::signal(SIGXFSZ, SIG_IGN);
    const rlimit small{1500, before.rlim_max};
    setrlimit(RLIMIT_FSIZE, &small);
    std::string message;
    try {
        store.keep(bytes_of(1000, 2));
    } catch (const Error& error) {
        message = error.what();
    }
    setrlimit(RLIMIT_FSIZE, &before);
    std::signal(SIGXFSZ, handler);
    EXPECT_THAT(message, ::testing::HasSubstr(folder.path().string()));
    EXPECT_THAT(message, ::testing::HasSubstr("--scratch"));
    EXPECT_EQ(read(*first), bytes_of(1000, 1));

    store.set_limits({0, 0, folder / "nowhere"});
    ValueStore other(ggml_backend_cpu_buffer_type());
    other.set_limits({0, 0, folder / "nowhere"});
    EXPECT_THROW(other.keep(bytes_of(10, 1)), Error);
}

}  // namespace
}  // namespace cerebellum
