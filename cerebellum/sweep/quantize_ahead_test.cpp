#include "cerebellum/sweep/quantize_ahead.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <stdexcept>

namespace cerebellum {
namespace {

Quantized of_size(std::size_t bytes, double seconds) {
    return {std::vector<std::byte>(bytes), seconds};
}

TEST(QuantizeAhead, gives_everything_in_order) {
    for (const bool in_background : {false, true}) {
        QuantizeAhead ahead(
            100, [](std::size_t i) { return of_size(10, static_cast<double>(i)); }, in_background, 35);
        for (int i = 0; i < 100; ++i) EXPECT_EQ(ahead.take().seconds, i);
    }
}

TEST(QuantizeAhead, is_no_further_ahead_than_the_limit_allows) {
    std::atomic<std::size_t> made = 0;
    QuantizeAhead ahead(
        50,
        [&](std::size_t) {
            ++made;
            return of_size(10, 0.0);
        },
        true, 35);
    for (std::size_t taken = 0; taken < 50; ++taken) {
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
        EXPECT_LE(made, taken + 4) << "ready: 4 of 10 bytes, where 3 are below the limit";
        ahead.take();
    }
}

TEST(QuantizeAhead, makes_one_even_if_that_is_over_the_limit) {
    QuantizeAhead ahead(
        3, [](std::size_t) { return of_size(100, 1.0); }, true, 1);
    for (int i = 0; i < 3; ++i) EXPECT_EQ(ahead.take().bytes.size(), 100U);
}

TEST(QuantizeAhead, hands_a_failure_on_in_its_place_and_goes_on) {
    for (const bool in_background : {false, true}) {
        QuantizeAhead ahead(
            5,
            [](std::size_t i) {
                if (i == 2) throw std::runtime_error("no");
                return of_size(1, static_cast<double>(i));
            },
            in_background, 100);
        EXPECT_EQ(ahead.take().seconds, 0.0);
        EXPECT_EQ(ahead.take().seconds, 1.0);
        EXPECT_THROW(ahead.take(), std::runtime_error);
        EXPECT_EQ(ahead.take().seconds, 3.0);
        EXPECT_EQ(ahead.take().seconds, 4.0);
    }
}

TEST(QuantizeAhead, ends_before_all_is_taken) {
    std::atomic<int> made = 0;
    {
        QuantizeAhead ahead(
            1000,
            [&](std::size_t) {
                ++made;
                return of_size(1, 0.0);
            },
            true, 3);
        ahead.take();
    }
    EXPECT_LT(made, 1000);
}

}  // namespace
}  // namespace cerebellum
