#include "cerebellum/core/name_pattern.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <string>

#include "cerebellum/core/error.h"

namespace cerebellum {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

TEST(NamePattern, is_what_llama_quantize_takes_it_for) {
    const std::string name = "blk.12.ffn_up_exps.weight";
    for (const char* pattern :
         {"ffn_up", R"(^blk\.12\.ffn_up_exps\.weight$)", R"(blk\.(1[0-9]|2[0-9])\.ffn_(up|gate)_(exps|shexp)\.weight)",
          R"(blk\.[0-9]+\..*weight)", R"(blk\.\d{1,3}\.ffn_up(_exps)?\.weight)", "(?:ffn|attn)_up", "[^0-9]lk[.)*+?]1"})
        EXPECT_TRUE(std::regex_search(name, name_pattern(pattern))) << pattern;
    EXPECT_FALSE(std::regex_search(name, name_pattern("attn_.*")));
}

TEST(NamePattern, that_could_take_for_ever_or_overflow_is_refused) {
    for (const std::string pattern : {R"((a)\66666666666666666666)", "(a*)*b", "(a|a)+$", "((a|b))*c", "(a+){9}",
                                      ".*.*.*.*x", "a?a?a?a?a?a", "(x(?:y+))*"})
        EXPECT_THAT([&] { name_pattern(pattern); }, ThrowsMessage<Error>(HasSubstr("is not taken"))) << pattern;
    EXPECT_THAT([] { name_pattern(std::string(1001, 'a')); }, ThrowsMessage<Error>(HasSubstr("1,000")));
    for (const char* pattern : {"(", "[", "*a", "a{2,1}", ")"})
        EXPECT_THAT([&] { name_pattern(pattern); }, ThrowsMessage<Error>(HasSubstr("no regular expression")))
            << pattern;
}

TEST(NamePattern, ends_in_time_on_the_longest_name) {
    const std::string name(63, 'a');
    const auto begun = std::chrono::steady_clock::now();
    EXPECT_FALSE(std::regex_search(name, name_pattern("a*a*a*b")));
    EXPECT_LT(std::chrono::steady_clock::now() - begun, std::chrono::seconds(5));
}

}  // namespace
}  // namespace cerebellum
