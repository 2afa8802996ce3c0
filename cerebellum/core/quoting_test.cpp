#include "cerebellum/core/quoting.h"

#include <gtest/gtest.h>

#include <array>
#include <cstdio>
#include <memory>

namespace cerebellum {
namespace {

/// What a shell makes of a word.
std::string as_shell_reads(const std::string& word) {
    const auto command = "printf %s " + word;
    const std::unique_ptr<FILE, int (*)(FILE*)> pipe(::popen(command.c_str(), "r"), &::pclose);
    std::string text;
    std::array<char, 256> buffer{};
    while (const auto got = std::fread(buffer.data(), 1, buffer.size(), pipe.get())) text.append(buffer.data(), got);
    return text;
}

TEST(Quoting, a_shell_reads_every_word_as_it_is) {
    for (const std::string word : {"plain.gguf", "my model.gguf", "it's", "$HOME", "a;b", "~", "#x", "a\nb", "{a,b}",
                                   "`x`", "\"", "\\", "!", "*", "a&b", "ä"})
        EXPECT_EQ(as_shell_reads(shell_word(word)), word);
    EXPECT_EQ(shell_word("plain-1.gguf"), "plain-1.gguf");
    EXPECT_EQ(shell_word(""), "''");
    EXPECT_EQ(shell_path("-x.gguf"), "./-x.gguf");
    EXPECT_EQ(shell_path("a b"), "'a b'");
}

TEST(Quoting, links_hold_nothing_that_ends_or_changes_them) {
    EXPECT_EQ(percent_encoded("a/b-c_d.~x"), "a/b-c_d.~x");
    EXPECT_EQ(percent_encoded("50% of (a) b#c?d"), "50%25%20of%20%28a%29%20b%23c%3Fd");
    EXPECT_EQ(percent_encoded("ä:"), "%C3%A4%3A");
}

}  // namespace
}  // namespace cerebellum
