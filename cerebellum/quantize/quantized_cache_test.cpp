#include "cerebellum/quantize/quantized_cache.h"

#include <gtest/gtest.h>

#include <string>

#include "cerebellum/gguf/gguf_support_test.h"

namespace cerebellum {
namespace {

std::vector<std::byte> bytes_of(int i) {
    return std::vector<std::byte>(100, static_cast<std::byte>(i));
}

class Cache : public ::testing::Test {
  protected:
    QuantizedCache make(std::uint64_t memory, std::uint64_t disk) {
        return {{memory, disk, folder_.path()}, [this](std::string_view message) { warnings_.emplace_back(message); }};
    }
    testing::TemporaryFolder folder_;
    std::vector<std::string> warnings_;
};

TEST_F(Cache, gives_back_what_was_put_from_memory_and_from_disk) {
    auto cache = make(250, 10000);
    for (int i = 0; i < 20; ++i) cache.put("key " + std::to_string(i), bytes_of(i));
    EXPECT_LE(cache.usage().memory_bytes, 250U);
    EXPECT_GE(cache.usage().disk_bytes, 1800U);
    for (int round = 0; round < 2; ++round)
        for (int i = 0; i < 20; ++i) {
            const auto found = cache.find("key " + std::to_string(i));
            ASSERT_TRUE(found) << i;
            EXPECT_EQ(*found, bytes_of(i));
        }
    EXPECT_EQ(cache.usage().missed, 0U);
    EXPECT_LE(cache.usage().disk_bytes, 2000U) << "what lies on disk already was written again";
    EXPECT_FALSE(cache.find("another"));
    EXPECT_TRUE(warnings_.empty());
}

TEST_F(Cache, forgets_what_has_room_in_neither_the_longest_unused_first) {
    auto cache = make(250, 0);
    for (int i = 0; i < 3; ++i) cache.put(std::to_string(i), bytes_of(i));
    EXPECT_FALSE(cache.find("0"));
    EXPECT_TRUE(cache.find("1"));
    cache.put("3", bytes_of(3));
    EXPECT_TRUE(cache.find("1")) << "it was used after 2";
    EXPECT_FALSE(cache.find("2"));
}

TEST_F(Cache, what_somebody_holds_stays_valid) {
    auto cache = make(100, 0);
    const auto held = cache.put("0", bytes_of(0));
    for (int i = 1; i < 5; ++i) cache.put(std::to_string(i), bytes_of(i));
    EXPECT_EQ(*held, bytes_of(0));
}

TEST_F(Cache, a_disk_that_cannot_be_written_is_warned_of_once_and_ends_nothing) {
    QuantizedCache cache({150, 10000, folder_.path() / "missing"},
                         [this](std::string_view message) { warnings_.emplace_back(message); });
    for (int i = 0; i < 10; ++i) cache.put(std::to_string(i), bytes_of(i));
    EXPECT_TRUE(cache.find("9"));
    EXPECT_FALSE(cache.find("0"));
    ASSERT_EQ(warnings_.size(), 1U);
    EXPECT_NE(warnings_[0].find("missing"), std::string::npos) << warnings_[0];
}

}  // namespace
}  // namespace cerebellum
