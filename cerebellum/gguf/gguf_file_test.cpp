#include "cerebellum/gguf/gguf_file.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <thread>

#include "cerebellum/core/lost_pages.h"
#include "cerebellum/gguf/gguf_support_test.h"

namespace cerebellum {
namespace {

using ::testing::AllOf;
using testing::error_of;
using ::testing::HasSubstr;
using testing::small_model;
using testing::TemporaryFolder;
using testing::TestTensor;
using testing::write_test_gguf;

namespace fs = std::filesystem;

template <typename T>
void put(std::string& bytes, std::size_t offset, T value) {
    std::memcpy(bytes.data() + offset, &value, sizeof(value));
}

/// What opening a file of these bytes says.
std::string refusal(const std::string& bytes) {
    const TemporaryFolder folder;
    const auto path = folder / "broken.gguf";
    write_file_atomically(path, bytes);
    std::string text = error_of([&] { GgufFile::open(path); });
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

TEST(GgufFile, fingerprint_covers_every_byte_of_a_tensor) {
    const TemporaryFolder folder;
    std::string bytes = read_file(small_model());
    const auto original = GgufFile::open(small_model());
    const auto& largest = *std::ranges::max_element(original.tensors(), {}, &TensorInfo::size_bytes);
    ASSERT_GT(largest.size_bytes, 3u << 17);
    std::fill_n(bytes.begin() + static_cast<std::ptrdiff_t>(largest.file_offset + largest.size_bytes / 2), 16, '\0');
    const auto copy = folder / "hole.gguf";
    write_file_atomically(copy, bytes);
    EXPECT_NE(GgufFile::open(copy).fingerprint(), original.fingerprint());
}

TEST(GgufFile, fingerprint_knows_values_and_types_of_metadata) {
    const TemporaryFolder folder;
    const std::vector<TestTensor> tensors = {{"t", GGML_TYPE_F32, {32, 2, 1, 1}}};
    std::set<std::string> fingerprints;
    const auto add = [&](auto&& set) {
        write_test_gguf(folder / "model.gguf", tensors, set);
        fingerprints.insert(GgufFile::open(folder / "model.gguf").fingerprint());
    };
    add([](gguf_context*) {});
    add([](gguf_context* context) { gguf_set_val_u32(context, "key", 1); });
    add([](gguf_context* context) { gguf_set_val_i32(context, "key", 1); });
    add([](gguf_context* context) { gguf_set_val_u32(context, "key", 2); });
    add([](gguf_context* context) { gguf_set_val_str(context, "key", "1"); });
    add([](gguf_context* context) {
        const char* items[] = {"ab", "c"};
        gguf_set_arr_str(context, "key", items, 2);
    });
    add([](gguf_context* context) {
        const char* items[] = {"a", "bc"};
        gguf_set_arr_str(context, "key", items, 2);
    });
    EXPECT_EQ(fingerprints.size(), 7u);
    // The order of the keys says nothing.
    for (const bool turned : {false, true})
        add([&](gguf_context* context) {
            gguf_set_val_u32(context, turned ? "b" : "a", turned ? 2 : 1);
            gguf_set_val_u32(context, turned ? "a" : "b", turned ? 1 : 2);
        });
    EXPECT_EQ(fingerprints.size(), 8u);
}

TEST(GgufFile, notices_that_it_was_written_to) {
    const TemporaryFolder folder;
    const auto path = folder / "model.gguf";
    write_file_atomically(path, read_file(small_model()));
    const auto model = GgufFile::open(path);
    const auto& tensor = model.tensors()[30];
    model.fingerprint();
    EXPECT_NO_THROW(model.check_unchanged());
    std::this_thread::sleep_for(std::chrono::milliseconds(30));  // the system's clock for files is a coarse one
    // Touched is not changed.
    fs::last_write_time(path, fs::file_time_type::clock::now());
    EXPECT_NO_THROW(model.check_unchanged());
    {
        std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
        file.seekp(static_cast<std::streamoff>(tensor.file_offset + 3));
        file.put('x').put('y');
    }
    EXPECT_THAT(error_of([&] { model.check_unchanged(); }), AllOf(HasSubstr(path.string()), HasSubstr("was changed")));
    fs::resize_file(path, tensor.file_offset);
    EXPECT_THAT(error_of([&] { model.check_unchanged(); }), HasSubstr("cut short"));
}

TEST(GgufFileDeathTest, pages_that_are_gone_are_explained) {
    const TemporaryFolder folder;
    const auto path = folder / "model.gguf";
    write_file_atomically(path, read_file(small_model()));
    const auto read_cut = [&] {
        explain_lost_pages();
        const auto model = GgufFile::open(path);
        fs::resize_file(path, 4096);
        const auto data = model.data(model.tensors().back());
        std::exit(data.back() == std::byte{1} ? 3 : 4);
    };
    EXPECT_EXIT(read_cut(), ::testing::ExitedWithCode(1), "model.gguf was cut short while it was read");
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

TEST(GgufFile, refuses_files_without_tensors) {
    const TemporaryFolder folder;
    write_test_gguf(folder / "empty.gguf", {}, [](gguf_context*) {});
    EXPECT_THAT(error_of([&] { GgufFile::open(folder / "empty.gguf"); }), HasSubstr("no tensors"));
}

/// Three files with a tensor each.
class SplitModel : public ::testing::Test {
  protected:
    SplitModel() {
        for (int i = 0; i < 3; ++i) write(i, i, 3, fmt::format("blk.{}.weight", i), 3);
    }
    void write(int file, int number, int count, const std::string& tensor, int total) {
        write_test_gguf(path(file), {{tensor, GGML_TYPE_F32, {32, 2 + file, 1, 1}}}, [&](gguf_context* context) {
            gguf_set_val_u16(context, "split.no", static_cast<std::uint16_t>(number));
            gguf_set_val_u16(context, "split.count", static_cast<std::uint16_t>(count));
            gguf_set_val_i32(context, "split.tensors.count", total);
        });
    }
    std::filesystem::path path(int file) const { return folder_ / fmt::format("model-{:05}-of-00003.gguf", file + 1); }
    std::string refusal() const {
        return error_of([&] { GgufFile::open(path(0)); });
    }

    TemporaryFolder folder_;
};

TEST_F(SplitModel, is_opened_by_its_first_file) {
    const auto model = GgufFile::open(path(0));
    ASSERT_EQ(model.tensors().size(), 3u);
    ASSERT_EQ(model.paths().size(), 3u);
    std::uint64_t bytes = 0;
    for (int i = 0; i < 3; ++i) {
        const auto& tensor = *model.find(fmt::format("blk.{}.weight", i));
        EXPECT_EQ(tensor.part, static_cast<std::uint32_t>(i));
        EXPECT_EQ(tensor.n_rows(), 2 + i);
        const std::string file = read_file(path(i));
        bytes += file.size();
        const auto data = model.data(tensor);
        EXPECT_EQ(std::memcmp(data.data(), file.data() + tensor.file_offset, data.size()), 0);
        std::vector<std::byte> some(40);
        model.read(tensor, 8, some);
        EXPECT_TRUE(std::ranges::equal(some, data.subspan(8, 40)));
    }
    EXPECT_EQ(model.file_size(), bytes);
    const auto before = model.fingerprint();
    write(2, 2, 3, "blk.3.weight", 3);
    EXPECT_NE(GgufFile::open(path(0)).fingerprint(), before);
}

TEST_F(SplitModel, is_the_same_model_in_one_file) {
    const std::vector<TestTensor> tensors = {{"a", GGML_TYPE_F32, {32, 4, 1, 1}}, {"b", GGML_TYPE_F32, {32, 2, 1, 1}}};
    write_test_gguf(folder_ / "whole.gguf", tensors, [](gguf_context*) {});
    const auto whole = GgufFile::open(folder_ / "whole.gguf");
    const auto part_path = [&](int i) { return folder_ / fmt::format("parts-{:05}-of-00002.gguf", i + 1); };
    for (int i = 0; i < 2; ++i) {
        const auto& tensor = whole.tensors()[static_cast<std::size_t>(i)];
        write_test_gguf(part_path(i), {tensors[static_cast<std::size_t>(i)]}, [&](gguf_context* context) {
            gguf_set_val_u16(context, "split.no", static_cast<std::uint16_t>(i));
            gguf_set_val_u16(context, "split.count", 2);
            gguf_set_val_i32(context, "split.tensors.count", 2);
        });
        auto bytes = read_file(part_path(i));
        const auto data = whole.data(tensor);
        std::memcpy(bytes.data() + bytes.size() - data.size(), data.data(), data.size());
        write_file_atomically(part_path(i), bytes);
    }
    EXPECT_EQ(GgufFile::open(part_path(0)).fingerprint(), whole.fingerprint());
}

TEST_F(SplitModel, says_what_does_not_fit) {
    EXPECT_THAT(error_of([&] { GgufFile::open(path(1)); }),
                AllOf(HasSubstr("number 2 of 3"), HasSubstr("00001-of-00003")));
    write(0, 0, 3, "blk.0.weight", 4);
    EXPECT_THAT(refusal(), AllOf(HasSubstr("announces 4 tensors"), HasSubstr("hold 3")));
    write(0, 0, 3, "blk.0.weight", 3);
    write(1, 2, 3, "blk.1.weight", 3);
    EXPECT_THAT(refusal(), AllOf(HasSubstr("00002-of-00003"), HasSubstr("number 2 of 3")));
    write(1, 1, 3, "blk.0.weight", 3);
    EXPECT_THAT(refusal(), HasSubstr("blk.0.weight is in another file"));
    std::filesystem::remove(path(1));
    EXPECT_THAT(refusal(), AllOf(HasSubstr("model-00002-of-00003.gguf is not there"), HasSubstr("fetch")));
    std::filesystem::copy_file(path(0), folder_ / "renamed.gguf");
    EXPECT_THAT(error_of([&] { GgufFile::open(folder_ / "renamed.gguf"); }), HasSubstr("names back"));
}

TEST(GgufFile, reads_what_llama_gguf_split_has_split) {
    if (!testing::have_referees()) GTEST_SKIP() << "llama.cpp's tools are not there (CEREBELLUM_REFEREE_BIN)";
    const TemporaryFolder folder;
    ASSERT_TRUE(testing::run_referee("llama-gguf-split",
                                     "--split --split-max-tensors 20 " + testing::quoted(small_model()) + " parts",
                                     folder.path()));
    const auto whole = GgufFile::open(small_model()), parts = GgufFile::open(folder / "parts-00001-of-00003.gguf");
    ASSERT_EQ(parts.tensors().size(), whole.tensors().size());
    for (const auto& tensor : whole.tensors()) {
        const TensorInfo* part = parts.find(tensor.name);
        ASSERT_NE(part, nullptr) << tensor.name;
        EXPECT_TRUE(std::ranges::equal(whole.data(tensor), parts.data(*part))) << tensor.name;
    }
}

TEST(GgufFile, says_that_a_file_became_shorter) {
    const TemporaryFolder folder;
    const auto path = folder / "shrinking.gguf";
    std::filesystem::copy_file(small_model(), path);
    const auto file = GgufFile::open(path);
    const auto& last = file.tensors().back();
    std::filesystem::resize_file(path, last.file_offset + last.size_bytes / 2);
    std::vector<std::byte> bytes(last.size_bytes);
    EXPECT_THAT(error_of([&] { file.read(last, 0, bytes); }), AllOf(HasSubstr(last.name), HasSubstr("shorter")));
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
