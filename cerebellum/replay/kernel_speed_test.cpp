#include "cerebellum/replay/kernel_speed.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cerebellum/core/error.h"

namespace cerebellum {
namespace {

TEST(KernelSpeed, types_slower_than_q8_0_are_not_fast) {
    const KernelSpeed speeds[] = {{GGML_TYPE_Q8_0, true, 1.0},
                                  {GGML_TYPE_Q4_K, true, 0.6},
                                  {GGML_TYPE_Q6_K, true, 1.05},
                                  {GGML_TYPE_IQ1_S, true, 1.3},
                                  {GGML_TYPE_IQ2_S, false, 0.0}};
    EXPECT_THAT(fast_types(speeds), ::testing::ElementsAre(GGML_TYPE_Q8_0, GGML_TYPE_Q4_K, GGML_TYPE_Q6_K));
}

TEST(KernelSpeed, the_cpu_multiplies_every_type_that_we_build) {
    const ggml_type types[] = {GGML_TYPE_Q8_0, GGML_TYPE_Q4_K, GGML_TYPE_IQ2_XXS};
    for (const auto& speed : measure_kernels("CPU", 1, types)) {
        EXPECT_TRUE(speed.supported) << ggml_type_name(speed.type);
        EXPECT_GT(speed.seconds, 0.0);
        EXPECT_LT(speed.seconds, 10.0);
    }
    EXPECT_THROW(measure_kernels("NOGPU7", 1, types), UsageError);
}

}  // namespace
}  // namespace cerebellum
