#include "cerebellum/build/build_gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "cerebellum/core/quant_type.h"
#include "cerebellum/gguf/gguf_support_test.h"

namespace cerebellum {
namespace {

using ::testing::AllOf;
using testing::error_of;
using ::testing::HasSubstr;
using testing::have_referees;
using testing::quoted;
using testing::run_referee;
using testing::small_model;
using testing::TemporaryFolder;
using testing::write_test_gguf;

/// Weights for every matrix but the token embedding, which llama-imatrix never sees.
Imatrix synthetic_imatrix(const GgufFile& source) {
    Imatrix imatrix;
    imatrix.datasets = {"some text.txt"};
    imatrix.chunk_count = 4;
    imatrix.chunk_size = 64;
    std::mt19937 random(5);
    std::gamma_distribution<float> gamma(0.5f, 100.0f);
    for (const auto& tensor : source.tensors()) {
        if (tensor.n_dims < 2 || tensor.name == "token_embd.weight") continue;
        ImatrixEntry entry;
        entry.n_cols = tensor.row_length();
        entry.counts.assign(static_cast<std::size_t>(tensor.shape[2]), 256.0f);
        if (tensor.shape[2] > 1) entry.counts.back() = 0.0f;  // an expert that no token reached
        entry.in_sum2.resize(static_cast<std::size_t>(entry.n_cols * tensor.shape[2]));
        for (float& value : entry.in_sum2) value = gamma(random);
        imatrix.entries[tensor.name] = std::move(entry);
    }
    return imatrix;
}

/// Types dealt round robin over the matrices that llama-quantize would quantize.
Recipe mixed_recipe(const GgufFile& source, std::size_t first) {
    auto types = default_types();
    types.insert(types.end(), {GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_F32});
    Recipe recipe;
    recipe.source_fingerprint = source.fingerprint();
    recipe.source_name = source.path().filename().string();
    std::size_t next = first;
    for (const auto& tensor : source.tensors()) {
        if (tensor.n_dims < 2 || !tensor.name.ends_with("weight") || tensor.name.find("_norm.") != std::string::npos ||
            tensor.name.find("ffn_gate_inp") != std::string::npos)
            continue;
        ggml_type type = types[next++ % types.size()];
        if (tensor.name == "token_embd.weight" && type_needs_imatrix(type)) type = GGML_TYPE_IQ3_S;
        if (type_fits_row(type, tensor.row_length())) recipe.types[tensor.name] = type;
    }
    return recipe;
}

/// Builds with us and with llama-quantize and compares all tensors.
void expect_same_as_llama_quantize(const GgufFile& source, const Recipe& recipe, const Imatrix& imatrix,
                                   const TemporaryFolder& folder) {
    write_imatrix(folder / "imatrix.gguf", imatrix);
    write_file_atomically(folder / "types.txt", tensor_type_file(complete_types(source, recipe.types)));
    ASSERT_TRUE(run_referee("llama-quantize",
                            "--allow-requantize --imatrix imatrix.gguf --tensor-type-file types.txt " +
                                quoted(source.path()) + " theirs.gguf Q8_0 2",
                            folder.path()));
    BuildOptions options;
    options.threads = 2;
    options.overwrite = true;
    options.imatrix_file = "imatrix.gguf";
    options.slab_bytes = 5000;
    NoProgress progress;
    const auto size = build_gguf(source, recipe, &imatrix, folder / "ours.gguf", options, progress);
    EXPECT_EQ(size, std::filesystem::file_size(folder / "ours.gguf"));
    EXPECT_EQ(size, predicted_file_bytes(source, recipe.types, imatrix_info(imatrix, options.imatrix_file)));
    const auto ours = GgufFile::open(folder / "ours.gguf"), theirs = GgufFile::open(folder / "theirs.gguf");
    ASSERT_EQ(ours.tensors().size(), theirs.tensors().size());
    for (const auto& tensor : ours.tensors()) {
        const TensorInfo* other = theirs.find(tensor.name);
        ASSERT_NE(other, nullptr) << tensor.name;
        EXPECT_EQ(tensor.type, other->type) << tensor.name;
        EXPECT_EQ(tensor.shape, other->shape) << tensor.name;
        EXPECT_TRUE(std::ranges::equal(ours.data(tensor), theirs.data(*other)))
            << tensor.name << " " << type_name(tensor.type);
    }
    // Every key of theirs, with its value, is in ours as well; the file type is theirs to choose.
    for (std::int64_t id = 0; id < gguf_get_n_kv(theirs.context()); ++id) {
        const std::string key = gguf_get_key(theirs.context(), id);
        const auto our_id = gguf_find_key(ours.context(), key.c_str());
        ASSERT_GE(our_id, 0) << key;
        const auto type = gguf_get_kv_type(theirs.context(), id);
        ASSERT_EQ(type, gguf_get_kv_type(ours.context(), our_id)) << key;
        if (type == GGUF_TYPE_ARRAY) {
            EXPECT_EQ(gguf_get_arr_n(theirs.context(), id), gguf_get_arr_n(ours.context(), our_id)) << key;
            EXPECT_EQ(theirs.string_array(key), ours.string_array(key)) << key;
        } else if (key != "general.file_type") {
            EXPECT_EQ(theirs.string_value(key), ours.string_value(key)) << key;
            EXPECT_EQ(theirs.uint_value(key), ours.uint_value(key)) << key;
        }
    }
}

TEST(BuildGguf, equals_llama_quantize_in_every_type) {
    if (!have_referees()) GTEST_SKIP() << "llama.cpp's tools are not there (CEREBELLUM_REFEREE_BIN)";
    const auto source = GgufFile::open(small_model());
    const auto imatrix = synthetic_imatrix(source);
    const TemporaryFolder folder;
    expect_same_as_llama_quantize(source, mixed_recipe(source, 0), imatrix, folder);
}

TEST(BuildGguf, equals_llama_quantize_for_experts) {
    if (!have_referees()) GTEST_SKIP() << "llama.cpp's tools are not there (CEREBELLUM_REFEREE_BIN)";
    const TemporaryFolder folder;
    const auto model = folder / "experts.gguf";
    write_test_gguf(model,
                    {{"token_embd.weight", GGML_TYPE_F16, {256, 64, 1, 1}},
                     {"output.weight", GGML_TYPE_BF16, {256, 64, 1, 1}},
                     {"output_norm.weight", GGML_TYPE_F32, {256, 1, 1, 1}},
                     {"blk.0.attn_q.weight", GGML_TYPE_F32, {256, 256, 1, 1}},
                     {"blk.0.attn_k.weight", GGML_TYPE_Q4_1, {256, 256, 1, 1}},
                     {"blk.0.ffn_gate_inp.weight", GGML_TYPE_F32, {256, 3, 1, 1}},
                     {"blk.0.ffn_up_exps.weight", GGML_TYPE_F16, {256, 32, 3, 1}},
                     {"blk.0.ffn_gate_exps.weight", GGML_TYPE_BF16, {256, 32, 3, 1}},
                     {"blk.0.ffn_down_exps.weight", GGML_TYPE_F32, {32, 256, 3, 1}}},
                    [](gguf_context* context) {
                        for (const auto& [key, value] : {std::pair("context_length", 64u),
                                                         {"embedding_length", 256u},
                                                         {"block_count", 1u},
                                                         {"feed_forward_length", 32u},
                                                         {"attention.head_count", 4u},
                                                         {"expert_count", 3u},
                                                         {"expert_used_count", 2u},
                                                         {"vocab_size", 64u}})
                            gguf_set_val_u32(context, ("llama." + std::string(key)).c_str(), value);
                        gguf_set_val_f32(context, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
                        gguf_set_val_str(context, "tokenizer.ggml.model", "no_vocab");
                    });
    const auto source = GgufFile::open(model);
    const auto imatrix = synthetic_imatrix(source);
    for (const std::size_t first : {0u, 6u, 12u, 18u})
        expect_same_as_llama_quantize(source, mixed_recipe(source, first), imatrix, folder);
}

class BuiltFromTheEmbeddedModel : public ::testing::Test {
  protected:
    GgufFile source_ = GgufFile::open(small_model());
    TemporaryFolder folder_;
    NoProgress progress_;
    BuildOptions options_;
};

TEST_F(BuiltFromTheEmbeddedModel, has_the_predicted_size_for_any_recipe) {
    const auto imatrix = synthetic_imatrix(source_);
    options_.overwrite = true;
    for (std::size_t first = 0; first < 2; ++first) {
        Recipe recipe = mixed_recipe(source_, first * 5);
        recipe.provenance["note"] = std::string(first * 10, 'x');
        for (const Imatrix* used : {static_cast<const Imatrix*>(nullptr), &imatrix}) {
            if (used == nullptr)
                std::erase_if(recipe.types, [](auto& each) { return type_needs_imatrix(each.second.type); });
            const auto info = used == nullptr ? std::nullopt : std::optional(imatrix_info(*used, ""));
            build_gguf(source_, recipe, used, folder_ / "out.gguf", options_, progress_);
            const auto real = std::filesystem::file_size(folder_ / "out.gguf");
            EXPECT_EQ(predicted_file_bytes(source_, recipe.types, info), real);
            std::uint64_t sum = fixed_bytes(source_, info);
            const auto built = GgufFile::open(folder_ / "out.gguf");
            for (const auto& tensor : built.tensors()) sum += tensor_bytes(tensor, tensor.type);
            EXPECT_EQ(sum, real);
        }
    }
}

TEST_F(BuiltFromTheEmbeddedModel, says_nothing_of_its_origin_when_told_so) {
    const auto imatrix = synthetic_imatrix(source_);
    options_.provenance = Provenance::none;
    const Recipe recipe = mixed_recipe(source_, 0);
    build_gguf(source_, recipe, &imatrix, folder_ / "out.gguf", options_, progress_);
    const auto built = GgufFile::open(folder_ / "out.gguf");
    EXPECT_EQ(built.file_size(),
              predicted_file_bytes(source_, recipe.types, imatrix_info(imatrix, "x"), Provenance::none));
    EXPECT_EQ(built.string_value("cerebellum.version"), std::nullopt);
    EXPECT_EQ(built.string_value("quantize.imatrix.file"), std::nullopt);
}

TEST_F(BuiltFromTheEmbeddedModel, carries_provenance_and_order) {
    Recipe recipe;
    recipe.types["blk.3.ffn_up.weight"] = GGML_TYPE_Q4_K;
    options_.tensor_order = {"blk.5.ffn_up.weight", "token_embd.weight"};
    build_gguf(source_, recipe, nullptr, folder_ / "out.gguf", options_, progress_);
    const auto built = GgufFile::open(folder_ / "out.gguf");
    EXPECT_EQ(built.tensors()[0].name, "blk.5.ffn_up.weight");
    EXPECT_EQ(built.tensors()[1].name, "token_embd.weight");
    EXPECT_EQ(built.tensors().size(), source_.tensors().size());
    EXPECT_EQ(built.string_value("cerebellum.source_fingerprint"), source_.fingerprint());
    EXPECT_EQ(built.string_value("cerebellum.recipe_sha256"), recipe_sha256(recipe));
    EXPECT_EQ(built.uint_value("general.file_type"), 15u);
    EXPECT_EQ(built.uint_value("quantize.imatrix.entries_count"), std::nullopt);
    for (const auto& tensor : source_.tensors()) {
        if (tensor.name == "blk.3.ffn_up.weight") continue;
        const TensorInfo* copy = built.find(tensor.name);
        ASSERT_NE(copy, nullptr);
        EXPECT_TRUE(std::ranges::equal(source_.data(tensor), built.data(*copy))) << tensor.name;
    }
    // A file we built is a source like any other.
    build_gguf(built, {}, nullptr, folder_ / "again.gguf", {}, progress_);
    EXPECT_EQ(GgufFile::open(folder_ / "again.gguf").string_value("cerebellum.source_fingerprint"),
              built.fingerprint());
}

TEST_F(BuiltFromTheEmbeddedModel, drops_an_alignment_it_does_not_keep) {
    write_test_gguf(folder_ / "aligned.gguf", {{"a.weight", GGML_TYPE_F32, {32, 1, 1, 1}}},
                    [](gguf_context* context) { gguf_set_val_u32(context, "general.alignment", 8); });
    const auto aligned = GgufFile::open(folder_ / "aligned.gguf");
    EXPECT_EQ(aligned.alignment(), 8u);
    build_gguf(aligned, {}, nullptr, folder_ / "out.gguf", {}, progress_);
    const auto built = GgufFile::open(folder_ / "out.gguf");
    EXPECT_EQ(built.alignment(), 32u);
    EXPECT_TRUE(std::ranges::equal(built.data(built.tensors()[0]), aligned.data(aligned.tensors()[0])));
}

TEST_F(BuiltFromTheEmbeddedModel, names_the_first_offender) {
    const auto refusal = [&](const Recipe& recipe, const Imatrix* imatrix) {
        std::string text =
            error_of([&] { build_gguf(source_, recipe, imatrix, folder_ / "out.gguf", options_, progress_); });
        EXPECT_TRUE(std::filesystem::is_empty(folder_.path()));
        return text;
    };
    Recipe recipe;
    recipe.types["blk.77.ffn_up.weight"] = GGML_TYPE_Q4_K;
    EXPECT_THAT(refusal(recipe, nullptr), HasSubstr("blk.77.ffn_up.weight"));
    recipe.types = {{"blk.0.ffn_up.weight", GGML_TYPE_IQ2_XXS}};
    EXPECT_THAT(refusal(recipe, nullptr), AllOf(HasSubstr("blk.0.ffn_up.weight"), HasSubstr("iq2_xxs")));
    recipe.types = {{"blk.0.ffn_up.weight", GGML_TYPE_Q8_K}};
    EXPECT_THAT(refusal(recipe, nullptr), HasSubstr("q8_K"));
    recipe.types = {};
    recipe.source_fingerprint = std::string(64, '0');
    EXPECT_THAT(refusal(recipe, nullptr), AllOf(HasSubstr("000000000000..."), HasSubstr(small_model().string())));
    recipe.source_fingerprint.clear();
    recipe.types = {{"blk.0.ffn_up.weight", GGML_TYPE_Q4_K}};
    auto imatrix = synthetic_imatrix(source_);
    imatrix.entries["blk.0.ffn_up.weight"] = imatrix.entries["blk.0.ffn_down.weight"];
    EXPECT_THAT(refusal(recipe, &imatrix), HasSubstr("blk.0.ffn_up.weight has 768 columns"));
    options_.tensor_order = {"nothing"};
    EXPECT_THAT(refusal(recipe, nullptr), HasSubstr("nothing"));
    options_.tensor_order = {"output.weight", "output.weight"};
    EXPECT_THAT(refusal(recipe, nullptr), HasSubstr("twice"));
}

TEST_F(BuiltFromTheEmbeddedModel, refuses_rows_that_do_not_fit) {
    write_test_gguf(folder_ / "odd.gguf", {{"a.weight", GGML_TYPE_F32, {96, 4, 1, 1}}}, [](gguf_context*) {});
    const auto odd = GgufFile::open(folder_ / "odd.gguf");
    Recipe recipe;
    recipe.types["a.weight"] = GGML_TYPE_Q4_K;
    EXPECT_THAT(error_of([&] { build_gguf(odd, recipe, nullptr, folder_ / "out.gguf", options_, progress_); }),
                AllOf(HasSubstr("a.weight"), HasSubstr("no multiple of 256")));
    EXPECT_THROW(tensor_bytes(odd.tensors()[0], GGML_TYPE_Q4_K), Error);
}

TEST_F(BuiltFromTheEmbeddedModel, never_overwrites_by_accident) {
    write_file_atomically(folder_ / "out.gguf", "precious");
    EXPECT_THROW(build_gguf(source_, {}, nullptr, folder_ / "out.gguf", options_, progress_), Error);
    EXPECT_EQ(read_file(folder_ / "out.gguf"), "precious");
    options_.overwrite = true;
    std::filesystem::copy_file(small_model(), folder_ / "source.gguf");
    const auto source = GgufFile::open(folder_ / "source.gguf");
    EXPECT_THAT(error_of([&] { build_gguf(source, {}, nullptr, folder_ / "source.gguf", options_, progress_); }),
                HasSubstr("source itself"));
}

class StopsAfter final : public Progress {
  public:
    explicit StopsAfter(int calls) : calls_(calls) {}
    ~StopsAfter() override { stop_requested = false; }
    void begin(std::string_view, double) override {}
    void advance(double, std::string_view) override {
        if (--calls_ == 0) stop_requested = true;
    }
    void end() override {}
    void warn(std::string_view) override {}
    void info(std::string_view) override {}
    void detail(std::string_view) override {}

  private:
    int calls_;
};

TEST_F(BuiltFromTheEmbeddedModel, leaves_nothing_behind_when_stopped) {
    StopsAfter progress(20);
    EXPECT_THROW(build_gguf(source_, {}, nullptr, folder_ / "out.gguf", options_, progress), Interrupted);
    EXPECT_TRUE(std::filesystem::is_empty(folder_.path()));
}

}  // namespace
}  // namespace cerebellum
