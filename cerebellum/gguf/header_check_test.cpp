#include "cerebellum/gguf/header_check.h"

#include <ggml.h>
#include <gguf.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <string>

#include "cerebellum/gguf/gguf_support_test.h"

namespace cerebellum {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

/// Writes headers field by field, right ones and wrong ones.
class Header {
  public:
    Header(std::uint64_t n_tensors, std::uint64_t n_keys) {
        bytes_ = "GGUF";
        *this << std::uint32_t{3} << n_tensors << n_keys;
    }
    template <typename T>
    Header& operator<<(const T& value) {
        bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
        return *this;
    }
    Header& operator<<(const char* text) { return *this << std::string(text); }
    Header& operator<<(const std::string& text) {
        *this << std::uint64_t{text.size()};
        bytes_ += text;
        return *this;
    }
    Header& key(const std::string& name, std::int32_t type) { return *this << name << type; }
    Header& tensor(const std::string& name, const std::vector<std::int64_t>& shape, std::int32_t type,
                   std::uint64_t offset) {
        *this << name << static_cast<std::uint32_t>(shape.size());
        for (const auto length : shape) *this << length;
        return *this << type << offset;
    }
    Header& data(std::size_t size) {
        bytes_.resize((bytes_.size() + 31) / 32 * 32 + size);
        return *this;
    }
    std::optional<HeaderProblem> check() const { return check_header(std::as_bytes(std::span(bytes_))); }
    std::string damage() const {
        const auto problem = check();
        if (!problem) return "nothing";
        EXPECT_FALSE(problem->cut_short) << problem->reason;
        return problem->reason;
    }
    std::string cut() const {
        const auto problem = check();
        if (!problem) return "nothing";
        EXPECT_TRUE(problem->cut_short) << problem->reason;
        return problem->reason;
    }

  private:
    std::string bytes_;
};

constexpr std::int32_t f32 = GGML_TYPE_F32;

TEST(HeaderCheck, accepts_what_ggml_writes) {
    const std::string model = read_file(testing::small_model());
    const auto problem = check_header(std::as_bytes(std::span(model)));
    EXPECT_FALSE(problem) << problem->reason;
    EXPECT_FALSE(Header(1, 0).tensor("a", {32}, f32, 0).data(128).check());
    EXPECT_FALSE(Header(1, 0).tensor("scalar", {}, f32, 0).data(4).check());
    EXPECT_FALSE(Header(0, 0).check());
}

TEST(HeaderCheck, names_counts) {
    EXPECT_THAT(Header(~0ull, 0).damage(), HasSubstr("18446744073709551615 tensors"));
    EXPECT_THAT(Header(0, 1ull << 40).damage(), HasSubstr("1099511627776 keys"));
    EXPECT_THAT(Header(0, 5).cut(), HasSubstr("key 0"));
}

TEST(HeaderCheck, names_keys) {
    EXPECT_THAT((Header(0, 1) << std::uint64_t{70000}).damage(), HasSubstr("70000 bytes"));
    EXPECT_THAT((Header(0, 1) << "").damage(), HasSubstr("empty name"));
    EXPECT_THAT((Header(0, 1) << std::string("a\0b", 3)).damage(), HasSubstr("a?b) holds a zero byte"));
    EXPECT_THAT(Header(0, 1).key("a", 13).damage(), HasSubstr("key a has the unknown type 13"));
    EXPECT_THAT(Header(0, 1).key("a", -1).damage(), HasSubstr("unknown type -1"));
    EXPECT_THAT((Header(0, 2).key("twice", GGUF_TYPE_UINT8) << std::uint8_t{1}).key("twice", GGUF_TYPE_UINT8).damage(),
                HasSubstr("there already: twice"));
    EXPECT_THAT((Header(0, 1).key("s", GGUF_TYPE_STRING) << (1ull << 60)).damage(), HasSubstr("key s has the length"));
    EXPECT_THAT((Header(0, 1).key("s", GGUF_TYPE_STRING) << std::uint64_t{9}).cut(), HasSubstr("key s"));
    EXPECT_THAT((Header(0, 1).key("n", GGUF_TYPE_UINT64) << std::uint32_t{9}).cut(), HasSubstr("key n"));
}

TEST(HeaderCheck, knows_types_of_other_programs_from_damage) {
    const auto foreign = [](std::int32_t type) {
        const auto problem = Header(1, 0).tensor("a", {256}, type, 0).data(256).check();
        EXPECT_TRUE(problem && problem->foreign && !problem->cut_short) << type;
        return problem ? problem->reason : "";
    };
    for (const auto of_ik_llama : {99, 137, 202, 397})
        EXPECT_THAT(foreign(of_ik_llama),
                    AllOf(HasSubstr("tensor a has the type number " + std::to_string(of_ik_llama)),
                          HasSubstr("ik_llama.cpp"), HasSubstr("made for llama.cpp")));
    for (const auto given_up : {4, 5, 31, 32, 33, 36, 37, 38})
        EXPECT_THAT(foreign(given_up), HasSubstr("llama.cpp has given up"));
    for (const auto damaged : {-1, 0x7fffffff, 70000}) {
        const auto problem = Header(1, 0).tensor("a", {256}, damaged, 0).data(256).check();
        EXPECT_TRUE(problem && !problem->foreign) << damaged;
    }
}

TEST(HeaderCheck, refuses_names_of_tensors_that_are_no_utf8) {
    EXPECT_THAT(Header(1, 0).tensor("blk.0.\xff.weight", {32}, f32, 0).data(128).damage(),
                HasSubstr("tensor 0 (blk.0.\\xff.weight) is no UTF-8"));
    EXPECT_FALSE(Header(1, 0).tensor("blk.0.ä.weight", {32}, f32, 0).data(128).check());
}

TEST(HeaderCheck, names_arrays) {
    const auto array = [](std::int32_t type, std::uint64_t count) {
        return Header(0, 1).key("list", GGUF_TYPE_ARRAY) << type << count;
    };
    EXPECT_THAT(array(GGUF_TYPE_ARRAY, 1).damage(), HasSubstr("array of arrays"));
    EXPECT_THAT(array(77, 1).damage(), HasSubstr("unknown type 77"));
    EXPECT_THAT(array(GGUF_TYPE_UINT64, 1ull << 61).damage(), HasSubstr("2305843009213693952 items"));
    EXPECT_THAT(array(GGUF_TYPE_UINT8, 100).cut(), HasSubstr("key list"));
    EXPECT_THAT((array(GGUF_TYPE_STRING, 1) << (1ull << 50)).damage(), HasSubstr("has the length"));
    EXPECT_THAT((array(GGUF_TYPE_STRING, 2) << "one").cut(), HasSubstr("key list"));
    EXPECT_FALSE(array(GGUF_TYPE_INT32, 0).check());
}

TEST(HeaderCheck, bounds_what_a_reader_allocates_for_strings) {
    // Empty strings: 8 bytes each in the file, four times as many in memory.
    const std::uint64_t count = 8u << 20;
    const auto header = (Header(0, 1).key("list", GGUF_TYPE_ARRAY) << std::int32_t{GGUF_TYPE_STRING} << count)
                            .data(static_cast<std::size_t>(count) * 8);
    EXPECT_THAT(header.damage(), HasSubstr("next to nothing"));
}

TEST(HeaderCheck, names_alignments) {
    const auto aligned = [](std::uint32_t alignment) {
        return Header(0, 1).key(GGUF_KEY_GENERAL_ALIGNMENT, GGUF_TYPE_UINT32) << alignment;
    };
    EXPECT_FALSE(aligned(64).check());
    for (const std::uint32_t wrong : {0u, 3u, 48u, 1u << 31})
        EXPECT_THAT(aligned(wrong).damage(), HasSubstr("no power of two")) << wrong;
    EXPECT_THAT((Header(0, 1).key(GGUF_KEY_GENERAL_ALIGNMENT, GGUF_TYPE_UINT64) << std::uint64_t{32}).damage(),
                HasSubstr("no 32-bit number"));
}

TEST(HeaderCheck, names_tensors) {
    const auto one = [](const std::vector<std::int64_t>& shape, std::int32_t type, std::uint64_t offset = 0) {
        return Header(1, 0).tensor("t", shape, type, offset).data(1024).damage();
    };
    EXPECT_THAT(Header(1, 0).tensor(std::string(64, 'x'), {1}, f32, 0).damage(), HasSubstr("64 bytes; 63"));
    EXPECT_THAT(Header(1, 0).tensor("", {1}, f32, 0).damage(), HasSubstr("empty name"));
    EXPECT_THAT(one({1, 1, 1, 1, 1}, f32), HasSubstr("5 dimensions"));
    EXPECT_THAT(one({32}, 1000), HasSubstr("type number 1000"));
    EXPECT_THAT(one({32}, -5), HasSubstr("type -5"));
    EXPECT_THAT(one({32}, 4), HasSubstr("type number 4"));  // removed from ggml
    EXPECT_THAT(one({33}, GGML_TYPE_Q8_0), HasSubstr("no multiple of 32"));
    EXPECT_THAT(one({0}, f32), HasSubstr("impossible shape 0 x"));
    EXPECT_THAT(one({-32}, f32), HasSubstr("impossible shape"));
    EXPECT_THAT(one({1ll << 32, 1ll << 32}, f32), HasSubstr("impossible shape"));
    EXPECT_THAT(one({1ll << 56}, f32, 0), HasSubstr("nothing"));  // only its data is missing
    EXPECT_THAT(one({32}, f32, 8), HasSubstr("no multiple of the alignment 32"));
    EXPECT_THAT(one({32}, f32, 64), HasSubstr("begins at 64 and not at 0"));
    EXPECT_THAT(Header(2, 0).tensor("a", {32}, f32, 0).tensor("a", {32}, f32, 128).data(256).damage(),
                HasSubstr("there already: a"));
    EXPECT_THAT(Header(2, 0).tensor("a", {32}, f32, 0).tensor("b", {32}, f32, 64).data(256).damage(),
                HasSubstr("tensor b overlaps"));
    EXPECT_THAT(Header(2, 0).tensor("a", {32}, f32, 0).tensor("b", {32}, f32, 192).data(512).damage(),
                HasSubstr("tensor b begins at 192 and not at 128"));
    auto many = Header(200, 0);
    for (std::uint64_t i = 0; i < 200; ++i) many.tensor(std::to_string(i), {1ll << 56}, f32, i << 58);
    EXPECT_THAT(many.damage(), HasSubstr("impossible size together"));
    EXPECT_THAT(Header(1, 0).tensor("a", {1}, f32, 0).cut(), HasSubstr("padding"));
}

}  // namespace
}  // namespace cerebellum
