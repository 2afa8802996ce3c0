#include "cerebellum/build/source_identity.h"

#include <gtest/gtest.h>

#include "cerebellum/build/build_gguf.h"
#include "cerebellum/build/hollow_gguf.h"
#include "cerebellum/gguf/gguf_support_test.h"

namespace cerebellum {
namespace {

using testing::TemporaryFolder;
using testing::TestTensor;

GgufFile write_model(const std::filesystem::path& path, const std::vector<TestTensor>& tensors) {
    testing::write_test_gguf(path, tensors, [](gguf_context*) {});
    return GgufFile::open(path);
}

TEST(SourceIdentity, names_the_first_tensor_that_differs) {
    const TemporaryFolder folder;
    const std::vector<TestTensor> tensors = {{"a", GGML_TYPE_F16, {256, 8, 1, 1}},
                                             {"b", GGML_TYPE_F16, {256, 16, 1, 1}},
                                             {"c", GGML_TYPE_F32, {64, 1, 1, 1}}};
    const auto expected = tensor_identities(write_model(folder / "m.gguf", tensors));
    EXPECT_EQ(first_difference(GgufFile::open(folder / "m.gguf"), expected), std::nullopt);

    auto other = tensors;
    other[1].shape[1] = 32;
    EXPECT_EQ(first_difference(write_model(folder / "shape.gguf", other), expected),
              "b is f16 256x32 and not f16 256x16");
    other = tensors;
    other[1].type = GGML_TYPE_F32;
    EXPECT_EQ(first_difference(write_model(folder / "type.gguf", other), expected),
              "b is f32 256x16 and not f16 256x16");
    other = tensors;
    other[2].name = "d";
    EXPECT_EQ(first_difference(write_model(folder / "name.gguf", other), expected), "d is not in it");
    other = tensors;
    other.pop_back();
    EXPECT_EQ(first_difference(write_model(folder / "less.gguf", other), expected), "c is missing");

    auto content = read_file(folder / "m.gguf");
    const auto source = GgufFile::open(folder / "m.gguf");
    const auto& last = *source.find("b");
    auto& changed = content[last.file_offset + last.size_bytes - 1];
    changed = static_cast<char>(changed ^ 1);
    write_file_atomically(folder / "tuned.gguf", content);
    EXPECT_EQ(first_difference(GgufFile::open(folder / "tuned.gguf"), expected), "b has other weights");
}

TEST(HollowGguf, is_a_header_with_room_for_the_data) {
    const TemporaryFolder folder;
    const auto source =
        write_model(folder / "m.gguf", {{"a", GGML_TYPE_F16, {256, 64, 1, 1}}, {"b", GGML_TYPE_F32, {100, 1, 1, 1}}});
    const TypeMap types = {{"a", GGML_TYPE_Q4_0}};
    write_hollow_gguf(source, types, folder / "hollow.gguf");
    const auto hollow = GgufFile::open(folder / "hollow.gguf");
    EXPECT_EQ(hollow.find("a")->type, GGML_TYPE_Q4_0);
    EXPECT_EQ(hollow.find("b")->type, GGML_TYPE_F32);
    EXPECT_EQ(hollow.find("a")->shape, source.find("a")->shape);
    EXPECT_EQ(hollow.file_size(), hollow.data_offset() + tensor_bytes(*source.find("a"), GGML_TYPE_Q4_0) +
                                      tensor_bytes(*source.find("b"), GGML_TYPE_F32));
}

}  // namespace
}  // namespace cerebellum
