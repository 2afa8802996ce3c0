// Sweeps in the classical manner, the commands that users of earlier tools know, and what those tools measured.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "cerebellum/core/quant_type.h"
#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/gguf/gguf_write.h"
#include "cerebellum/llama/log.h"
#include "cerebellum/llama/presets.h"
#include "cerebellum/predict/tensor_list.h"
#include "cerebellum/predict/transfer.h"
#include "tests/e2e/program.h"

namespace cerebellum {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::quoted;
using testing::run_program;
using testing::small_model;
using testing::TemporaryFolder;

class Imports : public ::testing::Test {
  protected:
    Imports() { write_file_atomically(work_ / "text.txt", testing::some_text()); }

    std::string path(const std::string& name) const { return (work_ / name).string(); }

    /// A sweep in the small setting that all share.
    std::vector<std::string> sweep(std::vector<std::string> arguments) const {
        arguments.insert(arguments.begin(), "ablate");
        arguments.insert(arguments.end(),
                         {"--text", path("text.txt"), "--ctx", "64", "--tokens", "128", "--threads", "1"});
        return arguments;
    }
    std::string succeed(const std::vector<std::string>& arguments) const {
        const auto result = run_program(arguments, work_.path(), std::chrono::minutes(8));
        EXPECT_EQ(result.code, 0) << fmt::format("{}: {}", arguments.front(), result.errors);
        return result.output;
    }
    std::string fail(const std::vector<std::string>& arguments, int code = 1) const {
        const auto result = run_program(arguments, work_.path(), std::chrono::minutes(8));
        EXPECT_EQ(result.code, code) << result.errors;
        EXPECT_EQ(result.output, "");
        return result.errors;
    }
    json read(const std::string& name) const { return json::parse(read_file(path(name))); }

    TemporaryFolder work_;
};

TEST_F(Imports, a_sweep_from_a_mix_is_what_whole_files_come_to) {
    write_file_atomically(path("plan.json"),
                          R"({"tensors": [{"name": "blk.0.ffn_down.weight"}, {"name": "blk.3.attn_v"},
        {"name": "output.weight"}, {"name": "blk.0.attn_norm.weight"}]})");
    const auto run = [&](const std::string& output, std::vector<std::string> more) {
        more.insert(more.begin(), {small_model().string(), "--baseline", "q4_k_m", "--crush", "q2_K", "--tensors",
                                   path("plan.json"), "-o", path(output)});
        succeed(sweep(std::move(more)));
        return read(output);
    };
    const auto replayed = run("a.json", {});
    const auto through_files = run("b.json", {"--no-replay", "--journal", path("files.db")});
    ASSERT_EQ(replayed.at("tests").size(), 3U);
    EXPECT_EQ(replayed.at("crush_type"), "q2_K");
    const double baseline = replayed.at("baseline_ppl");
    EXPECT_NEAR(through_files.at("baseline_ppl"), baseline, 1e-9 * baseline);
    EXPECT_GT(replayed.at("baseline_kld").at("mean"), 0.0);
    const auto base_types =
        dry_run(small_model(), {.file_type = find_preset("Q4_K_M")->file_type, .has_imatrix = true}).types;
    for (const auto& [name, test] : replayed.at("tests").items()) {
        const auto& other = through_files.at("tests").at(name);
        EXPECT_NEAR(test.at("kld"), other.at("kld").get<double>(), 1e-9 * other.at("kld").get<double>()) << name;
        EXPECT_NEAR(test.at("ppl"), other.at("ppl").get<double>(), 1e-9 * baseline) << name;
        EXPECT_EQ(test.at("base_type"), type_name(base_types.at(name)));
        EXPECT_GT(test.at("kld"), 0.0);
        EXPECT_NEAR(std::log(test.at("ppl").get<double>() / baseline), test.at("delta_nll"), 1e-9);
    }
    ASSERT_EQ(replayed.at("skipped").size(), 1U);
    EXPECT_EQ(replayed.at("skipped")[0].at("gguf_tensor"), "blk.0.attn_norm.weight");
    // Nothing is measured twice.
    const auto again = run_program(sweep({small_model().string(), "--baseline", "Q4_K_M", "--tensors",
                                          path("plan.json"), "-o", path("a.json"), "--force"}),
                                   work_.path());
    EXPECT_THAT(again.errors, ::testing::StartsWith("0 measured, "));
    EXPECT_EQ(read("a.json"), replayed);
}

TEST_F(Imports, the_commands_that_users_know_work_as_they_stand) {
    // A base with tensors of two types in it.
    std::set<std::string> larger, crushed;
    json recipe = {{"format", "cerebellum-recipe"}, {"version", 1}, {"source", json::object()}};
    const auto source = GgufFile::open(small_model());
    for (const auto& tensor : source.tensors()) {
        if (tensor.n_dims < 2) continue;
        const bool is_crushed = tensor.name.find("ffn") != std::string::npos;
        (is_crushed ? crushed : larger).insert(tensor.name);
        recipe["types"][tensor.name] = is_crushed ? "q2_K" : "q4_K";
    }
    write_file_atomically(path("recipe.json"), recipe.dump());
    succeed(
        {"build", small_model().string(), "--recipe", path("recipe.json"), "-o", path("Q2K.gguf"), "--threads", "1"});
    const auto base = GgufFile::open(path("Q2K.gguf"));
    json plan = {{"tensors", json::array()}};
    for (const auto& name : {*larger.begin(), *larger.rbegin(), *crushed.begin()})
        plan["tensors"].push_back({{"name", name}});
    write_file_atomically(path("ablation_plan.json"), plan.dump());

    succeed(sweep({"--base-gguf", path("Q2K.gguf"), "--tensors", path("ablation_plan.json"), "--output",
                   path("ablation_results.json")}));
    const auto results = read("ablation_results.json");
    EXPECT_EQ(results.at("tests").size(), 2U);
    EXPECT_TRUE(results.at("tests").contains(*larger.begin()));
    ASSERT_EQ(results.at("skipped").size(), 1U);
    EXPECT_EQ(results.at("skipped")[0].at("gguf_tensor"), *crushed.begin());
    EXPECT_THAT(results.at("skipped")[0].at("reason").get<std::string>(), HasSubstr("already"));

    // GB, without a model: the file knows its own.
    const auto budget = base.file_size() - 20000;
    const auto gigabytes = fmt::format("{:.9f}", static_cast<double>(budget) / 1e9);
    succeed({"allocate", "--ablation", path("ablation_results.json"), "--budget", gigabytes, "--output",
             path("tensor_types.txt")});
    const auto types = NameList::read(path("tensor_types.txt"));
    for (const auto& tensor : base.tensors()) EXPECT_TRUE(types.contains(tensor.name)) << tensor.name;
    succeed({"allocate", "--ablation", path("ablation_results.json"), "--budget-gb", gigabytes, "--output",
             path("more.txt"), "--plan", path("ablation_plan.json"), "--source-gguf", small_model().string()});
    if (testing::have_referees()) {
        ASSERT_TRUE(testing::run_referee(
            "llama-quantize",
            "--allow-requantize --tensor-type-file tensor_types.txt " + quoted(small_model()) + " theirs.gguf Q2_K 1",
            work_.path()));
        EXPECT_LE(fs::file_size(path("theirs.gguf")), budget);
        EXPECT_GT(fs::file_size(path("theirs.gguf")), budget - 200000);
    }

    write_file_atomically(path("crushed.json"), json(std::vector<std::string>{*crushed.begin()}).dump());
    EXPECT_THAT(
        fail(sweep({"--base-gguf", path("Q2K.gguf"), "--plan", path("crushed.json"), "--output", path("none.json")})),
        HasSubstr("nothing to crush"));
    EXPECT_FALSE(fs::exists(path("none.json")));
    write_file_atomically(path("unknown.json"), R"(["blk.0.ffn_sideways"])");
    EXPECT_THAT(
        fail(sweep({"--base-gguf", path("Q2K.gguf"), "--plan", path("unknown.json"), "--output", path("none.json")})),
        HasSubstr("blk.0.ffn_sideways"));
    EXPECT_THAT(fail(sweep({small_model().string(), "--baseline", "Q9", "-o", path("none.json")}), 2), HasSubstr("Q9"));
    EXPECT_THAT(fail(sweep({"-o", path("none.json")}), 2), HasSubstr("no model"));
}

TEST_F(Imports, ablations_of_others_take_a_model) {
    write_file_atomically(path("theirs.json"), R"({"baseline_ppl": 100, "tests": {
        "up": {"ppl": 90, "gguf_tensor": "blk.0.ffn_up.weight"}, "down": {"ppl": 140, "gguf_tensor": "blk.5.ffn_down"}}})");
    const std::vector<std::string> command = {"allocate", "--ablation", path("theirs.json"), "--budget", "0.0045"};
    const auto with = [&](std::vector<std::string> more) {
        more.insert(more.begin(), command.begin(), command.end());
        return more;
    };
    EXPECT_THAT(fail(with({"-o", path("t.txt")})), HasSubstr("--model"));
    EXPECT_FALSE(fs::exists(path("t.txt")));
    // The header alone.
    const auto source = GgufFile::open(small_model());
    write_file_atomically(path("header.gguf"), read_file(small_model()).substr(0, source.data_offset()));
    const auto result = json::parse(succeed(with({"-o", path("r.json"), "--model", path("header.gguf"), "--json"})));
    EXPECT_LE(result.at("file_bytes"), 4500000U);
    EXPECT_EQ(result.at("types").at("blk.0.ffn_up.weight"), "q2_K");
    EXPECT_EQ(result.at("types").at("blk.1.ffn_up.weight"), "q4_K");  // of Q4_K_M, since nobody measured it
    EXPECT_EQ(result.at("unmeasured").size(), 42U);
    EXPECT_TRUE(fs::exists(path("r.tensor-types.txt")));
    const auto wider = json::parse(
        succeed(with({"-o", path("s.json"), "--model", small_model().string(), "--extrapolate", "layer", "--json"})));
    EXPECT_EQ(wider.at("unmeasured").size(), 2U);  // embedding and output
    EXPECT_EQ(wider.at("extrapolated").size(), 40U);
    succeed({"build", small_model().string(), "--recipe", path("s.json"), "-o", path("s.gguf"), "--threads", "1"});
    EXPECT_LE(fs::file_size(path("s.gguf")), 4500000U);

    write_file_atomically(path("theirs.json"), R"({"baseline_ppl": 100, "tests": {
        "up": {"ppl": 90, "gguf_tensor": "blk.0.ffn_up.weight"}, "x": {"ppl": 9, "gguf_tensor": "blk.99.ffn_up"}}})");
    EXPECT_THAT(fail(with({"-o", path("t.txt"), "--model", small_model().string()})),
                AllOf(HasSubstr("'x'"), HasSubstr("blk.99.ffn_up.weight")));
    EXPECT_FALSE(fs::exists(path("t.txt")));
    EXPECT_THAT(fail(with({"-o", path("t.txt"), "--size", "3MB"}), 2), HasSubstr("--budget"));
}

TEST(SlowRoundingError, constants_are_what_ggml_does) {
    for (const auto type : default_types())
        EXPECT_NEAR(rounding_error(type), measure_rounding_error(type), 0.01 * rounding_error(type)) << type_name(type);
}

/// What others published; not part of the repository.
class PublicData : public Imports {
  protected:
    void SetUp() override {
        const char* named = std::getenv("CEREBELLUM_SHARED_DATA");
        data_ = named != nullptr ? fs::path(named) : fs::path(CEREBELLUM_SOURCE_DIR).parent_path() / "shared" / "data";
        if (!fs::is_directory(data_ / "sensitivity"))
            GTEST_SKIP() << "no published sensitivity data at " << data_ << "; name it in CEREBELLUM_SHARED_DATA";
    }
    template <typename Work>
    void within_five_seconds(const std::string& what, Work&& work) {
        // Of the processor: other work on the machine is not what is asked about.
        const auto seconds = [] {
            rusage usage{};
            ::getrusage(RUSAGE_CHILDREN, &usage);
            return static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
                   1e-6 * static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
        };
        const double before = seconds();
        work();
        EXPECT_LT(seconds() - before, 5.0) << what;
    }

    fs::path data_;
};

TEST_F(PublicData, of_the_tool_suite_is_read_and_allocated_from) {
    int folders = 0, allocated = 0;
    for (const auto& entry : fs::directory_iterator(data_ / "sensitivity" / "thireus")) {
        if (!entry.is_directory()) continue;
        ++folders;
        const auto folder = entry.path().string();
        for (const auto* metric : {"kld", "ppl"}) {
            if (!fs::exists(entry.path() / fmt::format("{}_results.csv", metric))) continue;
            within_five_seconds(folder, [&] {
                const auto table = json::parse(succeed({"import", folder, "--metric", metric, "--json"}));
                EXPECT_EQ(table.at("metric"), metric);
                EXPECT_GT(table.at("rows").size(), 100U);
            });
            const std::vector<std::string> allocate = {"allocate",     "--sensitivity", folder,  "--metric",
                                                       metric,         "--size",        "4bpw",  "-o",
                                                       path("r.json"), "--force",       "--json"};
            if (!fs::is_directory(entry.path() / "maps")) {
                within_five_seconds(folder, [&] { EXPECT_THAT(fail(allocate), HasSubstr("--model")); });
                continue;
            }
            ++allocated;
            within_five_seconds(folder, [&] {
                const auto result = json::parse(succeed(allocate));
                EXPECT_LE(result.at("file_bytes"), result.at("budget_bytes"));
                EXPECT_GT(result.at("file_bytes").get<double>(), 0.99 * result.at("budget_bytes").get<double>())
                    << folder;
                EXPECT_GT(result.at("predicted_change"), 0.0);
            });
        }
    }
    EXPECT_EQ(folders, 35);
    EXPECT_EQ(allocated, 14);  // seven, by either figure
}

TEST_F(PublicData, of_the_earlier_tool_is_read) {
    for (const auto* model : {"qwen36-27b", "gemma4-e4b"}) {
        const auto file = (data_ / "sensitivity" / "cerebellum" / model / "ablation_results.json").string();
        const auto table = json::parse(succeed({"import", file, "--json"}));
        EXPECT_EQ(table.at("rows").size(), read_file(file).find("blk_0") == std::string::npos ? 23U : 26U);
    }
    EXPECT_THAT(fail({"import", (data_ / "sensitivity/cerebellum/qwen36-27b/interaction_results.json").string()}),
                HasSubstr("baseline_ppl"));
    // The header of that model, as the tool suite lists its tensors.
    const std::vector<fs::path> maps = {data_ / "sensitivity/thireus/Qwen3.6-27B/maps/tensors.bf16.map.gz"};
    GgufContext context(gguf_init_empty());
    gguf_set_val_str(context.get(), "general.architecture", "qwen35");
    for (auto tensor : read_tensor_maps(maps).tensors) {
        if (tensor.n_dims > 1)
            tensor.type = type_fits_row(GGML_TYPE_Q4_K, tensor.row_length()) ? GGML_TYPE_Q4_K : tensor.type;
        add_tensor(context.get(), tensor.name, tensor.type, tensor.shape);
    }
    const auto header = metadata_bytes(context.get());
    write_file_atomically(path("header.gguf"), {reinterpret_cast<const char*>(header.data()), header.size()});
    const auto file = (data_ / "sensitivity/cerebellum/qwen36-27b/ablation_results.json").string();
    within_five_seconds("27B", [&] {
        const auto result = json::parse(succeed({"allocate", "--ablation", file, "--budget", "15.0", "--output",
                                                 path("tensor_types.txt"), "--model", path("header.gguf"), "--json"}));
        EXPECT_LE(result.at("file_bytes"), 15000000000U);
        EXPECT_EQ(result.at("measured"), 23U);
    });
}

}  // namespace
}  // namespace cerebellum
