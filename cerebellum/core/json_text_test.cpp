#include "cerebellum/core/json_text.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cerebellum/core/error.h"

namespace cerebellum {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::ThrowsMessage;

std::string nested(int depth) {
    return std::string(static_cast<std::size_t>(depth), '[') + std::string(static_cast<std::size_t>(depth), ']');
}

TEST(JsonText, is_read_up_to_its_limits) {
    EXPECT_EQ(parse_json(R"({"a": [1, "]]]["]})", "x")["a"][1], "]]][");
    EXPECT_EQ(parse_json(nested(200), "x").size(), 1U);
    EXPECT_THAT([] { parse_json(nested(201), "some.json:7"); },
                ThrowsMessage<Error>(HasSubstr("some.json:7: its JSON is nested more than 200 deep")));
    EXPECT_THAT([] { parse_json("[1, 2]", "x", {.bytes = 5}); }, ThrowsMessage<Error>(HasSubstr("longer than")));
    EXPECT_FALSE(try_parse_json("[1, 2]", {.bytes = 5}));
    EXPECT_TRUE(try_parse_json("[1, 2]", {.bytes = 6}));
    // Brackets in strings, and behind escaped quotes, are none.
    EXPECT_TRUE(try_parse_json("\"" + nested(300) + "\""));
    EXPECT_TRUE(try_parse_json("\"\\\"" + nested(300) + "\\\\\""));
    EXPECT_FALSE(try_parse_json("[\"\\\\\"," + nested(200) + "]"));
}

TEST(JsonText, of_hundreds_of_thousands_of_brackets_is_refused) {
    for (const auto* piece : {"[", "{\"a\":", "[{\"a\":"}) {
        std::string text;
        for (int i = 0; i < 200'000; ++i) text += piece;
        EXPECT_FALSE(try_parse_json(text));
        EXPECT_THAT([&] { parse_json(text, "x"); }, ThrowsMessage<Error>(HasSubstr("200 deep")));
    }
    EXPECT_FALSE(try_parse_json(nested(200'000)));
}

TEST(JsonText, of_cbor_is_read_within_limits_too) {
    const auto packed = [](const nlohmann::json& value) {
        const auto bytes = nlohmann::json::to_cbor(value);
        return std::string(bytes.begin(), bytes.end());
    };
    const nlohmann::json value = {{"a", {1, -2, 2.5, 1e300, true, nullptr, "text", std::string(300, 'x')}},
                                  {"bytes", nlohmann::json::binary({1, 2, 3})},
                                  {"many", std::vector<int>(70'000, 1'000'000)},
                                  {"empty", {nlohmann::json::array(), nlohmann::json::object()}}};
    EXPECT_EQ(parse_cbor(packed(value), "x"), value);
    EXPECT_EQ(parse_cbor(packed(nlohmann::json::parse(nested(200))), "x"), nlohmann::json::parse(nested(200)));
    EXPECT_THAT([&] { parse_cbor(packed(nlohmann::json::parse(nested(201))), "the text in a.db"); },
                ThrowsMessage<Error>(HasSubstr("the text in a.db: its CBOR is nested more than 200 deep")));
    // Cut anywhere, or with more behind it.
    const auto small = packed({{"a", {1, 1000, "text", 2.5}}});
    for (std::size_t size = 0; size < small.size(); ++size)
        EXPECT_THROW(parse_cbor(small.substr(0, size), "x"), Error) << size;
    EXPECT_THROW(parse_cbor(small + small, "x"), Error);
}

TEST(JsonText, of_cbor_that_nests_without_end_is_refused) {
    constexpr std::size_t deep = 200'000;
    const std::string one_item = "\x81",
                      map_of_one =
                          "\xa1\x61"
                          "a",
                      tag = "\xc1", open_list = "\x9f", open_text = "\x7f", open_bytes = "\x5f",
                      huge = "\x9b\xff\xff\xff\xff\xff\xff\xff\xff";
    for (const auto& piece : {one_item, map_of_one, tag, open_list, open_text, open_bytes, huge}) {
        std::string bytes;
        for (std::size_t i = 0; i < deep; ++i) bytes += piece;
        EXPECT_THROW(parse_cbor(bytes, "x"), Error);
        EXPECT_THROW(parse_cbor(bytes + '\0', "x"), Error);
    }
    EXPECT_THAT([&] { parse_cbor(std::string(deep, '\x81') + '\0', "x"); },
                ThrowsMessage<Error>(HasSubstr("200 deep")));
    EXPECT_THROW(parse_cbor("\xbb\x80" + std::string(7, '\0'), "x"), Error);  // 2^63 pairs
}

TEST(JsonText, that_is_none_is_an_error_of_one_line) {
    for (const std::string text : {"", "{", "nul", "1e999999", "\"\xff\"", "\"\\ud800\"", "[1,]", "{}\n{}"}) {
        EXPECT_THAT([&] { parse_json(text, "some.json"); },
                    ThrowsMessage<Error>(HasSubstr("some.json: it is no valid JSON")));
        EXPECT_FALSE(try_parse_json(text)) << text;
    }
}

TEST(JsonText, writes_whatever_bytes_a_name_has) {
    const nlohmann::json value = {{"na\xffme", "x\xfey"}, {"list", {1, "\xc3"}}};
    EXPECT_EQ(json_to_text(value), "{\"list\":[1,\"\uFFFD\"],\"na\uFFFDme\":\"x\uFFFDy\"}");
    EXPECT_EQ(json_to_text(nlohmann::json{{"a", 1}}, 2), "{\n  \"a\": 1\n}");
}

TEST(JsonText, has_words_of_its_own_for_what_does_not_fit) {
    const nlohmann::json value = {{"a", nullptr}, {"list", {1}}};
    const auto said = [&](const auto& read) {
        try {
            read_fields("some.json", read);
        } catch (const Error& error) {
            return std::string(error.what());
        }
        return std::string();
    };
    EXPECT_EQ(said([&] { value.at("types"); }), "some.json: the key 'types' is missing");
    EXPECT_EQ(said([&] { value.at("list").at(3); }), "some.json: a list in it is too short");
    EXPECT_EQ(said([&] { value.at("a").get<std::string>(); }),
              "some.json: a value of it is null where there has to be string");
    for (const auto& [key, kind] : {std::pair{"a", "null"}, std::pair{"list", "array"}})
        EXPECT_EQ(said([&, k = key] { as_object(value.at(k)); }),
                  fmt::format("some.json: a value of it is {} where there has to be object", kind));
    EXPECT_EQ(as_object(value).size(), 2U);
    EXPECT_THAT(said([&] { value.at("a").at("b"); }), Not(HasSubstr("exception")));
    EXPECT_EQ(read_fields("x", [&] { return value.at("list").at(0).get<int>(); }), 1);
}

TEST(JsonText, fields_of_another_kind_are_not_there) {
    const nlohmann::json value = {{"text", "a"}, {"number", 2.5}, {"yes", true}, {"list", {1}}, {"none", nullptr}};
    EXPECT_EQ(text_field(value, "text"), "a");
    EXPECT_EQ(number_field(value, "number"), 2.5);
    EXPECT_TRUE(bool_field(value, "yes"));
    for (const auto* key : {"number", "yes", "list", "none", "missing"}) EXPECT_EQ(text_field(value, key, "-"), "-");
    for (const auto* key : {"text", "yes", "list", "none", "missing"}) EXPECT_EQ(number_field(value, key, 7.0), 7.0);
    for (const auto* key : {"text", "number", "list", "none", "missing"}) EXPECT_FALSE(bool_field(value, key));
    for (const nlohmann::json& other :
         {nlohmann::json(), nlohmann::json("a"), nlohmann::json({1, 2}), nlohmann::json(3)})
        EXPECT_EQ(text_field(other, "text", "-"), "-");
}

}  // namespace
}  // namespace cerebellum
