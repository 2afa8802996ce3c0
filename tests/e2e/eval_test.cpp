// The evaluations against llama-perplexity on the same files, and runs that are killed in the middle.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>
#include <regex>
#include <sstream>

#include "cerebellum/evaluate/audit_log.h"
#include "tests/e2e/program.h"

namespace cerebellum {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using ::testing::HasSubstr;
using testing::Program;
using testing::quoted;
using testing::run_program;
using testing::run_referee;
using testing::small_model;
using testing::TemporaryFolder;
using testing::with_program;

class Eval : public ::testing::Test {
  protected:
    Eval() { write_file_atomically(path("text.txt"), testing::some_text()); }

    fs::path path(const std::string& name) const { return work_ / name; }

    json succeed(std::vector<std::string> arguments) const {
        arguments.insert(arguments.end(), {"--threads", "1", "--json", "-q"});
        const auto result = run_program(arguments, work_.path(), std::chrono::minutes(8));
        EXPECT_EQ(result.code, 0) << result.errors;
        return json::parse(result.output, nullptr, false);
    }
    /// Runs llama-perplexity; what it printed. It loses lines now and then, so it is asked again until all of `telling`
    /// are there.
    std::string referee(const std::string& arguments, const std::vector<std::string>& telling) const {
        std::string output;
        for (int attempt = 0; attempt < 5; ++attempt) {
            if (!run_referee("llama-perplexity", arguments + " --no-repack -t 1", work_.path())) return "";
            output = read_file(path("llama-perplexity.log"));
            const auto has = [&](const std::string& text) { return output.find(text) != std::string::npos; };
            if (std::ranges::all_of(telling, has)) break;
        }
        return output;
    }
    fs::path quantized(const std::string& type) const {
        const auto file = path(type + ".gguf");
        EXPECT_TRUE(run_referee("llama-quantize", fmt::format("{} {} {} 1", quoted(small_model()), quoted(file), type),
                                work_.path()));
        return file;
    }
    /// A question set of $CEREBELLUM_TEST_DATA (default: ../shared/data), unpacked; empty where there is none.
    fs::path questions(const std::string& name, const std::string& unpack) const {
        const char* folder = std::getenv("CEREBELLUM_TEST_DATA");
        const auto data =
            folder != nullptr ? fs::path(folder) : fs::path(CEREBELLUM_SOURCE_DIR) / ".." / "shared" / "data";
        const auto from = data / "questions" / name;
        if (!fs::exists(from)) return {};
        const auto file = path(fs::path(name).stem().string());
        EXPECT_EQ(std::system(fmt::format("{} -dc {} > {}", unpack, quoted(from), quoted(file)).c_str()), 0);
        return file;
    }

    TemporaryFolder work_;
};

/// The two numbers behind a label of llama-perplexity's output, as it printed them.
std::pair<std::string, std::string> printed(const std::string& output, const std::string& label) {
    const std::regex line(label + R"(\s*[:=]\s*(-?[0-9.]+)\s*%?\s*(?:±|\+/-)\s*([0-9.]+))");
    std::smatch match;
    if (!std::regex_search(output, match, line)) {
        ADD_FAILURE() << "no " << label << " in\n" << output;
        return {};
    }
    return {match[1], match[2]};
}

std::pair<std::string, std::string> rounded(const json& estimate, int digits, int error_digits, double unit = 1.0) {
    return {fmt::format("{:.{}f}", unit * estimate["mean"].get<double>(), digits),
            fmt::format("{:.{}f}", unit * estimate["error"].get<double>(), error_digits)};
}

TEST_F(Eval, perplexity_is_llama_perplexity_s) {
    if (!testing::have_referees()) GTEST_SKIP() << "no llama.cpp tools";
    for (const auto* context : {"128", "100"}) {
        const auto expected =
            referee(fmt::format("-m {} -f text.txt -c {}", quoted(small_model()), context), {"Final estimate: PPL = "});
        const auto ours = succeed({"eval", "ppl", small_model().string(), "--text", path("text.txt").string(), "--ctx",
                                   context, "--llama-perplexity"});
        const json estimate = {{"mean", ours["files"][0]["perplexity"]},
                               {"error", ours["files"][0]["perplexity_error"]}};
        EXPECT_EQ(rounded(estimate, 4, 5), printed(expected, "Final estimate: PPL")) << context;
    }
}

TEST_F(Eval, divergence_is_llama_perplexity_s) {
    if (!testing::have_referees()) GTEST_SKIP() << "no llama.cpp tools";
    const auto small = quantized("Q3_K_S");
    referee(fmt::format("-m {} -f text.txt -c 128 --kl-divergence-base base", quoted(small_model())), {});
    const auto expected =
        referee(fmt::format("-m {} -c 128 --kl-divergence-base base --kl-divergence", quoted(small)),
                {"Mean PPL(Q) ", "Mean PPL(base) ", "Mean ln(PPL(Q)/PPL(base))", "Mean PPL(Q)/PPL(base)",
                 "Mean PPL(Q)-PPL(base)", "Mean    KLD", "Mean    Δp", "RMS Δp", "Same top p", "Maximum KLD",
                 "99.9%   KLD", "99.0%   KLD", "Median  KLD", "10.0%   KLD", "Minimum KLD"});
    const auto result = succeed({"eval", "kld", small_model().string(), small.string(), "--text",
                                 path("text.txt").string(), "--ctx", "128", "--llama-perplexity"});
    const auto& ours = result["files"][0];
    EXPECT_EQ(rounded(ours["perplexity"], 6, 6), printed(expected, R"(Mean PPL\(Q\))"));
    EXPECT_EQ(rounded(ours["source_perplexity"], 6, 6), printed(expected, R"(Mean PPL\(base\))"));
    EXPECT_EQ(rounded(ours["log_ratio"], 6, 6), printed(expected, R"(Mean ln\(PPL\(Q\)/PPL\(base\)\))"));
    EXPECT_EQ(rounded(ours["ratio"], 6, 6), printed(expected, R"(Mean PPL\(Q\)/PPL\(base\))"));
    EXPECT_EQ(rounded(ours["difference"], 6, 6), printed(expected, R"(Mean PPL\(Q\)-PPL\(base\))"));
    EXPECT_EQ(rounded(ours["kld"], 6, 6), printed(expected, "Mean    KLD"));
    EXPECT_EQ(rounded(ours["probability_change"], 3, 3, 100.0), printed(expected, "Mean    Δp"));
    EXPECT_EQ(rounded(ours["probability_change_rms"], 3, 3, 100.0), printed(expected, "RMS Δp    "));
    EXPECT_EQ(rounded(ours["same_top"], 3, 3, 100.0), printed(expected, "Same top p"));
    const std::map<double, std::string> labels = {{1.0, "Maximum KLD"}, {0.999, "99.9%   KLD"}, {0.99, "99.0%   KLD"},
                                                  {0.5, "Median  KLD"}, {0.1, "10.0%   KLD"},   {0.0, "Minimum KLD"}};
    for (const auto& quantile : ours["kld_quantiles"]) {
        const auto label = labels.find(quantile["share"].get<double>());
        if (label == labels.end()) continue;
        EXPECT_THAT(expected, HasSubstr(fmt::format("{}: {:10.6f}", label->second, quantile["value"].get<double>())));
    }
}

TEST_F(Eval, our_convention_scores_more_positions_and_sees_small_divergences) {
    if (!testing::have_referees()) GTEST_SKIP() << "no llama.cpp tools";
    const auto q8 = quantized("Q8_0"), q3 = quantized("Q3_K_S");
    const auto result = succeed({"eval", "kld", small_model().string(), q8.string(), q3.string(),
                                 small_model().string(), "--text", path("text.txt").string(), "--ctx", "128"});
    EXPECT_LT(result["files"][0]["kld"]["mean"], 0.05 * result["files"][1]["kld"]["mean"].get<double>());
    EXPECT_GT(result["files"][0]["kld"]["mean"], 0.0);
    EXPECT_LT(result["files"][2]["kld"]["mean"], 1e-9);  // the source itself
    EXPECT_EQ(result["files"][0]["tokens"], result["files"][0]["windows"].get<int>() * (128 - 1 - 16));
    const auto& difference = result["files"][1]["kld_minus_first"];
    EXPECT_GT(difference["mean"], 3.0 * difference["error"].get<double>());
}

/// How many of its first i tasks llama-perplexity counted as right, by i, from its running score.
std::map<int, int> running_counts(const std::string& output) {
    std::map<int, int> counts;
    std::istringstream lines(output);
    for (std::string line; std::getline(lines, line);) {
        std::istringstream cells(line);
        int task = 0;
        double score = 0.0;
        if (line.find('\t') != std::string::npos && cells >> task >> score && task > 0)
            counts[task] = static_cast<int>(std::lround(score / 100.0 * task));
    }
    return counts;
}

/// Its running score must be ours at every task whose line it did not lose, and at the last one.
void expect_same_running_counts(const std::string& output, const std::vector<bool>& ours) {
    const auto theirs = running_counts(output);
    EXPECT_TRUE(theirs.contains(static_cast<int>(ours.size()))) << output.substr(0, 3000);
    EXPECT_GT(theirs.size(), ours.size() / 2);
    int right = 0;
    for (std::size_t i = 0; i < ours.size(); ++i) {
        right += ours[i] ? 1 : 0;
        if (const auto at = theirs.find(static_cast<int>(i + 1)); at != theirs.end()) {
            EXPECT_EQ(right, at->second) << i;
        }
    }
}

std::vector<bool> our_verdicts(const fs::path& log) {
    std::vector<bool> right;
    for (const auto& record : read_audit_log(log).records)
        right.push_back(record["metrics"]["llama_perplexity"] == 1.0);
    return right;
}

TEST_F(Eval, hellaswag_is_llama_perplexity_s_task_by_task) {
    if (!testing::have_referees()) GTEST_SKIP() << "no llama.cpp tools";
    const auto file = questions("hellaswag_val_full.txt.bz2", "bzip2");
    if (file.empty()) GTEST_SKIP() << "no question sets";
    const auto expected = referee(
        fmt::format("-m {} -f {} --hellaswag --hellaswag-tasks 60", quoted(small_model()), quoted(file)), {"\n60\t"});
    const auto result = succeed({"eval", "choice", "hellaswag", small_model().string(), "--questions", file.string(),
                                 "--count", "60", "--out", path("out").string()});
    expect_same_running_counts(expected, our_verdicts(result[0]["log"].get<std::string>()));
}

TEST_F(Eval, winogrande_is_llama_perplexity_s_task_by_task) {
    if (!testing::have_referees()) GTEST_SKIP() << "no llama.cpp tools";
    const auto file = questions("winogrande-val.csv.gz", "gzip");
    if (file.empty()) GTEST_SKIP() << "no question sets";
    write_file_atomically(file, read_file(file) + "\n");  // it drops one newline, and a last line without one
    const auto expected =
        referee(fmt::format("-m {} -f {} --winogrande --winogrande-tasks 200", quoted(small_model()), quoted(file)),
                {"\n200\t"});
    const auto result = succeed({"eval", "choice", "winogrande", small_model().string(), "--questions", file.string(),
                                 "--count", "200", "--out", path("out").string()});
    expect_same_running_counts(expected, our_verdicts(result[0]["log"].get<std::string>()));
}

std::string own_questions(int n) {
    std::string lines;
    for (int i = 0; i < n; ++i)
        lines += fmt::format(
            R"({{"question": "What comes behind {0}?", "choices": ["{1}", "{2}", "nothing"], "answer": {3}}})"
            "\n",
            i, i % 2 == 0 ? i + 1 : i - 1, i % 2 == 0 ? i - 1 : i + 1, i % 2);
    return lines;
}

TEST_F(Eval, a_killed_run_goes_on_and_every_question_is_there_once) {
    constexpr int n = 300;
    write_file_atomically(path("own.jsonl"), own_questions(n));
    const auto command = [&](const std::string& out) {
        return std::vector<std::string>{
            "eval",  "choice",          "choice", small_model().string(), "--questions", path("own.jsonl").string(),
            "--out", path(out).string()};
    };
    const auto whole = succeed(command("whole"));
    auto arguments = command("killed");
    arguments.insert(arguments.end(), {"--threads", "1", "--json", "-q"});
    int kills = 0;
    for (int pause_ms = 150; kills < 3 && pause_ms < 20000; pause_ms *= 2) {
        Program program(with_program(arguments), work_.path());
        std::this_thread::sleep_for(std::chrono::milliseconds(pause_ms));
        if (!program.running()) break;
        program.send(SIGKILL);
        program.wait();
        ++kills;
    }
    EXPECT_GT(kills, 0);
    const auto resumed = succeed(command("killed"));
    const auto a = read_audit_log(whole[0]["log"].get<std::string>()),
               b = read_audit_log(resumed[0]["log"].get<std::string>());
    ASSERT_EQ(b.records.size(), static_cast<std::size_t>(n));
    EXPECT_EQ(a.header, b.header);
    for (const auto& metric : {"acc", "acc_norm"})
        EXPECT_NEAR(whole[0]["metrics"][metric]["score"].get<double>(),
                    resumed[0]["metrics"][metric]["score"].get<double>(),
                    0.011);  // batches are others, and so is the last digit of a near tie
}

TEST_F(Eval, two_files_are_compared_question_by_question) {
    if (!testing::have_referees()) GTEST_SKIP() << "no llama.cpp tools";
    write_file_atomically(path("own.jsonl"), own_questions(100));
    const auto q2 = quantized("Q2_K");
    const auto result = succeed({"eval", "choice", "choice", small_model().string(), q2.string(), "--questions",
                                 path("own.jsonl").string(), "--out", path("out").string()});
    const auto& paired = result[1]["against_first"]["acc"];
    EXPECT_EQ(paired["questions"], 100);
    const double first = result[0]["metrics"]["acc"]["score"], second = result[1]["metrics"]["acc"]["score"];
    EXPECT_NEAR(100.0 * (second - first), paired["won"].get<double>() - paired["lost"].get<double>(), 1e-9);
    EXPECT_EQ(result[0]["model"]["sha256"].get<std::string>().size(), 64U);
}

TEST_F(Eval, a_card_tells_versions_apart_and_refuses_what_was_measured_differently) {
    const auto speed = [&](const std::string& name, const std::string& sha256, double tokens_per_second, int threads) {
        const json spread = {{"median", tokens_per_second}, {"deviation", 0.5}, {"figures", {tokens_per_second}}};
        const json file = {{"file", "ours.gguf"}, {"sha256", sha256}, {"bytes", 1000}, {"prompt_per_second", spread}};
        write_file_atomically(
            path(name),
            json{{"prompt_tokens", 512}, {"generated_tokens", 0}, {"threads", threads}, {"files", {file}}}.dump());
        return path(name).string();
    };
    const auto older = speed("older.json", std::string(64, 'a'), 100.0, 2);
    const auto newer = speed("newer.json", std::string(64, 'b'), 120.0, 2);
    const auto other = speed("other.json", std::string(64, 'c'), 140.0, 1);
    const auto card = run_program({"compare-evals", older, newer, "--markdown"}, work_.path());
    EXPECT_EQ(card.code, 0) << card.errors;
    EXPECT_THAT(card.output, HasSubstr("| prompt 512 t/s | 100.0 ± 0.5 | 120.0 ± 0.5 |"));
    EXPECT_THAT(card.output, HasSubstr("| ours.gguf aaaaaaaa | ours.gguf bbbbbbbb |"));
    const auto refused = run_program({"compare-evals", older, other}, work_.path());
    EXPECT_EQ(refused.code, 1);
    EXPECT_THAT(refused.errors, HasSubstr("threads was 2 for the first and 1 for the second"));
    write_file_atomically(path("none.json"), "{}");
    EXPECT_EQ(run_program({"compare-evals", path("none.json").string()}, work_.path()).code, 1);
}

TEST_F(Eval, says_what_is_missing) {
    const auto refused = [&](std::vector<std::string> arguments, int code) {
        const auto result = run_program(arguments, work_.path());
        EXPECT_EQ(result.code, code) << result.errors;
        EXPECT_EQ(std::ranges::count(result.errors, '\n'), 1) << result.errors;
        return result.errors;
    };
    const auto model = small_model().string();
    EXPECT_THAT(refused({"eval", "ppl", model}, 2), HasSubstr("--text"));
    EXPECT_THAT(refused({"eval", "ppl", model, "--wikitext2", "--data", path("none").string()}, 1),
                HasSubstr("fetch-data"));
    EXPECT_THAT(refused({"eval", "choice", "chess", model}, 2), HasSubstr("hellaswag"));
    EXPECT_THAT(refused({"eval", "choice", "arc", model, "--data", path("none").string()}, 1), HasSubstr("fetch-data"));
    write_file_atomically(path("short.txt"), "A few words.\n");
    EXPECT_THAT(refused({"eval", "ppl", model, "--text", path("short.txt").string(), "-q"}, 1), HasSubstr("--ctx"));
}

}  // namespace
}  // namespace cerebellum
