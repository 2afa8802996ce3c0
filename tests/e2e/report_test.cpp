// The report: its solver in JavaScript against ours, and the page in a real browser.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <random>

#include "cerebellum/allocate/knapsack.h"
#include "cerebellum/build/build_gguf.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/pipeline/goal.h"
#include "cerebellum/pipeline/measured_model.h"
#include "cerebellum/pipeline/report_document.h"
#include "cerebellum/pipeline/report_support_test.h"
#include "tests/e2e/program.h"

namespace cerebellum {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using ::testing::HasSubstr;
using testing::Program;
using testing::ProgramResult;
using testing::run_program;
using testing::small_model;
using testing::TemporaryFolder;

const fs::path repository = CEREBELLUM_SOURCE_DIR;

ProgramResult run(const std::vector<std::string>& arguments, const fs::path& logs) {
    return Program(arguments, logs).wait();
}

/// Problems like those of models, and such as make the search work hard: costs that hardly differ, equal ones.
std::vector<KnapsackProblem> hard_problems() {
    std::vector<KnapsackProblem> problems;
    std::mt19937_64 random(3);
    const auto between = [&](double low, double high) { return std::uniform_real_distribution(low, high)(random); };
    for (int i = 0; i < 150; ++i) {
        KnapsackProblem problem;
        const int groups = 3 + i % 60, kind = i % 4;
        std::uint64_t smallest = 0, largest = 0;
        for (int g = 0; g < groups; ++g) {
            auto& options = problem.groups.emplace_back();
            const double weights = 32.0 * std::floor(between(1.0, kind == 3 ? 10.0 : 4000.0)),
                         scale = between(0.1, 10.0);
            std::uint64_t least = ~0ULL, most = 0;
            for (int o = 0; o < 12; ++o) {
                const double bits = 1.5 + o * between(0.5, 1.0);
                double cost = scale * std::exp2(-1.7 * bits) * between(0.8, 1.2);
                if (kind == 1) cost = 1.0 - bits / 20.0 + between(0.0, 1e-6);
                if (kind == 2) cost = std::floor(50.0 * cost);
                if (kind == 3 && o == 5) cost = -cost;
                options.push_back({static_cast<std::uint64_t>(weights * bits / 8.0) / 32 * 32, cost});
                least = std::min(least, options.back().bytes);
                most = std::max(most, options.back().bytes);
            }
            smallest += least;
            largest += most;
        }
        problem.budget_bytes = smallest + random() % (largest - smallest + 1);
        problems.push_back(std::move(problem));
    }
    return problems;
}

TEST(ReportPage, its_solver_chooses_what_ours_does) {
    const TemporaryFolder work;
    const auto problems = hard_problems();
    auto list = json::array();
    for (const auto& problem : problems) {
        auto groups = json::array();
        for (const auto& options : problem.groups) {
            auto& group = groups.emplace_back(json::array());
            for (const auto& option : options) group.push_back({option.bytes, option.cost});
        }
        list.push_back({{"budget", problem.budget_bytes}, {"groups", std::move(groups)}});
    }
    write_file_atomically(work / "problems.json", list.dump());
    ProgramResult result;
    try {
        result =
            run({"node", (repository / "tests/web/knapsack.mjs").string(),
                 (repository / "cerebellum/report/web/src/knapsack.js").string(), (work / "problems.json").string()},
                work.path());
    } catch (const std::runtime_error&) {
        GTEST_SKIP() << "no node to run the page's solver with";
    }
    ASSERT_EQ(result.code, 0) << result.errors;
    const auto answers = json::parse(result.output);
    ASSERT_EQ(answers.size(), problems.size());
    for (std::size_t i = 0; i < problems.size(); ++i) {
        const auto ours = solve_knapsack(problems[i]);
        EXPECT_EQ(answers[i]["choice"].get<std::vector<std::size_t>>(), ours.choice) << i;
        EXPECT_EQ(answers[i]["cost"].get<double>(), ours.cost) << i;
        EXPECT_EQ(answers[i]["bytes"].get<std::uint64_t>(), ours.bytes) << i;
        EXPECT_EQ(answers[i]["exact"].get<bool>(), ours.exact) << i;
    }
}

/// Looks at a page in a browser. Where CEREBELLUM_SCREENSHOTS names a folder, pictures of it go there.
void look_at(const fs::path& page, const fs::path& work, const std::vector<std::string>& arguments) {
    std::vector<std::string> command = {"bash", (repository / "tests/web/run.sh").string(), CEREBELLUM_WEB_TEST_DIR,
                                        page.string()};
    command.insert(command.end(), arguments.begin(), arguments.end());
    if (const auto* folder = std::getenv("CEREBELLUM_SCREENSHOTS"); folder != nullptr)
        command.insert(command.end(), {"--screenshots", folder});
    const auto result = run(command, work);
    constexpr int cannot = 77;
    if (result.code == cannot) GTEST_SKIP() << result.errors;
    EXPECT_EQ(result.code, 0) << result.errors;
    fmt::print("{}", result.output);
}

class ReportSlow : public ::testing::Test {
  protected:
    std::string path(const std::string& name) const { return (work_ / name).string(); }
    TemporaryFolder work_;
};

TEST_F(ReportSlow, the_page_of_a_measured_model_works_in_a_browser) {
    {
        const auto source = GgufFile::open(small_model());
        testing::invent_journal(work_ / "j.db", source.tensors(), default_types(), source.fingerprint());
    }
    // What the command line answers, by the functions that it calls, and some of it by itself.
    const auto measured = open_measured(small_model(), work_ / "j.db");
    auto expected = json::array();
    std::mt19937_64 random(11);
    const auto smallest = smallest_file_bytes(measured.problem), largest = measured.source.file_size();
    for (int i = 0; i < 1000; ++i) {
        const std::uint64_t budget = smallest + random() % (largest - smallest);
        const auto solved = solve_goal(measured.source, measured.problem, {AllocationGoal::of_size(budget), {}});
        const auto text = tensor_type_file(complete_types(measured.source, solved.allocation.types));
        expected.push_back({budget, text});
        if (i % 40 != 0) continue;
        const auto allocated =
            run_program({"allocate", small_model().string(), "--journal", path("j.db"), "--size",
                         std::to_string(budget), "-o", path("r.recipe.json"), "--force", "--threads", "1"},
                        work_.path());
        ASSERT_EQ(allocated.code, 0) << allocated.errors;
        EXPECT_EQ(read_file(work_ / "r.recipe.tensor-types.txt"), text) << budget;
    }
    write_file_atomically(work_ / "expected.json", expected.dump());
    const auto written = run_program({"report", small_model().string(), "--journal", path("j.db"), "--recipe",
                                      path("r.recipe.json"), "-o", path("page.html"), "--json"},
                                     work_.path());
    ASSERT_EQ(written.code, 0) << written.errors;
    EXPECT_EQ(json::parse(written.output)["bytes"].get<std::uintmax_t>(), fs::file_size(work_ / "page.html"));
    look_at(work_ / "page.html", work_.path(), {"--expected", path("expected.json")});
}

TEST_F(ReportSlow, a_journal_of_500_tensors_and_20_types_opens_within_a_second) {
    std::vector<TensorInfo> tensors;
    const char* roles[] = {"attn_q", "attn_k",   "attn_v", "attn_output", "ffn_gate",
                           "ffn_up", "ffn_down", "ssm_in", "ssm_out",     "ssm_x"};
    for (int block = 0; block < 50; ++block)
        for (const auto* role : roles)
            tensors.push_back(testing::invented_tensor(fmt::format("blk.{}.{}.weight", block, role), 4096, 4096));
    auto types = default_types();
    for (const auto more : {GGML_TYPE_TQ1_0, GGML_TYPE_TQ2_0})
        if (types.size() < 20) types.push_back(more);
    ASSERT_EQ(types.size(), 20U);
    testing::invent_journal(work_ / "j.db", tensors, types, "none");
    const auto written = run_program({"report", "--journal", path("j.db"), "-o", path("page.html")}, work_.path());
    ASSERT_EQ(written.code, 0) << written.errors;
    look_at(work_ / "page.html", work_.path(), {"--open-within", "1000"});
}

TEST_F(ReportSlow, quantize_writes_one_beside_its_output) {
    write_file_atomically(work_ / "text.txt", testing::some_text());
    const auto result = run_program(
        {"quantize", small_model().string(), "--size", "3.7MB", "-o", path("out.gguf"), "--report",
         path("out.report.html"), "--text", path("text.txt"), "--ctx", "64", "--tokens", "256", "--threads", "1"},
        work_.path(), std::chrono::minutes(20));
    ASSERT_EQ(result.code, 0) << result.errors;
    const auto page = read_file(work_ / "out.report.html");
    EXPECT_THAT(page, HasSubstr("\"output\":\"out.gguf\""));
    EXPECT_EQ(page.find(work_.path().string()), page.npos) << "the page names a folder of this machine";
    look_at(work_ / "out.report.html", work_.path(), {});
}

}  // namespace
}  // namespace cerebellum
