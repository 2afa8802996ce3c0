#include "cerebellum/pipeline/import_allocation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "cerebellum/build/build_gguf.h"
#include "cerebellum/gguf/gguf_support_test.h"
#include "cerebellum/predict/transfer.h"

namespace cerebellum {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using testing::error_of;
using ::testing::HasSubstr;

constexpr std::int64_t row = 256;

TensorInfo tensor(const std::string& name, ggml_type type, std::int64_t rows = 64) {
    TensorInfo info;
    info.name = name;
    info.type = type;
    const std::int64_t shape[] = {row, rows};
    set_shape(info, shape);
    info.size_bytes = type_size_bytes(type, row, rows);
    return info;
}

/// Four matrices of a model in BF16, two of them measured, and a norm.
ImportedModel high_precision() {
    TensorList list{"model", {}};
    for (const auto* name : {"blk.0.a.weight", "blk.1.a.weight", "blk.1.b.weight", "output.weight"})
        list.tensors.push_back(tensor(name, GGML_TYPE_BF16));
    list.tensors.push_back(tensor("blk.0.norm.weight", GGML_TYPE_F32, 1));
    return imported_model(std::move(list));
}

DamageTable table(Metric metric, const std::vector<std::pair<std::string, double>>& figures, const char* type) {
    DamageTable result;
    result.origin = "r.csv";
    result.metric = metric;
    for (const auto& [name, value] : figures) {
        DamageRow entry;
        entry.tensor = name;
        entry.type = type;
        entry.where = "row 2";
        (metric == Metric::kld ? entry.kld : entry.delta_nll) = value;
        result.rows.push_back(entry);
    }
    return result;
}

std::uint64_t bytes(const ImportedModel& model, const TypeMap& types) {
    std::uint64_t sum = model.fixed_bytes;
    for (const auto& t : model.base.tensors) sum += tensor_bytes(t, types.at(t.name).type);
    return sum;
}

TEST(ImportedAllocation, spends_bytes_where_the_figures_are_large) {
    const auto model = high_precision();
    const auto imported = table(Metric::kld, {{"blk.0.a.weight", 0.001}, {"blk.1.a.weight", 0.1}}, "q2_K");
    const auto all = bytes(model, [&] {
        TypeMap types;
        for (const auto& t : model.base.tensors) types[t.name] = t.type;
        return types;
    }());
    ImportOptions options;
    options.budget_bytes = all - 2 * row * 64;  // one matrix of the two less
    const auto result = allocate_imported(imported, model, options);
    EXPECT_LE(result.recipe.file_bytes, options.budget_bytes);
    EXPECT_EQ(result.recipe.file_bytes, bytes(model, result.recipe.types));
    EXPECT_LT(bits_per_weight(result.recipe.types.at("blk.0.a.weight").type),
              bits_per_weight(result.recipe.types.at("blk.1.a.weight").type));
    // What nobody measured keeps its type.
    EXPECT_EQ(result.recipe.types.at("output.weight"), GGML_TYPE_BF16);
    EXPECT_EQ(result.recipe.types.at("blk.0.norm.weight"), GGML_TYPE_F32);
    EXPECT_THAT(result.unmeasured, ElementsAre("blk.1.b.weight", "output.weight"));
    EXPECT_EQ(result.measured, 2U);
    EXPECT_GE(result.recipe.predicted_kld, 0.0);
}

TEST(ImportedAllocation, predicts_what_was_measured_in_the_measured_type) {
    const auto model = high_precision();
    const auto imported = table(Metric::kld, {{"blk.0.a.weight", 0.02}, {"blk.1.a.weight", 0.03}}, "q2_K");
    ImportOptions options;
    options.types = {GGML_TYPE_Q2_K};
    options.budget_bytes = bytes(model, {{"blk.0.a.weight", GGML_TYPE_Q2_K},
                                         {"blk.1.a.weight", GGML_TYPE_Q2_K},
                                         {"blk.1.b.weight", GGML_TYPE_BF16},
                                         {"output.weight", GGML_TYPE_BF16},
                                         {"blk.0.norm.weight", GGML_TYPE_F32}});
    EXPECT_NEAR(allocate_imported(imported, model, options).recipe.predicted_kld, 0.05, 1e-12);
    options.budget_bytes -= 1;
    EXPECT_THAT(error_of([&] { allocate_imported(imported, model, options); }), HasSubstr("too small"));
}

TEST(ImportedAllocation, offers_nothing_below_the_smallest_measured_type_nor_what_needs_a_matrix) {
    const auto model = high_precision();
    for (const auto* type : {"iq3_s", "iq1_kt"}) {
        const auto imported = table(Metric::kld, {{"blk.0.a.weight", 0.0}, {"blk.1.a.weight", 0.0}}, type);
        ImportOptions options;
        options.budget_bytes = std::uint64_t{1} << 40;
        const auto result = allocate_imported(imported, model, options);
        // No damage anywhere: of equal costs the smallest, so what is chosen is as small as anything that is offered.
        EXPECT_EQ(bits_per_weight(result.recipe.types.at("blk.0.a.weight").type),
                  bits_per_weight(std::string(type) == "iq3_s" ? GGML_TYPE_IQ3_S : GGML_TYPE_Q2_K))
            << type;
    }
}

TEST(ImportedAllocation, extrapolates_from_the_block_when_told_to) {
    const auto model = high_precision();
    const auto imported = table(Metric::kld, {{"blk.0.a.weight", 0.001}, {"blk.1.a.weight", 0.1}}, "q2_K");
    ImportOptions options;
    options.extrapolate_layer = true;
    options.types = {GGML_TYPE_Q2_K};
    options.budget_bytes = bytes(model, {{"blk.0.a.weight", GGML_TYPE_Q2_K},
                                         {"blk.1.a.weight", GGML_TYPE_Q2_K},
                                         {"blk.1.b.weight", GGML_TYPE_Q2_K},
                                         {"output.weight", GGML_TYPE_BF16},
                                         {"blk.0.norm.weight", GGML_TYPE_F32}});
    const auto result = allocate_imported(imported, model, options);
    EXPECT_THAT(result.extrapolated, ElementsAre("blk.1.b.weight"));
    EXPECT_THAT(result.unmeasured, ElementsAre("output.weight"));
    EXPECT_NEAR(result.recipe.predicted_kld, 0.001 + 0.1 + 0.1, 1e-12);
}

/// A sweep from Q4_K, which tensors may be promoted from.
struct CrushSweepImport : ::testing::Test {
    ImportedModel model = high_precision();
    DamageTable imported = table(Metric::nll, {{"blk.0.a.weight", -0.01}, {"blk.1.a.weight", 0.2}}, "q2_K");
    ImportOptions options;

    CrushSweepImport() {
        imported.is_crush_sweep = true;
        for (auto& t : model.base.tensors)
            if (t.n_dims > 1) t.type = GGML_TYPE_Q4_K;
        TypeMap base;
        for (const auto& t : model.base.tensors) base[t.name] = t.type;
        options.budget_bytes = bytes(model, base);
    }
};

TEST_F(CrushSweepImport, moves_bytes_from_harmless_to_harmful) {
    const auto result = allocate_imported(imported, model, options);
    EXPECT_EQ(result.recipe.types.at("blk.0.a.weight"), GGML_TYPE_Q2_K);
    EXPECT_GT(bits_per_weight(result.recipe.types.at("blk.1.a.weight").type), bits_per_weight(GGML_TYPE_Q4_K));
    EXPECT_EQ(result.recipe.types.at("output.weight"), GGML_TYPE_Q4_K);
    EXPECT_LT(result.recipe.predicted_kld, 0.0);
    EXPECT_THAT(result.notes, Contains(HasSubstr("1 of 2 figures are below zero")));
}

TEST_F(CrushSweepImport, lists_what_has_the_crush_type_already) {
    model.base.tensors[0].type = GGML_TYPE_Q2_K;
    const auto result = allocate_imported(imported, model, options);
    EXPECT_THAT(result.at_crush_type, ElementsAre("blk.0.a.weight"));
    EXPECT_EQ(result.recipe.types.at("blk.0.a.weight"), GGML_TYPE_Q2_K);
    for (auto& t : model.base.tensors) t.type = t.n_dims > 1 ? GGML_TYPE_Q2_K : t.type;
    EXPECT_THAT(error_of([&] { allocate_imported(imported, model, options); }),
                AllOf(HasSubstr("r.csv"), HasSubstr("already")));
}

TEST_F(CrushSweepImport, of_unknown_tensors_is_refused) {
    imported.rows[1].tensor = "blk.7.a.weight";
    EXPECT_THAT(error_of([&] { allocate_imported(imported, model, options); }),
                AllOf(HasSubstr("blk.7.a.weight"), HasSubstr("row 2")));
}

TEST(ImportedModel, takes_a_header_for_a_model) {
    const testing::TemporaryFolder folder;
    const auto whole = GgufFile::open(testing::small_model());
    write_file_atomically(folder / "header.gguf", read_file(testing::small_model()).substr(0, whole.data_offset()));
    EXPECT_THAT(error_of([&] { GgufFile::open(folder / "header.gguf"); }), HasSubstr("beyond the end"));
    const auto header = GgufFile::open_header(folder / "header.gguf");
    EXPECT_FALSE(header.has_data());
    EXPECT_TRUE(GgufFile::open_header(testing::small_model()).has_data());
    for (const auto* base : {"", "Q4_K_M", "q3_k"}) {
        const auto from_header = imported_model(header, base, false);
        const auto from_whole = imported_model(whole, base, false);
        ASSERT_EQ(from_header.base.tensors.size(), from_whole.base.tensors.size());
        for (std::size_t i = 0; i < from_whole.base.tensors.size(); ++i)
            EXPECT_EQ(from_header.base.tensors[i].type, from_whole.base.tensors[i].type);
        EXPECT_EQ(from_header.fixed_bytes, from_whole.fixed_bytes);
    }
    EXPECT_EQ(imported_model(whole, "q3_k", false).base.find("blk.0.ffn_up.weight")->type, GGML_TYPE_Q3_K);
    EXPECT_EQ(imported_model(whole, "q3_k", false).source_types.at("blk.0.ffn_up.weight"), GGML_TYPE_F16);
    EXPECT_THAT(error_of([&] { imported_model(whole, "Q9_Z", false); }), HasSubstr("Q9_Z"));
}

}  // namespace
}  // namespace cerebellum
