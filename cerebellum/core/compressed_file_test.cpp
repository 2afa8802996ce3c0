#include "cerebellum/core/compressed_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <filesystem>
#include <string>

#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"

namespace cerebellum {
namespace {

namespace fs = std::filesystem;

class CompressedFile : public ::testing::Test {
  protected:
    CompressedFile() : folder_(::testing::TempDir() + "compressed-" + std::to_string(::getpid())) {
        fs::create_directory(folder_);
    }
    ~CompressedFile() override { fs::remove_all(folder_); }

    fs::path packed(const std::string& content) const {
        auto path = folder_ / "packed.gz";
        gzFile file = gzopen(path.c_str(), "wb");
        gzwrite(file, content.data(), static_cast<unsigned>(content.size()));
        gzclose(file);
        return path;
    }

    fs::path folder_;
};

TEST_F(CompressedFile, a_byte_order_mark_is_no_text) {
    EXPECT_EQ(read_unpacked(packed("\xEF\xBB\xBFtext \xEF\xBB\xBF")), "text \xEF\xBB\xBF");
    write_file_atomically(folder_ / "plain.txt", "\xEF\xBB\xBFtext");
    EXPECT_EQ(read_text(folder_ / "plain.txt"), "text");
}

TEST_F(CompressedFile, may_not_unpack_to_more_than_is_allowed) {
    const auto path = packed(std::string(100'000, 'a'));
    EXPECT_EQ(read_unpacked(path, 100'000).size(), 100'000u);
    EXPECT_THAT([&] { read_unpacked(path, 99'999); },
                ::testing::ThrowsMessage<Error>(::testing::HasSubstr("holds more than")));
}

TEST_F(CompressedFile, is_no_pipe_and_no_device) {
    ASSERT_EQ(::mkfifo((folder_ / "pipe").c_str(), 0600), 0);
    for (const auto& path : {folder_ / "pipe", fs::path("/dev/zero"), folder_})
        for (const auto& read :
             {+[](const fs::path& file) { read_unpacked(file); }, +[](const fs::path& file) { read_file(file); }})
            EXPECT_THAT([&] { read(path); },
                        ::testing::ThrowsMessage<Error>(::testing::HasSubstr("cannot read " + path.string())));
}

TEST_F(CompressedFile, is_read_as_what_was_packed) {
    std::string content;
    for (int i = 0; i < 50000; ++i) content += std::to_string(i) + ",";
    EXPECT_EQ(read_unpacked(packed(content)), content);
    EXPECT_EQ(read_unpacked(packed("")), "");
}

TEST_F(CompressedFile, may_not_be_packed_at_all) {
    write_file_atomically(folder_ / "plain", "QTYPE,a\n");
    EXPECT_EQ(read_unpacked(folder_ / "plain"), "QTYPE,a\n");
}

TEST_F(CompressedFile, is_a_text_only_if_it_is_utf8) {
    const std::string text = "\xef\xbb\xbfna\xc3\xafve \xe2\x82\xac \xf0\x9f\x98\x80\n";
    EXPECT_EQ(read_text(packed(text)), text.substr(3));  // without the byte order mark
    EXPECT_EQ(read_text(packed("")), "");
    // Latin-1, overlong, a surrogate, beyond the last code point, cut within a character.
    for (const std::string damage : {"\xef", "\xc0\xaf", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xe2\x82"}) {
        write_file_atomically(folder_ / "damaged.txt", "four" + damage);
        EXPECT_THAT([&] { read_text(folder_ / "damaged.txt"); },
                    ::testing::ThrowsMessage<Error>(
                        ::testing::AllOf(::testing::HasSubstr("damaged.txt"), ::testing::HasSubstr("byte 4 "))));
    }
}

TEST_F(CompressedFile, is_refused_where_it_is_damaged) {
    std::string content;
    for (int i = 0; i < 50000; ++i) content += std::to_string(i * 7919 % 10007);
    const auto path = packed(content);
    const auto whole = read_file(path);
    write_file_atomically(path, whole.substr(0, whole.size() / 2));
    EXPECT_THROW(read_unpacked(path), Error);
    auto changed = whole;
    changed[changed.size() / 2] = static_cast<char>(changed[changed.size() / 2] ^ 0x55);
    write_file_atomically(path, changed);
    EXPECT_THROW(read_unpacked(path), Error);
    EXPECT_THROW(read_unpacked(folder_), Error);
    EXPECT_THROW(read_unpacked(folder_ / "nowhere"), Error);
}

}  // namespace
}  // namespace cerebellum
