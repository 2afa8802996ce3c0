#include "cerebellum/core/visible_text.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

namespace cerebellum {
namespace {

TEST(VisibleText, leaves_what_can_be_read) {
    for (const auto* text : {"", "blk.0.ffn_down.weight", "C:\\a\\b", "Grüße, 世界 … — 🙂", "é"})
        EXPECT_EQ(visible(text), text);
}

TEST(VisibleText, shows_what_a_terminal_would_obey) {
    EXPECT_EQ(visible("a\033]0;owned\007b"), "a\\u001b]0;owned\\u0007b");
    EXPECT_EQ(visible("a\r\n\tb"), "a\\r\\n\\tb");
    EXPECT_EQ(visible("\177"), "\\u007f");
    EXPECT_EQ(visible("\xC2\x9B"
                      "31m"),
              "\\u009b31m");  // CSI in one character
    EXPECT_EQ(visible("\x9B"
                      "31m"),
              "\\x9b31m");  // and in one byte
    EXPECT_EQ(visible("txt.\xE2\x80\xAE"
                      "exe"),
              "txt.\\u202eexe");  // right-to-left override
    EXPECT_EQ(visible("\xE2\x81\xA6\xE2\x80\x8F\xD8\x9C"), "\\u2066\\u200f\\u061c");
    EXPECT_EQ(visible("\xE2\x80\xA8"), "\\u2028");
    EXPECT_EQ(visible("\xF3\xA0\x81\x81"), "\\udb40\\udc41");  // a tag: text that nobody sees
    EXPECT_EQ(visible(std::string_view("a\0b", 3)), "a\\u0000b");
    EXPECT_EQ(visible_lines("a\n\033b\r\n"), "a\n\\u001bb\\r\n");
}

TEST(VisibleText, tells_utf_8_from_other_bytes) {
    for (const std::string text : {"", "plain", "\x1b", "ä€😀"}) EXPECT_TRUE(is_utf8(text)) << text;
    for (const std::string text : {"\xff", "a\xc3", "\xc0\x80", "\xed\xa0\x80", "ok \x80"})
        EXPECT_FALSE(is_utf8(text)) << visible(text);
}

TEST(VisibleText, shows_what_is_no_utf_8) {
    EXPECT_EQ(visible("a\xFF"
                      "b"),
              "a\\xffb");
    EXPECT_EQ(visible("\xC0\xAF"), "\\xc0\\xaf");           // overlong
    EXPECT_EQ(visible("\xED\xA0\x80"), "\\xed\\xa0\\x80");  // a surrogate
    EXPECT_EQ(visible("\xF4\x90\x80\x80"), "\\xf4\\x90\\x80\\x80");
    EXPECT_EQ(visible("\xE4\xB8"), "\\xe4\\xb8");  // cut
}

TEST(VisibleText, of_json_is_the_same_json) {
    const nlohmann::json value = {{"a\xC2\x9B", "b\177\xE2\x80\xAE\n\033\xF3\xA0\x81\x81 世"},
                                  {"c", {1, 2.5, nullptr}}};
    for (const int indent : {-1, 2}) {
        const auto text = visible_lines(value.dump(indent));
        EXPECT_EQ(nlohmann::json::parse(text), value);
        EXPECT_EQ(text.find("\xE2\x80\xAE"), std::string::npos);
        EXPECT_EQ(text.find('\177'), std::string::npos);
    }
}

TEST(VisibleText, is_cut_between_characters) {
    EXPECT_EQ(cut_utf8("aé", 3), "aé");
    EXPECT_EQ(cut_utf8("aé", 2), "a");
    EXPECT_EQ(cut_utf8("世界", 5), "世");
    EXPECT_EQ(cut_utf8("\x80\x80\x80", 2), "");
}

TEST(VisibleText, makes_harmless_names_of_files) {
    EXPECT_EQ(file_name_from("Llama-3.1-8B_q4.K"), "Llama-3.1-8B_q4.K");
    EXPECT_EQ(file_name_from("模型-7B"), "模型-7B");
    EXPECT_EQ(file_name_from("../../etc/x"), "_._.._etc_x");
    EXPECT_EQ(file_name_from(".."), "_.");
    EXPECT_EQ(file_name_from(""), "_");
    EXPECT_EQ(file_name_from("-rf"), "_rf");
    EXPECT_EQ(file_name_from("a\033[2J\nb $(id);'\"`\\"), "a__2J_b___id______");
    EXPECT_EQ(file_name_from("a\xE2\x80\xAE\xFF"), "a__");
    EXPECT_LE(file_name_from(std::string(300, 'x') + "é").size(), 100U);
}

}  // namespace
}  // namespace cerebellum
