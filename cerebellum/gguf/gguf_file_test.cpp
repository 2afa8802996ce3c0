#include "cerebellum/gguf/gguf_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "cerebellum/gguf/gguf_support_test.h"

namespace cerebellum {
namespace {

using ::testing::AllOf;
using testing::error_of;
using ::testing::HasSubstr;
using testing::small_model;
using testing::TemporaryFolder;
using testing::write_test_gguf;

template <typename T>
void put(std::string& bytes, std::size_t offset, T value) {
    std::memcpy(bytes.data() + offset, &value, sizeof(value));
}

/// What opening a file of these bytes says.
std::string refusal(const std::string& bytes) {
    const TemporaryFolder folder;
    const auto path = folder / "broken.gguf";
    write_file_atomically(path, bytes);
    const std::string text = error_of([&] { GgufFile::open(path); });
    EXPECT_THAT(text, HasSubstr(path.string()));
    return text;
}

TEST(GgufFile, reads_the_embedded_model) {
    const auto file = GgufFile::open(small_model());
    EXPECT_EQ(file.architecture(), "llama");
    EXPECT_EQ(file.tensors().size(), 57u);
    EXPECT_EQ(file.file_size(), std::filesystem::file_size(small_model()));
    EXPECT_EQ(file.uint_value("llama.block_count"), 6u);
    EXPECT_EQ(file.uint_value("general.architecture"), std::nullopt);
    EXPECT_EQ(file.string_value("llama.block_count"), std::nullopt);
    EXPECT_EQ(file.string_value("no.such.key"), std::nullopt);
    EXPECT_EQ(file.alignment(), 32u);
    const TensorInfo* tensor = file.find("blk.0.ffn_down.weight");
    ASSERT_NE(tensor, nullptr);
    EXPECT_EQ(tensor->row_length(), 768);
    EXPECT_EQ(tensor->n_rows(), 256);
    EXPECT_EQ(tensor->n_dims, 2);
    EXPECT_EQ(tensor->size_bytes, 768u * 256u * 2u);
    EXPECT_EQ(file.data(*tensor).size(), tensor->size_bytes);
    EXPECT_EQ(file.find("blk.0.ffn_down"), nullptr);
    std::uint64_t weights = 0;
    for (const auto& each : file.tensors()) weights += static_cast<std::uint64_t>(each.n_weights());
    EXPECT_EQ(file.n_weights(), weights);
    const auto last = file.tensors().back();
    EXPECT_LE(last.file_offset + last.size_bytes, file.file_size());
}

TEST(GgufFile, dumps_metadata_with_long_arrays_shortened) {
    const auto metadata = GgufFile::open(small_model()).metadata_json();
    EXPECT_EQ(metadata["general.name"], "WikiCode 6.8M");
    EXPECT_EQ(metadata["tokenizer.ggml.tokens"]["count"], 4096);
    EXPECT_EQ(metadata["tokenizer.ggml.tokens"]["first"].size(), 8u);
    EXPECT_NO_THROW(metadata.dump());
}

TEST(GgufFile, dumps_every_kind_of_value) {
    const TemporaryFolder folder;
    const auto path = folder / "kinds.gguf";
    write_test_gguf(path, {{"a.weight", GGML_TYPE_F32, {3, 1, 1, 1}}}, [](gguf_context* context) {
        gguf_set_val_i8(context, "i8", -3);
        gguf_set_val_u16(context, "u16", 65535);
        gguf_set_val_u64(context, "u64", 1ull << 63);
        gguf_set_val_f64(context, "f64", 0.5);
        gguf_set_val_bool(context, "bool", true);
        gguf_set_val_str(context, "no utf8", "\xff\xfe");
        const std::int16_t few[] = {1, -2};
        gguf_set_arr_data(context, "few", GGUF_TYPE_INT16, few, 2);
        gguf_set_arr_data(context, "none", GGUF_TYPE_UINT8, nullptr, 0);
    });
    const auto file = GgufFile::open(path);
    const auto metadata = file.metadata_json();
    EXPECT_EQ(metadata["i8"], -3);
    EXPECT_EQ(metadata["u64"], 1ull << 63);
    EXPECT_EQ(metadata["f64"], 0.5);
    EXPECT_EQ(metadata["bool"], true);
    EXPECT_EQ(metadata["few"], nlohmann::json({1, -2}));
    EXPECT_EQ(metadata["none"], nlohmann::json::array());
    EXPECT_NO_THROW(metadata.dump());
    EXPECT_EQ(file.uint_value("i8"), std::nullopt);
    EXPECT_EQ(file.uint_value("u16"), 65535u);
    EXPECT_EQ(file.uint_value("bool"), 1u);
    EXPECT_EQ(file.uint_value("f64"), std::nullopt);
    EXPECT_EQ(file.uint_value("few"), std::nullopt);
}

TEST(GgufFile, fingerprint_changes_with_metadata_and_weights) {
    const TemporaryFolder folder;
    std::string bytes = read_file(small_model());
    const auto original = GgufFile::open(small_model());
    EXPECT_EQ(original.fingerprint().size(), 64u);
    const auto copy = folder / "copy.gguf";
    write_file_atomically(copy, bytes);
    EXPECT_EQ(GgufFile::open(copy).fingerprint(), original.fingerprint());
    bytes[original.tensors()[30].file_offset + 5] ^= 1;
    write_file_atomically(copy, bytes);
    EXPECT_NE(GgufFile::open(copy).fingerprint(), original.fingerprint());
}

TEST(GgufFile, moves) {
    auto first = GgufFile::open(small_model());
    const auto* data = first.data(first.tensors()[0]).data();
    GgufFile second = std::move(first);
    EXPECT_EQ(second.data(second.tensors()[0]).data(), data);
}

TEST(GgufFile, says_what_is_wrong_with_a_path) {
    const TemporaryFolder folder;
    EXPECT_THAT(error_of([&] { GgufFile::open(folder / "none.gguf"); }), HasSubstr("no such file"));
    EXPECT_THAT(error_of([&] { GgufFile::open(folder.path()); }), HasSubstr("directory"));
    EXPECT_THAT(error_of([&] { GgufFile::open("/dev/null"); }), HasSubstr("no regular file"));
    EXPECT_THAT(refusal(""), HasSubstr("it is empty"));
}

TEST(GgufFile, says_what_is_wrong_with_a_header) {
    const std::string good = read_file(small_model()).substr(0, 1 << 20);
    EXPECT_THAT(refusal("PK\x03\x04 something else entirely, long enough"), HasSubstr("no GGUF file"));
    EXPECT_THAT(refusal("{}"), HasSubstr("no GGUF file"));
    EXPECT_THAT(refusal("GG"), HasSubstr("ends inside the header"));
    EXPECT_THAT(refusal(good.substr(0, 20)), HasSubstr("ends inside the header"));
    EXPECT_THAT(refusal(good.substr(0, 100)), HasSubstr("ends inside the header"));
    EXPECT_THAT(refusal(good.substr(0, 20000)), HasSubstr("ends inside the header"));
    std::string bytes = good;
    put<std::uint32_t>(bytes, 4, 1);
    EXPECT_THAT(refusal(bytes), HasSubstr("GGUF version is 1"));
    put<std::uint32_t>(bytes, 4, 99);
    EXPECT_THAT(refusal(bytes), HasSubstr("GGUF version is 99"));
    put<std::uint32_t>(bytes, 4, 0x03000000);
    EXPECT_THAT(refusal(bytes), HasSubstr("big-endian"));
    bytes = good;
    put<std::uint64_t>(bytes, 8, ~0ull);
    EXPECT_THAT(refusal(bytes), HasSubstr("header"));
    bytes = good;
    put<std::uint64_t>(bytes, 24, 1ull << 60);  // length of the first key
    EXPECT_THAT(refusal(bytes), HasSubstr("header is damaged"));
}

TEST(GgufFile, names_the_tensor_that_is_cut) {
    const auto file = GgufFile::open(small_model());
    const std::string bytes = read_file(small_model());
    for (const std::size_t i : {std::size_t{0}, std::size_t{20}, file.tensors().size() - 1}) {
        const auto& tensor = file.tensors()[i];
        EXPECT_THAT(refusal(bytes.substr(0, tensor.file_offset + tensor.size_bytes - 1)),
                    AllOf(HasSubstr(tensor.name + " reaches beyond the end"), HasSubstr("(1 bytes are missing"),
                          HasSubstr("incomplete")));
    }
}

TEST(GgufFile, refuses_parts_and_empty_files) {
    const TemporaryFolder folder;
    const auto path = folder / "part.gguf";
    write_test_gguf(path, {{"a.weight", GGML_TYPE_F32, {32, 2, 1, 1}}},
                    [](gguf_context* context) { gguf_set_val_u16(context, "split.count", 3); });
    EXPECT_THAT(error_of([&] { GgufFile::open(path); }),
                AllOf(HasSubstr("3 parts"), HasSubstr("llama-gguf-split --merge")));
    write_test_gguf(path, {}, [](gguf_context*) {});
    EXPECT_THAT(error_of([&] { GgufFile::open(path); }), HasSubstr("no tensors"));
}

TEST(GgufFile, refuses_shapes_that_overflow) {
    const TemporaryFolder folder;
    const auto path = folder / "shape.gguf";
    write_test_gguf(path, {{"a.weight", GGML_TYPE_F32, {32, 2, 3, 2}}}, [](gguf_context*) {});
    const std::string good = read_file(path);
    const auto shape_at = good.find("a.weight") + 8 + 4;
    using Shape = std::array<std::int64_t, 4>;
    // Products that wrap around to 0 or to something small, which ggml's own check lets pass.
    for (const Shape& shape :
         {Shape{1ll << 32, 1ll << 32, 1, 1}, Shape{1ll << 62, 4, 4, 1}, Shape{0, 2, 3, 2}, Shape{32, 2, 0, 2},
          Shape{-32, 2, 3, 2}, Shape{1ll << 31, 1ll << 31, 1ll << 31, 1ll << 31}}) {
        std::string bytes = good;
        put(bytes, shape_at, shape);
        EXPECT_THAT(refusal(bytes), HasSubstr("header is damaged"));
    }
}

TEST(GgufFile, survives_any_damage_to_the_header) {
    const TemporaryFolder folder;
    const auto path = folder / "damaged.gguf";
    write_test_gguf(path, {{"a.weight", GGML_TYPE_Q4_K, {256, 2, 3, 1}}, {"b.weight", GGML_TYPE_F16, {8, 4, 1, 1}}},
                    [](gguf_context* context) {
                        gguf_set_val_u32(context, "general.alignment", 32);
                        const char* tokens[] = {"a", "b"};
                        gguf_set_arr_str(context, "tokens", tokens, 2);
                        const float scores[] = {1.0f, 2.0f};
                        gguf_set_arr_data(context, "scores", GGUF_TYPE_FLOAT32, scores, 2);
                    });
    const std::string good = read_file(path);
    const std::size_t header = GgufFile::open(path).data_offset();
    std::mt19937 random(1);
    int refused = 0;
    for (int trial = 0; trial < 1500; ++trial) {
        std::string bytes = good;
        for (auto n = random() % 3 + 1; n > 0; --n) bytes[random() % header] = static_cast<char>(random());
        if (random() % 4 == 0) bytes.resize(random() % bytes.size());
        std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
        try {
            const auto file = GgufFile::open(path);
            file.metadata_json().dump();
            file.fingerprint();
        } catch (const Error&) {
            ++refused;
        }
    }
    EXPECT_GT(refused, 500);
}

TEST(GgufFile, restores_ggml_s_log) {
    ggml_log_callback before = nullptr, after = nullptr;
    void *before_data = nullptr, *after_data = nullptr;
    ggml_log_get(&before, &before_data);
    refusal("GGUF this is not a header at all, but long enough");
    ggml_log_get(&after, &after_data);
    EXPECT_EQ(before, after);
    EXPECT_EQ(before_data, after_data);
}

}  // namespace
}  // namespace cerebellum
