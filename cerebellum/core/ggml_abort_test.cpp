#include "cerebellum/core/ggml_abort.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace cerebellum {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr auto assertion = "/src/llama-hparams.cpp:12: GGML_ASSERT(n_layer <= 512) failed\nwith a trace";

TEST(GgmlAbort, blames_the_file_that_is_read_the_device_or_ggml) {
    EXPECT_THAT(abort_message(assertion),
                AllOf(HasSubstr("ggml gave up: GGML_ASSERT(n_layer <= 512) failed;"), Not(HasSubstr("device")),
                      Not(HasSubstr("trace")), Not(HasSubstr("hparams"))));
    const std::string file = "odd\x1b.gguf";
    {
        const AbortBlame blame(file);
        EXPECT_THAT(abort_message(assertion), AllOf(HasSubstr("cannot use odd\\u001b.gguf"),
                                                    HasSubstr("n_layer <= 512"), Not(HasSubstr("device"))));
    }
    EXPECT_THAT(abort_message(assertion), Not(HasSubstr("odd")));
    note_device_use();
    EXPECT_THAT(abort_message("out of memory"),
                AllOf(HasSubstr("the device stopped working: out of memory"), HasSubstr("run the same command again")));
}

}  // namespace
}  // namespace cerebellum
