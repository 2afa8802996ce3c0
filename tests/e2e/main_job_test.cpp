// The whole job on the embedded model, small: what comes out, that llama.cpp's tools agree with it, and that it can be
// interrupted at any moment.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "cerebellum/build/build_gguf.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/gguf/imatrix_file.h"
#include "cerebellum/journal/journal.h"
#include "cerebellum/llama/log.h"
#include "cerebellum/llama/model.h"
#include "tests/e2e/program.h"

namespace cerebellum {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using ::testing::HasSubstr;
using testing::Program;
using testing::quoted;
using testing::run_program;
using testing::small_model;
using testing::TemporaryFolder;
using testing::with_program;

constexpr std::size_t n_matrices = 44;  // of the embedded model: seven in each of six blocks, embedding and output

class MainJob : public ::testing::Test {
  protected:
    MainJob() { write_file_atomically(work_ / "text.txt", testing::some_text()); }

    fs::path path(const std::string& name) const { return work_ / name; }

    /// A command with the small setting that all share.
    std::vector<std::string> command(std::vector<std::string> arguments, const std::string& tokens = "256") const {
        arguments.insert(arguments.end(),
                         {"--text", path("text.txt").string(), "--ctx", "64", "--tokens", tokens, "--threads", "1"});
        return arguments;
    }
    std::vector<std::string> ablate(const std::string& journal) const {
        return command({"ablate", small_model().string(), "--journal", path(journal).string(), "--types",
                        "q2_K,q4_0,q6_K", "--json"});
    }
    std::string succeed(const std::vector<std::string>& arguments) const {
        const auto result = run_program(arguments, work_.path(), std::chrono::minutes(8));
        EXPECT_EQ(result.code, 0) << fmt::format("{}", arguments.front()) << ": " << result.errors;
        return result.output;
    }
    std::size_t rows(const std::string& journal) const {
        try {
            return Journal::open_existing(path(journal)).measurements().size();
        } catch (const Error&) {
            return 0;  // not there yet
        }
    }

    TemporaryFolder work_;
};

void expect_same_tensors(const fs::path& a, const fs::path& b) {
    const auto first = GgufFile::open(a), second = GgufFile::open(b);
    ASSERT_EQ(first.tensors().size(), second.tensors().size());
    for (const auto& tensor : first.tensors()) {
        const auto* other = second.find(tensor.name);
        ASSERT_NE(other, nullptr) << tensor.name;
        EXPECT_EQ(type_name(tensor.type), type_name(other->type)) << tensor.name;
        EXPECT_TRUE(std::ranges::equal(first.data(tensor), second.data(*other))) << tensor.name;
    }
}

TEST_F(MainJob, builds_a_file_of_the_size_that_was_asked_for) {
    constexpr std::uint64_t budget = 3'700'000;
    const auto printed =
        json::parse(succeed(command({"quantize", small_model().string(), "--size", std::to_string(budget), "-o",
                                     path("small.gguf").string(), "--types", "q2_K,q3_K,q4_K,q6_K", "--json"})));
    ASSERT_TRUE(fs::exists(path("small.gguf")));
    const auto bytes = fs::file_size(path("small.gguf"));
    EXPECT_LE(bytes, budget);
    EXPECT_GE(static_cast<double>(bytes), 0.995 * static_cast<double>(budget));

    // What lies beside it, and that it is consistent.
    const auto file = GgufFile::open(path("small.gguf"));
    const auto recipe = read_recipe(path("small.recipe.json"));
    const auto imatrix = read_imatrix(path("small.imatrix.gguf"));
    const auto results = json::parse(read_file(path("small.results.json")));
    EXPECT_EQ(recipe.file_bytes, bytes);
    EXPECT_EQ(results.at("file_bytes"), bytes);
    EXPECT_EQ(results.at("budget_bytes"), budget);
    EXPECT_EQ(results, printed);
    EXPECT_EQ(results.at("delivered"), recipe.provenance.at("delivered"));
    for (const auto& [name, type] : recipe.types) EXPECT_EQ(file.find(name)->type, type) << name;
    for (const auto& tensor : file.tensors())
        EXPECT_THAT(read_file(path("small.tensor-types.txt")), HasSubstr("$=" + type_name(tensor.type)));
    EXPECT_EQ(imatrix.entries.size(), n_matrices - 1);  // all but the embedding, which is looked up, not multiplied
    for (const auto& entry : fs::directory_iterator(work_.path()))
        EXPECT_THAT(entry.path().string(),
                    ::testing::Not(::testing::AnyOf(HasSubstr("partial"), HasSubstr("unverified"))));

    // The file itself.
    EXPECT_EQ(file.uint_value("general.file_type"), file_type_number(GgufFile::open(small_model()), recipe.types));
    EXPECT_EQ(file.uint_value("general.quantization_version"), 2U);
    EXPECT_EQ(file.uint_value("quantize.imatrix.entries_count"), imatrix.entries.size());
    EXPECT_TRUE(file.string_value("cerebellum.recipe_sha256").has_value());
    const auto our_row =
        std::ranges::find(results.at("files"), results.at("delivered"), [](const json& row) { return row.at("name"); });
    ASSERT_NE(our_row, results.at("files").end());
    EXPECT_EQ(our_row->at("measured_by"), "libllama");
    EXPECT_GT(our_row->at("kld").at("mean").get<double>(), 0.0);
    EXPECT_LT(our_row->at("kld").at("mean").get<double>(), 2.0);
    silence_llama_log();
    EXPECT_EQ(Model::load(path("small.gguf")).n_vocab(), 4096);

    // Each stage alone comes to the same, from the journal.
    const auto journal = path("wikicode-6.8M-f16.cerebellum.db").string();
    succeed({"allocate", small_model().string(), "--size", std::to_string(budget), "-o", path("again.json").string(),
             "--journal", journal});
    if (results.at("delivered") == "cerebellum") {
        EXPECT_EQ(read_recipe(path("again.json")).types, recipe.types);
    }
    succeed({"build", small_model().string(), "--recipe", path("small.recipe.json").string(), "--imatrix",
             path("small.imatrix.gguf").string(), "-o", path("again.gguf").string(), "--threads", "1", "-q"});
    expect_same_tensors(path("small.gguf"), path("again.gguf"));
    const auto verified = json::parse(succeed(
        command({"verify", small_model().string(), path("again.gguf").string(), "--journal", journal, "--json"})));
    ASSERT_EQ(verified.size(), 1U);
    EXPECT_DOUBLE_EQ(verified[0].at("kld").get<double>(), our_row->at("kld").at("mean").get<double>());
    const auto inspected = json::parse(succeed({"inspect", path("small.gguf").string(), "--json"}));
    EXPECT_EQ(inspected.at("bytes"), bytes);
    EXPECT_EQ(inspected.at("tensors").size(), file.tensors().size());

    if (!testing::have_referees()) return;
    ASSERT_TRUE(testing::run_referee("llama-quantize",
                                     "--imatrix small.imatrix.gguf --tensor-type-file small.tensor-types.txt " +
                                         quoted(small_model()) + " theirs.gguf Q8_0 1",
                                     work_.path()));
    expect_same_tensors(path("small.gguf"), path("theirs.gguf"));
}

TEST_F(MainJob, measures_every_tensor_in_every_type) {
    const auto table = json::parse(succeed(ablate("a.db")));
    const auto source = GgufFile::open(small_model());
    EXPECT_EQ(table.size(), n_matrices * 3);
    std::set<std::pair<std::string, std::string>> pairs;
    std::map<std::string, std::map<std::string, double>> kld;
    for (const auto& row : table) {
        pairs.emplace(row.at("tensor"), row.at("type"));
        kld[row.at("tensor")][row.at("type")] = row.at("kld");
        EXPECT_TRUE(row.at("tier") == "fast" || row.at("tier") == "full");
    }
    EXPECT_EQ(pairs.size(), table.size());
    for (const auto& [tensor, by_type] : kld) {
        EXPECT_GT(by_type.at("q2_K"), by_type.at("q6_K")) << tensor;
        EXPECT_GT(by_type.at("q6_K"), 0.0) << tensor;
    }
    const auto again = run_program(ablate("a.db"), work_.path());
    EXPECT_EQ(json::parse(again.output), table);
    EXPECT_THAT(again.errors, HasSubstr("0 fast and 0 full measurements"));
}

/// Figures without how long they took.
std::vector<Measurement> timeless(std::vector<Measurement> measurements) {
    for (auto& m : measurements) m.wall_s = 0.0;
    return measurements;
}

/// By tensor and type.
std::map<std::pair<std::string, std::string>, json> by_pair(const std::string& printed) {
    std::map<std::pair<std::string, std::string>, json> rows;
    for (auto& row : json::parse(printed)) rows[{row["tensor"], row["type"]}] = row;
    return rows;
}

TEST_F(MainJob, through_whole_files_comes_to_the_figures_of_full_replays) {
    const auto run = [&](const std::string& journal, const std::string& how) {
        return by_pair(succeed(command(
            {"ablate", small_model().string(), "--journal", path(journal).string(), "--types", "q4_0", "--json", how},
            "128")));
    };
    const auto replayed = run("replayed.db", "--full"), through_files = run("files.db", "--no-replay");
    ASSERT_EQ(replayed.size(), n_matrices);
    ASSERT_EQ(through_files.size(), n_matrices);
    for (const auto& [pair, row] : replayed) {
        const auto& other = through_files.at(pair);
        EXPECT_EQ(other["tier"], "full");
        for (const auto* figure : {"delta_nll", "top1_agree"}) EXPECT_EQ(row[figure], other[figure]) << pair.first;
        // The replay's comes as a gain times a change, which rounds.
        const double kld = other["kld"];
        EXPECT_NEAR(row["kld"].get<double>(), kld, 1e-12 * kld) << pair.first;
    }
    for (const auto& entry : fs::directory_iterator(work_.path()))
        EXPECT_THAT(entry.path().filename().string(), ::testing::Not(HasSubstr("trial"))) << "left behind";
}

TEST_F(MainJob, leaves_tensors_alone_that_ggml_cannot_use_in_other_types) {
    if (!testing::have_referees()) GTEST_SKIP() << "llama.cpp's tools are not there (CEREBELLUM_REFEREE_BIN)";
    ASSERT_TRUE(testing::run_referee("test-llama-archs", "-o " + testing::quoted(work_.path()), work_.path()));
    for (const std::string how : {"--full", "--no-replay"}) {
        const auto result = run_program(
            {"ablate", path("qwen4exp-moe.gguf").string(), "--journal", path(how + ".db").string(), "--tokens", "128",
             "--ctx", "64", "--types", "q4_0", "--tensors", "*.ple_*", "--threads", "1", how},
            work_.path());
        EXPECT_EQ(result.code, 0) << result.errors;
        EXPECT_THAT(result.errors, HasSubstr("ple_norm_key.weight is not measured")) << how;
    }
}

TEST_F(MainJob, measures_only_the_tensors_that_were_asked_for) {
    auto arguments = ablate("some.db");
    arguments.insert(arguments.end(), {"--tensors", "blk.[24].ffn_*"});
    const auto rows = by_pair(succeed(arguments));
    EXPECT_EQ(rows.size(), 2U * 3U * 3U);
    for (const auto& [pair, row] : rows) EXPECT_THAT(pair.first, HasSubstr("ffn_"));
    arguments.back() = "blk.9.*";
    EXPECT_EQ(run_program(arguments, work_.path()).code, 2);
}

TEST_F(MainJob, with_little_memory_comes_to_the_same_figures) {
    auto ample = ablate("ample.db"), little = ablate("little.db");
    little.insert(little.end(), {"--memory", "115MB", "--scratch", work_.path().string(), "--verbose"});
    const auto result = run_program(little, work_.path(), std::chrono::minutes(8));
    ASSERT_EQ(result.code, 0) << result.errors;
    EXPECT_THAT(result.errors, HasSubstr("streamed through"));
    EXPECT_EQ(by_pair(result.output), by_pair(succeed(ample)));

    auto too_little = ablate("none.db");
    too_little.insert(too_little.end(), {"--memory", "1MB"});
    const auto refused = run_program(too_little, work_.path());
    EXPECT_EQ(refused.code, 1);
    EXPECT_THAT(refused.errors, HasSubstr("at least"));
}

TEST_F(MainJob, a_reference_in_another_type_is_labelled_wherever_it_shows) {
    auto arguments = ablate("reference.db");
    arguments.insert(arguments.end(), {"--reference", "q8_0"});
    const auto rows = by_pair(succeed(arguments)), of_source = by_pair(succeed(ablate("source.db")));
    ASSERT_EQ(rows.size(), of_source.size());
    std::size_t different = 0;
    for (const auto& [pair, row] : rows) {
        EXPECT_THAT(row["reference"].get<std::string>(), HasSubstr("q8_0"));
        EXPECT_EQ(of_source.at(pair)["reference"], "the source");
        if (row["kld"] != of_source.at(pair)["kld"]) ++different;
    }
    EXPECT_GT(different, rows.size() / 2) << "the copy was not used";
    const auto copy = path("wikicode-6.8M-f16.reference-q8_0.gguf");
    ASSERT_TRUE(fs::exists(copy));
    const auto built = GgufFile::open(copy);
    EXPECT_EQ(type_name(built.find("blk.0.attn_q.weight")->type), "q8_0");
    // Its journal is another one's.
    auto other = ablate("reference.db");
    const auto refused = run_program(other, work_.path());
    EXPECT_EQ(refused.code, 1);
}

TEST_F(MainJob, goes_on_where_it_was_killed) {
    const auto expected = succeed(ablate("undisturbed.db"));
    std::size_t known = 0;
    for (const std::size_t after : {1, 30, 100}) {
        Program program(with_program(ablate("killed.db")), work_.path());
        while (program.running() && rows("killed.db") < after)
            std::this_thread::sleep_for(std::chrono::milliseconds(5));
        program.send(SIGKILL);
        program.wait();
        const auto now = rows("killed.db");
        EXPECT_GE(now, std::max(known, after));
        known = now;
    }
    EXPECT_EQ(succeed(ablate("killed.db")), expected);
    EXPECT_EQ(timeless(Journal::open_existing(path("killed.db")).measurements()),
              timeless(Journal::open_existing(path("undisturbed.db")).measurements()));
}

TEST_F(MainJob, stops_when_asked_to_and_goes_on_later) {
    Program program(with_program(ablate("stopped.db")), work_.path());
    while (program.running() && rows("stopped.db") < 10) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    program.send(SIGINT);
    const auto result = program.wait();
    EXPECT_EQ(result.code, 1);
    EXPECT_EQ(result.output, "");
    const auto last = result.errors.rfind("cerebellum: ");
    ASSERT_NE(last, std::string::npos) << result.errors;
    EXPECT_EQ(std::ranges::count(result.errors.substr(last), '\n'), 1) << result.errors;
    const auto known = rows("stopped.db");
    EXPECT_GE(known, 10U);
    const auto again = run_program(ablate("stopped.db"), work_.path());
    EXPECT_EQ(again.code, 0);
    EXPECT_THAT(again.errors, HasSubstr(fmt::format("{} from the journal", known)));
}

TEST_F(MainJob, accepts_the_importance_matrix_of_llama_imatrix) {
    if (!testing::have_referees()) GTEST_SKIP() << "llama.cpp's tools are not there (CEREBELLUM_REFEREE_BIN)";
    ASSERT_TRUE(testing::run_referee(
        "llama-imatrix", "-m " + quoted(small_model()) + " -f text.txt -o theirs.gguf -c 64 --chunks 8 -t 1 -ngl 0",
        work_.path()));
    const auto journal = path("j.db").string(), imatrix = path("theirs.gguf").string();
    const auto recipe = path("recipe.json").string();
    succeed(command(
        {"ablate", small_model().string(), "--imatrix", imatrix, "--types", "q3_K,q4_K", "--journal", journal}, "64"));
    succeed({"allocate", small_model().string(), "--size", "4MB", "-o", recipe, "--journal", journal});
    succeed({"build", small_model().string(), "--recipe", recipe, "--imatrix", imatrix, "-o",
             path("small.gguf").string(), "--threads", "1"});
    EXPECT_LE(fs::file_size(path("small.gguf")), 4'000'000U);
    const auto file = GgufFile::open(path("small.gguf"));
    EXPECT_EQ(file.string_value("quantize.imatrix.file"), "theirs.gguf");
    EXPECT_EQ(file.uint_value("quantize.imatrix.entries_count"), read_imatrix(imatrix).entries.size());
}

}  // namespace
}  // namespace cerebellum
