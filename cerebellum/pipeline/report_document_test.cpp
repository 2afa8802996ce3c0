#include "cerebellum/pipeline/report_document.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>

#include "cerebellum/allocate/recipe_problem.h"
#include "cerebellum/build/build_gguf.h"
#include "cerebellum/gguf/gguf_support_test.h"
#include "cerebellum/pipeline/allocation.h"
#include "cerebellum/pipeline/report_support_test.h"

namespace cerebellum {
namespace {

using nlohmann::json;
using testing::error_of;
using ::testing::HasSubstr;
using testing::invented_tensor;

constexpr ggml_type types[] = {GGML_TYPE_Q2_K, GGML_TYPE_Q3_K, GGML_TYPE_Q4_K, GGML_TYPE_Q6_K, GGML_TYPE_Q8_0};

class ReportDocument : public ::testing::Test {
  protected:
    ReportDocument() {
        tensors_.push_back(invented_tensor("token_embd.weight", 256, 64));
        for (int block = 0; block < 2; ++block) {
            const auto name = [&](const char* role) { return "blk." + std::to_string(block) + "." + role + ".weight"; };
            tensors_.push_back(invented_tensor(name("attn_norm"), 256, 1));
            tensors_.push_back(invented_tensor(name("attn_v"), 256, 32));
            tensors_.push_back(invented_tensor(name("ffn_down"), 512, 32));
        }
        testing::invent_journal(journal_path(), tensors_, types, "f1");
        sources_.journal = journal_path();
    }

    std::filesystem::path journal_path() const { return folder_ / "j.db"; }
    Recipe recipe(const std::string& fingerprint) const {
        Recipe recipe;
        recipe.types = {{"blk.0.attn_v.weight", GGML_TYPE_Q4_K}};
        recipe.source_fingerprint = fingerprint;
        recipe.source_name = "invented.gguf";
        recipe.file_bytes = header_bytes;
        for (const auto& tensor : tensors_) {
            const auto named = recipe.types.find(tensor.name);
            recipe.file_bytes += tensor_bytes(tensor, named == recipe.types.end() ? tensor.type : named->second.type);
        }
        return recipe;
    }
    void give_recipe(const Recipe& recipe) {
        write_recipe(folder_ / "r.json", recipe);
        sources_.recipe = folder_ / "r.json";
    }

    static constexpr std::uint64_t header_bytes = 12'345;
    testing::TemporaryFolder folder_;
    std::vector<TensorInfo> tensors_;
    ReportSources sources_;
};

TEST_F(ReportDocument, allocates_what_the_problem_offers) {
    give_recipe(recipe("f1"));
    const auto document = report_document(sources_);
    const auto journal = Journal::open_existing(journal_path());
    const auto problem = make_problem(tensors_, header_bytes, journal.measurements(), Objective::kld);
    const auto& allocation = document["allocation"];
    EXPECT_TRUE(allocation["exact_bytes"].get<bool>());
    EXPECT_EQ(allocation["fixed_bytes"].get<std::uint64_t>(), problem.fixed_bytes);
    ASSERT_EQ(allocation["groups"].size(), problem.tensors.size());
    for (std::size_t g = 0; g < problem.tensors.size(); ++g) {
        const auto& group = allocation["groups"][g];
        ASSERT_EQ(group["tensors"].size(), 1U);
        EXPECT_EQ(document["tensors"][group["tensors"][0].get<std::size_t>()]["name"], problem.tensors[g].name);
        ASSERT_EQ(group["choices"].size(), problem.tensors[g].choices.size());
        for (std::size_t c = 0; c < group["choices"].size(); ++c) {
            const auto& wanted = problem.tensors[g].choices[c];
            // As the page reads it: through text, to the last bit.
            const auto choice = json::parse(group["choices"][c].dump());
            EXPECT_EQ(document["types"][choice[0].get<std::size_t>()]["name"], type_name(wanted.type));
            EXPECT_EQ(choice[1].get<std::uint64_t>(), wanted.bytes);
            EXPECT_EQ(choice[2].get<double>(), wanted.cost);
        }
    }
    EXPECT_EQ(document["model"]["name"], "invented.gguf");
    EXPECT_EQ(document["tensors"][2]["pattern"], "^blk\\.0\\.attn_v\\.weight$=");
}

TEST_F(ReportDocument, offers_only_the_roundings_and_types_that_were_asked_for) {
    auto journal = Journal::open(journal_path(), Journal::open_existing(journal_path()).identity());
    for (auto m : journal.measurements()) {
        if (m.type != "q2_K" && m.type != "q4_K") continue;
        m.type += "+feedback";
        for (auto* figures : {&m.kld, &m.local_energy})
            for (auto& figure : *figures) figure *= 0.5;
        journal.record(m);
    }
    const auto offered = [&] {
        const auto document = report_document(sources_);
        std::set<std::string> names;
        for (const auto& group : document["allocation"]["groups"])
            for (const auto& choice : group["choices"])
                names.insert(document["types"][choice[0].get<std::size_t>()]["name"].get<std::string>());
        names.erase(type_name(tensors_.front().type));
        return std::pair(names, document["allocation"]["choices"].get<std::string>());
    };
    using Names = std::set<std::string>;
    EXPECT_EQ(offered(), std::pair(Names({"q2_K", "q2_K+feedback", "q3_K", "q4_K", "q4_K+feedback", "q6_K", "q8_0"}),
                                   std::string()));
    sources_.aim.rounding = RoundingChoice::ggml;
    sources_.aim.types = {GGML_TYPE_Q3_K, GGML_TYPE_Q4_K};
    EXPECT_EQ(offered(), std::pair(Names({"q3_K", "q4_K"}), std::string("--rounding ggml --types q3_K,q4_K")));
    sources_.aim = {};
    sources_.aim.rounding = RoundingChoice::feedback;
    EXPECT_EQ(offered(), std::pair(Names({"q2_K+feedback", "q3_K", "q4_K+feedback", "q6_K", "q8_0"}),
                                   std::string("--rounding feedback")));
}

TEST_F(ReportDocument, without_a_recipe_or_model_leaves_the_header_out) {
    const auto document = report_document(sources_);
    EXPECT_FALSE(document["allocation"]["exact_bytes"].get<bool>());
    EXPECT_TRUE(document["recipe"].is_null());
    EXPECT_TRUE(document["presets"].empty());
}

TEST_F(ReportDocument, says_of_every_figure_how_it_was_measured) {
    const auto document = report_document(sources_);
    const auto column = [&](const char* name) {
        const auto& columns = document["damage_columns"];
        return static_cast<std::size_t>(std::ranges::find(columns, name) - columns.begin());
    };
    ASSERT_EQ(document["damages"].size(), 5U);  // matrices
    for (const auto& damage : document["damages"]) {
        ASSERT_EQ(damage["points"].size(), std::size(types));
        for (const auto& point : damage["points"]) {
            const auto type = document["types"][point[0].get<std::size_t>()]["name"].get<std::string>();
            const bool anchor = type == "q2_K" || type == "q4_K";
            EXPECT_EQ(point[column("full")].get<int>(), anchor ? 1 : 0) << type;
            EXPECT_EQ(point[column("windows")].get<int>(), anchor ? 4 : 8) << type;
            EXPECT_EQ(point[column("delta_nll")].is_null(), !anchor) << type;
            EXPECT_LE(point[column("lower")].get<double>(), point[column("kld")].get<double>());
            EXPECT_GE(point[column("upper")].get<double>(), point[column("kld")].get<double>());
        }
    }
    EXPECT_EQ(document["classes"].size(), 5U);
}

TEST_F(ReportDocument, shows_stored_interactions_and_whole_recipes) {
    {
        auto journal = testing::invent_journal(journal_path(), tensors_, types, "f1");
        const auto mix = [&](const TypeMap& changed, const std::string& part, const std::string& kind, double kld) {
            const std::vector<double> counts(4, 100.0);
            journal.record(MixMeasurement{changed, part, kind, counts, std::vector<double>(4, 100.0 * kld), counts,
                                          counts, counts});
        };
        mix({{"blk.0.attn_v.weight", GGML_TYPE_Q2_K}, {"blk.0.ffn_down.weight", GGML_TYPE_Q2_K}}, "measured",
            "interaction", 0.02);
        mix({{"blk.0.attn_v.weight", GGML_TYPE_Q2_K}, {"blk.1.ffn_down.weight", GGML_TYPE_Q2_K}}, "measured",
            "interaction", 0.02);
        // The part in q5_K was never measured alone.
        mix({{"blk.0.attn_v.weight", GGML_TYPE_Q5_K}, {"blk.1.ffn_down.weight", GGML_TYPE_Q2_K}}, "measured",
            "interaction", 0.02);
        mix({{"blk.0.attn_v.weight", GGML_TYPE_Q3_K}}, "measured", "recipe", 0.01);
        mix({{"blk.1.attn_v.weight", GGML_TYPE_Q3_K}}, "selection", "contender", 0.01);
    }
    const auto document = report_document(sources_);
    ASSERT_EQ(document["interactions"].size(), 2U);
    EXPECT_EQ(document["interactions"][0]["kind"], "pair");
    EXPECT_THAT(document["interactions"][0]["name"].get<std::string>(), HasSubstr("attn_v + ffn_down"));
    EXPECT_EQ(document["interactions"][1]["kind"], "ladder");
    EXPECT_DOUBLE_EQ(document["interactions"][0]["kld"]["mean"].get<double>(), 0.02);
    ASSERT_EQ(document["wholes"].size(), 2U);
    EXPECT_EQ(document["wholes"][0]["kind"], "recipe");
    EXPECT_EQ(document["wholes"][1]["kind"], "contender");
    EXPECT_FALSE(document["calibration"].empty());
}

TEST_F(ReportDocument, passes_results_on_without_folders_of_this_machine) {
    write_file_atomically(folder_ / "a.results.json",
                          R"({"output": "/home/me/out.gguf", "files": [{"file": "/x/y.gguf"}]})");
    sources_.results = {folder_ / "a.results.json"};
    const auto result = report_document(sources_)["results"][0];
    EXPECT_EQ(result["file"], "a.results.json");
    EXPECT_EQ(result["content"]["output"], "out.gguf");
    EXPECT_EQ(result["content"]["files"][0]["file"], "y.gguf");
    write_file_atomically(folder_ / "a.results.json", "nothing");
    EXPECT_THAT(error_of([&] { report_document(sources_); }), HasSubstr("a.results.json: it is no result"));
}

TEST_F(ReportDocument, refuses_a_recipe_for_another_model) {
    give_recipe(recipe("another"));
    EXPECT_THAT(error_of([&] { report_document(sources_); }), HasSubstr("recipe for another model"));
}

}  // namespace
}  // namespace cerebellum
