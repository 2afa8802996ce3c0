#include "cerebellum/predict/tensor_list.h"

#include "cerebellum/predict/import_support_test.h"

namespace cerebellum {
namespace {

using ::testing::AllOf;
using testing::error_of;
using ::testing::HasSubstr;

class TensorMap : public testing::ImportTest {
  protected:
    std::string refused(const std::string& content) const {
        const std::vector<std::filesystem::path> paths = {write("t.map", content)};
        return error_of([&] { read_tensor_maps(paths); });
    }
};

constexpr auto embedding = "f-00002.gguf:ab:token_embd.weight:shape=(256, 100):dtype=bf16:elements=25600:bytes=51200\n";
constexpr auto norm = "f-00003.gguf:cd:blk.0.attn_norm.weight:shape=(256,):dtype=f32:elements=256:bytes=1024\n";
constexpr auto experts =
    "f-4.gguf:ef:blk.0.ffn_up_exps.weight:shape=(256, 4, 8):dtype=q2_K:elements=8192:bytes=2688:imatrix=77\n";

TEST_F(TensorMap, lists_shapes_and_types) {
    const std::vector<std::filesystem::path> paths = {write("t.map", std::string(embedding) + norm + experts)};
    const auto list = read_tensor_maps(paths);
    ASSERT_EQ(list.tensors.size(), 3U);
    EXPECT_EQ(list.tensors[0].type, GGML_TYPE_BF16);
    EXPECT_EQ(list.tensors[0].row_length(), 256);
    EXPECT_EQ(list.tensors[0].n_rows(), 100);
    EXPECT_EQ(list.tensors[1].n_dims, 1);
    ASSERT_NE(list.find("blk.0.ffn_up_exps.weight"), nullptr);
    EXPECT_EQ(list.find("blk.0.ffn_up_exps.weight")->n_rows(), 32);
    EXPECT_EQ(list.find("output.weight"), nullptr);
    // With padding behind it.
    const std::vector<std::filesystem::path> padded = {
        write("p.map", "f:a:blk.0.scale.weight:shape=(1,):dtype=f32:elements=1:bytes=32\n")};
    EXPECT_EQ(read_tensor_maps(padded).tensors.front().size_bytes, 4U);
}

TEST_F(TensorMap, and_lists_may_begin_with_a_byte_order_mark_and_hold_remarks) {
    const std::vector<std::filesystem::path> paths = {
        write("t.map", std::string("\xEF\xBB\xBF# a map\n") + embedding + "\n\t# more\n" + norm)};
    EXPECT_EQ(read_tensor_maps(paths).tensors.size(), 2U);
    const auto names =
        NameList::read(write("list.txt", "\xEF\xBB\xBFtoken_embd.weight=q8_0 # kept\n\t\n  # no more\n"));
    EXPECT_TRUE(names.contains("token_embd.weight"));
    EXPECT_FALSE(names.contains("output.weight"));
}

TEST_F(TensorMap, of_several_types_gives_the_largest) {
    const std::string small = "f:a:token_embd.weight:shape=(256, 100):dtype=q8_0:elements=25600:bytes=27200\n";
    std::vector<std::filesystem::path> paths = {write("a.map", small), write("b.map", embedding)};
    EXPECT_EQ(read_tensor_maps(paths).tensors.front().type, GGML_TYPE_BF16);
    paths.push_back(write("c.map", "f:a:token_embd.weight:shape=(100, 256):dtype=bf16:elements=25600:bytes=51200\n"));
    EXPECT_THAT(error_of([&] { read_tensor_maps(paths); }),
                AllOf(HasSubstr("contradict"), HasSubstr("token_embd.weight"), HasSubstr("c.map")));
    paths.back() = write("d.map", std::string(embedding) + norm);
    EXPECT_THAT(error_of([&] { read_tensor_maps(paths); }), HasSubstr("in one only"));
}

TEST_F(TensorMap, is_refused_by_line) {
    EXPECT_THAT(refused(""), HasSubstr("no tensor"));
    EXPECT_THAT(refused(std::string(norm) + "nonsense\n"), HasSubstr("line 2"));
    EXPECT_THAT(refused(std::string(norm) + norm), AllOf(HasSubstr("blk.0.attn_norm.weight"), HasSubstr("twice")));
    EXPECT_THAT(refused("f:a:t:shape=(256,):dtype=f32:elements=255:bytes=1024\n"), HasSubstr("256 weights, not 255"));
    EXPECT_THAT(refused("f:a:t:shape=(256,):dtype=f32:elements=256:bytes=1000\n"), HasSubstr("do not take 1000"));
    EXPECT_THAT(refused("f:a:t:shape=(256,):dtype=x9:elements=256:bytes=1024\n"), HasSubstr("'x9'"));
    EXPECT_THAT(refused("f:a:t:shape=(0,):dtype=f32:elements=0:bytes=0\n"), HasSubstr("impossible"));
    EXPECT_THAT(refused("f:a:t:shape=(4611686018427387904, 4611686018427387904):dtype=f32:elements=1:bytes=4\n"),
                HasSubstr("impossible"));
    EXPECT_THAT(refused("f:a:t:shape=(100,):dtype=q2_K:elements=100:bytes=33\n"), HasSubstr("do not take"));
}

class NameLists : public testing::ImportTest {};

TEST_F(NameLists, hold_names_and_patterns) {
    const auto list = NameList::read(write("recipe",
                                           "# a comment\n^token_embd\\.weight$=q8_0\nblk.0.attn_q.weight=q4_K\n"
                                           "^blk\\.([1-9]|1[0-2])\\.ffn_up\\.weight$=iq2_ks\n"));
    EXPECT_TRUE(list.contains("token_embd.weight"));
    EXPECT_TRUE(list.contains("blk.0.attn_q.weight"));
    EXPECT_TRUE(list.contains("blk.12.ffn_up.weight"));
    EXPECT_FALSE(list.contains("blk.13.ffn_up.weight"));
    EXPECT_FALSE(list.contains("output.weight"));
    EXPECT_THAT(error_of([&] { NameList::read(write("r", "a=q8_0\nnothing\n")); }), HasSubstr("line 2"));
    EXPECT_THAT(error_of([&] { NameList::read(write("r", "a(=q8_0\n")); }), HasSubstr("regular expression"));
    EXPECT_THAT(error_of([&] { NameList::read(write("r", "\n")); }), HasSubstr("no tensor"));
}

}  // namespace
}  // namespace cerebellum
