#include "cerebellum/build/build_gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <random>

#include "cerebellum/build/preset_recipe.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/gguf/gguf_support_test.h"
#include "cerebellum/llama/log.h"
#include "cerebellum/quantize/quantize_tensor.h"
#include "cerebellum/replay/replay_support_test.h"

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
    options.chunk_bytes = 5000;
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

TEST_F(BuiltFromTheEmbeddedModel, names_no_folder_of_this_machine_unless_the_bytes_are_llama_quantize_s) {
    auto imatrix = synthetic_imatrix(source_);
    imatrix.datasets = {"/home/me/texts/train.txt"};
    options_.imatrix_file = "/home/me/" + std::string(150, 'd') + "/model.imatrix.gguf";
    options_.overwrite = true;
    const Recipe recipe = mixed_recipe(source_, 0);
    for (const auto provenance : {Provenance::full, Provenance::imatrix}) {
        options_.provenance = provenance;
        const auto bytes = build_gguf(source_, recipe, &imatrix, folder_ / "out.gguf", options_, progress_);
        EXPECT_EQ(bytes, predicted_file_bytes(source_, recipe.types, imatrix_info(imatrix, options_.imatrix_file),
                                              provenance));
        const auto built = GgufFile::open(folder_ / "out.gguf");
        const bool whole = provenance == Provenance::imatrix;
        EXPECT_EQ(built.string_value("quantize.imatrix.file"),
                  whole ? options_.imatrix_file.substr(0, 127) : "model.imatrix.gguf");
        EXPECT_EQ(built.string_value("quantize.imatrix.dataset"), whole ? imatrix.datasets.front() : "train.txt");
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

/// All files of a folder, by name.
std::map<std::string, std::string> files_of(const std::filesystem::path& folder) {
    std::map<std::string, std::string> files;
    for (const auto& entry : std::filesystem::directory_iterator(folder))
        files[entry.path().filename().string()] = read_file(entry.path());
    return files;
}

TEST_F(BuiltFromTheEmbeddedModel, is_split_into_files_of_at_most_that_size) {
    Recipe recipe = mixed_recipe(source_, 0);
    std::erase_if(recipe.types, [](auto& each) { return type_needs_imatrix(each.second.type); });
    build_gguf(source_, recipe, nullptr, folder_ / "whole.gguf", options_, progress_);
    const auto whole = GgufFile::open(folder_ / "whole.gguf");
    options_.split_bytes = 1500000;
    const auto planned = plan_build(source_, recipe, nullptr, folder_ / "out.gguf", options_);
    ASSERT_GT(planned.size(), 2u);
    const auto bytes = build_gguf(source_, recipe, nullptr, folder_ / "out.gguf", options_, progress_);
    const auto built = GgufFile::open(planned.front().path);
    EXPECT_EQ(built.file_size(), bytes);
    ASSERT_EQ(built.paths().size(), planned.size());
    for (std::size_t i = 0; i < planned.size(); ++i) {
        EXPECT_EQ(built.paths()[i], planned[i].path);
        EXPECT_EQ(std::filesystem::file_size(planned[i].path), planned[i].bytes);
        EXPECT_LE(planned[i].bytes, options_.split_bytes);
    }
    for (const auto& tensor : whole.tensors())
        EXPECT_TRUE(std::ranges::equal(whole.data(tensor), built.data(*built.find(tensor.name)))) << tensor.name;
    EXPECT_EQ(built.string_value("general.name"), whole.string_value("general.name"));
    // And back: a split source makes the same whole file.
    BuildOptions back;
    back.provenance = Provenance::none;
    build_gguf(built, {}, nullptr, folder_ / "joined.gguf", back, progress_);
    build_gguf(whole, {}, nullptr, folder_ / "again.gguf", back, progress_);
    EXPECT_TRUE(read_file(folder_ / "joined.gguf") == read_file(folder_ / "again.gguf"));
}

TEST_F(BuiltFromTheEmbeddedModel, gives_a_tensor_that_is_too_large_a_file_of_its_own) {
    options_.split_bytes = 100000;
    const auto planned = plan_build(source_, {}, nullptr, folder_ / "out.gguf", options_);
    int alone = 0;
    for (const auto& file : planned) {
        EXPECT_FALSE(file.tensors.empty());
        if (file.bytes <= options_.split_bytes) continue;
        EXPECT_EQ(file.tensors.size(), 1u) << file.path;
        ++alone;
    }
    EXPECT_GT(alone, 2);
}

TEST_F(BuiltFromTheEmbeddedModel, equals_llama_quantize_and_llama_gguf_split_in_split_files) {
    if (!have_referees()) GTEST_SKIP() << "llama.cpp's tools are not there (CEREBELLUM_REFEREE_BIN)";
    ASSERT_TRUE(run_referee("llama-gguf-split", "--split --split-max-tensors 20 " + quoted(small_model()) + " source",
                            folder_.path()));
    const auto split = GgufFile::open(folder_ / "source-00001-of-00003.gguf");
    std::filesystem::create_directories(folder_ / "theirs");
    std::filesystem::create_directories(folder_ / "ours");
    ASSERT_TRUE(run_referee("llama-quantize", "--keep-split source-00001-of-00003.gguf theirs/out.gguf Q4_K_M 1",
                            folder_.path()));
    auto preset = preset_recipe(split, "q4_k_m", false);
    options_.file_type = preset.file_type;
    options_.tensor_order = preset.order;
    options_.provenance = Provenance::imatrix;
    options_.keep_split = true;
    build_gguf(split, preset.recipe, nullptr, folder_ / "ours" / "out.gguf", options_, progress_);
    EXPECT_TRUE(files_of(folder_ / "theirs") == files_of(folder_ / "ours"));
    EXPECT_EQ(files_of(folder_ / "ours").size(), 3u);

    ASSERT_TRUE(run_referee("llama-quantize", "source-00001-of-00003.gguf theirs.gguf Q4_K_M 1", folder_.path()));
    options_.keep_split = false;
    build_gguf(split, preset.recipe, nullptr, folder_ / "ours.gguf", options_, progress_);
    EXPECT_TRUE(read_file(folder_ / "ours.gguf") == read_file(folder_ / "theirs.gguf"));
}

TEST_F(BuiltFromTheEmbeddedModel, replaces_a_split_model_as_a_whole) {
    options_.split_bytes = 5000000;
    build_gguf(source_, {}, nullptr, folder_ / "out.gguf", options_, progress_);
    const auto first = files_of(folder_.path());
    EXPECT_THROW(build_gguf(source_, {}, nullptr, folder_ / "out.gguf", options_, progress_), Error);
    EXPECT_TRUE(files_of(folder_.path()) == first);
    options_.overwrite = true;
    options_.provenance = Provenance::none;
    build_gguf(source_, {}, nullptr, folder_ / "out.gguf", options_, progress_);
    EXPECT_EQ(files_of(folder_.path()).size(), first.size());
    EXPECT_EQ(GgufFile::open(folder_.path() / first.begin()->first).string_value("cerebellum.version"), std::nullopt);
}

TEST_F(BuiltFromTheEmbeddedModel, warns_of_what_is_rounded_a_second_time) {
    Recipe recipe;
    for (const auto* name : {"blk.0.ffn_up.weight", "blk.1.ffn_up.weight"}) recipe.types[name] = GGML_TYPE_Q8_0;
    EXPECT_EQ(requantization_warning(source_, recipe.types), "");
    build_gguf(source_, recipe, nullptr, folder_ / "q8.gguf", options_, progress_);
    const auto quantized = GgufFile::open(folder_ / "q8.gguf");
    EXPECT_EQ(requantization_warning(quantized, {}), "");
    recipe.types["blk.0.ffn_up.weight"] = GGML_TYPE_Q4_0;
    EXPECT_THAT(requantization_warning(quantized, recipe.types),
                AllOf(HasSubstr("1 in q8_0"), HasSubstr("second time")));
}

TEST_F(BuiltFromTheEmbeddedModel, keeps_what_a_preset_is_told_to_keep) {
    auto preset = preset_recipe(source_, "Q4_0", false);
    EXPECT_EQ(preset_file_type(preset.recipe), preset.file_type);
    EXPECT_EQ(preset_file_type({}), std::nullopt);
    keep_tensors(preset.recipe, source_, {"blk.0.*", "output.weight"});
    const auto types = complete_types(source_, preset.recipe.types);
    EXPECT_EQ(types.at("blk.0.ffn_up.weight"), GGML_TYPE_F16);
    EXPECT_EQ(types.at("output.weight"), GGML_TYPE_F16);
    EXPECT_EQ(types.at("blk.1.ffn_up.weight"), GGML_TYPE_Q4_0);
    EXPECT_THAT(error_of([&] { keep_tensors(preset.recipe, source_, {"blk.77.*"}); }), HasSubstr("blk.77.*"));
    EXPECT_THAT(error_of([&] { preset_recipe(source_, "Q9_K", false); }),
                AllOf(HasSubstr("Q9_K"), HasSubstr("Q4_K_M")));
    EXPECT_THAT(error_of([&] { preset_recipe(source_, "IQ2_XXS", false); }), HasSubstr("--imatrix"));
    EXPECT_EQ(preset_recipe(source_, "IQ2_XXS", true).recipe.types.at("blk.1.ffn_up.weight"), GGML_TYPE_IQ2_XXS);
}

TEST(PresetRecipe, knows_the_blocks_that_predict_further_tokens) {
    const TemporaryFolder folder;
    write_test_gguf(folder / "mtp.gguf",
                    {{"blk.0.attn_q.weight", GGML_TYPE_F32, {32, 32, 1, 1}},
                     {"blk.1.attn_q.weight", GGML_TYPE_F32, {32, 32, 1, 1}},
                     {"blk.1.nextn.eh_proj.weight", GGML_TYPE_F32, {64, 32, 1, 1}},
                     {"blk.x.weight", GGML_TYPE_F32, {32, 1, 1, 1}}},
                    [](gguf_context* context) {
                        gguf_set_val_u32(context, "llama.block_count", 2);
                        gguf_set_val_u32(context, "llama.nextn_predict_layers", 1);
                    });
    EXPECT_THAT(mtp_tensors(GgufFile::open(folder / "mtp.gguf")),
                ::testing::ElementsAre("blk.1.attn_q.weight", "blk.1.nextn.eh_proj.weight"));
    EXPECT_TRUE(mtp_tensors(GgufFile::open(small_model())).empty());
}

/// Moments of inputs that hang together, different for every matrix.
std::vector<float> some_moments(std::int64_t n_cols, std::int64_t matrix) {
    std::vector<float> moments;
    for (std::int64_t i = 0; i < n_cols; ++i)
        for (std::int64_t j = 0; j <= i; ++j)
            moments.push_back((i == j ? 1.0f : 0.0f) +
                              0.9f * std::pow(0.8f + 0.05f * static_cast<float>(matrix), static_cast<float>(i - j)));
    return moments;
}

TEST(BuildWithFeedback, rounds_each_matrix_with_its_own_moments_however_the_work_is_cut) {
    const TemporaryFolder folder;
    write_test_gguf(folder / "moe.gguf",
                    {{"blk.0.ffn_up_exps.weight", GGML_TYPE_F16, {256, 37, 3, 1}},
                     {"blk.0.attn_q.weight", GGML_TYPE_F16, {512, 50, 1, 1}},
                     {"blk.0.attn_k.weight", GGML_TYPE_F16, {512, 20, 1, 1}}},
                    [](gguf_context*) {});
    const auto source = GgufFile::open(folder / "moe.gguf");
    Recipe recipe;
    recipe.types = {{"blk.0.ffn_up_exps.weight", {GGML_TYPE_Q3_K, Rounding::feedback}},
                    {"blk.0.attn_q.weight", {GGML_TYPE_Q4_0, Rounding::feedback}},
                    {"blk.0.attn_k.weight", GGML_TYPE_Q4_0}};
    NoProgress progress;
    BuildOptions options;
    EXPECT_THAT(error_of([&] { build_gguf(source, recipe, nullptr, folder / "x.gguf", options, progress); }),
                AllOf(HasSubstr("blk.0."), HasSubstr("--moments")));
    EXPECT_FALSE(std::filesystem::exists(folder / "x.gguf"));
    options.moments = [&](const std::string& weight, std::int64_t matrix) {
        return some_moments(source.find(weight)->row_length(), matrix);
    };
    std::string first;
    for (const int threads : {1, 3})
        for (const std::uint64_t chunk_bytes : {1000ULL, 9000ULL, 4ULL << 20}) {
            options.threads = threads;
            options.chunk_bytes = chunk_bytes;
            options.overwrite = true;
            build_gguf(source, recipe, nullptr, folder / "out.gguf", options, progress);
            const auto bytes = read_file(folder / "out.gguf");
            if (first.empty()) first = bytes;
            EXPECT_EQ(bytes == first, true) << threads << " threads, chunks of " << chunk_bytes;
        }
    const auto built = GgufFile::open(folder / "out.gguf");
    FeedbackRounder rounder(options.moments, 1);
    for (const auto& tensor : source.tensors()) {
        const auto wanted = recipe.types.at(tensor.name);
        const auto plain = quantize_tensor(tensor, source.data(tensor), wanted.type, {}, 1);
        auto improved = plain;
        if (wanted.rounding == Rounding::feedback) {
            rounder.improve_rows(tensor, source.data(tensor), wanted.type, 0, improved);
            EXPECT_NE(improved, plain) << tensor.name;
        }
        EXPECT_TRUE(std::ranges::equal(built.data(*built.find(tensor.name)), improved)) << tensor.name;
    }
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

TEST_F(BuiltFromTheEmbeddedModel, computes_the_same_with_scaled_channels) {
    Recipe recipe;
    recipe.source_fingerprint = source_.fingerprint();
    ChannelScaling scaling{"blk.1.ffn_norm.weight", {}, {"blk.1.ffn_gate.weight", "blk.1.ffn_up.weight"}, {}};
    for (std::int64_t i = 0; i < source_.find(scaling.producer)->row_length(); ++i)
        scaling.exponents.push_back(static_cast<std::int8_t>(i % 5 - 2));
    recipe.scaling = {scaling};
    options_.chunk_bytes = 3000;
    build_gguf(source_, recipe, nullptr, folder_ / "scaled.gguf", options_, progress_);
    const auto scaled = GgufFile::open(folder_ / "scaled.gguf");
    for (const auto& tensor : scaled.tensors()) {
        const bool touched = tensor.name == scaling.producer || std::ranges::count(scaling.readers, tensor.name) > 0;
        EXPECT_EQ(!touched, std::ranges::equal(scaled.data(tensor), source_.data(*source_.find(tensor.name))))
            << tensor.name;
    }
    silence_llama_log();
    const auto original = Model::load(source_.path()), copy = Model::load(folder_ / "scaled.gguf");
    const auto tokens = testing::random_tokens(original, 24, 2);
    // But for weights that become subnormal in F16.
    EXPECT_LT(testing::largest_change(testing::decode(original, tokens), testing::decode(copy, tokens)), 1e-2);

    recipe.scaling.front().readers.emplace_back("blk.9.ffn_up.weight");
    EXPECT_THAT(error_of([&] { check_recipe(source_, recipe, nullptr); }), HasSubstr("blk.9.ffn_up.weight"));
}

TEST_F(BuiltFromTheEmbeddedModel, leaves_nothing_behind_when_stopped) {
    StopsAfter progress(20);
    EXPECT_THROW(build_gguf(source_, {}, nullptr, folder_ / "out.gguf", options_, progress), Interrupted);
    EXPECT_TRUE(std::filesystem::is_empty(folder_.path()));
}

}  // namespace
}  // namespace cerebellum
