#include "cerebellum/core/channel_scaling.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "cerebellum/core/error.h"

namespace cerebellum {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const ChannelScaling of_norm = {"norm", {"bias"}, {"q", "k"}, {1, -2}};
const ChannelScaling of_up = {"k", {}, {"down"}, {3}};

TEST(ChannelScaling, is_divided_out_where_channels_are_made_and_multiplied_in_where_they_are_read) {
    const auto by_tensor = scaling_by_tensor(std::vector{of_norm, of_up});
    ASSERT_EQ(by_tensor.size(), 5u);
    EXPECT_THAT(by_tensor.at("norm").outputs, ElementsAre(1, -2));
    EXPECT_THAT(by_tensor.at("norm").inputs, IsEmpty());
    EXPECT_THAT(by_tensor.at("bias").outputs, ElementsAre(1, -2));
    EXPECT_THAT(by_tensor.at("q").inputs, ElementsAre(1, -2));
    EXPECT_THAT(by_tensor.at("k").inputs, ElementsAre(1, -2));
    EXPECT_THAT(by_tensor.at("k").outputs, ElementsAre(3));
    EXPECT_THAT(by_tensor.at("down").inputs, ElementsAre(3));
}

TEST(ChannelScaling, scales_a_side_of_a_tensor_once) {
    try {
        scaling_by_tensor(std::vector{of_norm, ChannelScaling{"other", {}, {"q"}, {1, 1}}});
        FAIL() << "accepted";
    } catch (const Error& error) {
        EXPECT_THAT(error.what(), HasSubstr("q are scaled twice"));
    }
}

TEST(ChannelScaling, comes_back_from_json) {
    EXPECT_EQ(channel_scaling_from_json(to_json(of_norm)), of_norm);
    EXPECT_THROW(channel_scaling_from_json({{"producer", "norm"}}), nlohmann::json::exception);
}

}  // namespace
}  // namespace cerebellum
