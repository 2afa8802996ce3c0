// What people see of the program: help, completions, manual pages, defaults, drawings, the doctor.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>
#include <sstream>

#include "cerebellum/journal/journal.h"
#include "tests/e2e/program.h"

namespace cerebellum {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::Program;
using testing::ProgramResult;
using testing::run_program;
using testing::small_model;
using testing::TemporaryFolder;

namespace fs = std::filesystem;

using Path = std::vector<std::string>;

std::vector<std::string> lines_of(const std::string& text) {
    std::vector<std::string> lines;
    std::istringstream stream(text);
    for (std::string line; std::getline(stream, line);) lines.push_back(line);
    return lines;
}

std::string joined(const Path& path, const char* separator = " ") {
    std::string text;
    for (const auto& word : path) text += (text.empty() ? "" : separator) + word;
    return text;
}

bool have(const std::string& program) {
    return std::system(fmt::format("command -v {} >/dev/null 2>&1", program).c_str()) == 0;
}

class Terminal : public ::testing::Test {
  protected:
    ProgramResult run(const std::vector<std::string>& arguments) const { return run_program(arguments, work_.path()); }
    ProgramResult shell(const std::string& script) const {
        return Program({"bash", "-c", script}, work_.path()).wait();
    }

    std::string help_of(const Path& path) const {
        auto arguments = path;
        arguments.emplace_back("--help");
        const auto result = run(arguments);
        EXPECT_EQ(result.code, 0) << joined(path) << result.errors;
        return result.output;
    }

    /// All commands, found by reading the help.
    std::vector<Path> commands() const {
        std::vector<Path> all = {{}};
        for (std::size_t i = 0; i < all.size(); ++i) {
            const auto path = all[i];
            bool below = false;
            for (const auto& line : lines_of(help_of(path))) {
                std::smatch match;
                if (line == "Subcommands:")
                    below = true;
                else if (below && std::regex_search(line, match, std::regex("^  ([a-z][a-z-]*)(\\s|$)"))) {
                    all.push_back(path);
                    all.back().push_back(match[1]);
                } else if (!line.starts_with("  "))
                    below = false;
            }
        }
        return all;
    }

    /// The names of options that a command's help lists.
    static std::set<std::string> options_in(const std::string& help) {
        std::set<std::string> options;
        for (const auto& line : lines_of(help)) {
            std::smatch match;
            if (!std::regex_search(line, match, std::regex("^  (-[-a-zA-Z0-9,]*)"))) continue;
            std::istringstream names(match[1]);
            for (std::string name; std::getline(names, name, ',');) options.insert(name);
        }
        return options;
    }

    /// What bash would offer behind these words.
    std::set<std::string> completed(const Path& words) const {
        const auto script = work_ / "completion.bash";
        if (!fs::exists(script)) {
            const auto result = run({"completion", "bash"});
            EXPECT_EQ(result.code, 0) << result.errors;
            write_file_atomically(script, result.output);
        }
        std::string line = "compopt() { :; }; source " + testing::quoted(script) + "; COMP_WORDS=(cerebellum";
        for (const auto& word : words) line += " " + testing::quoted(word);
        line += fmt::format("); COMP_CWORD={}; _cerebellum; printf '%s\\n' \"${{COMPREPLY[@]}}\"", words.size());
        const auto result = shell(line);
        EXPECT_EQ(result.code, 0) << result.errors;
        EXPECT_EQ(result.errors, "");
        std::set<std::string> offered;
        for (const auto& word : lines_of(result.output))
            if (!word.empty()) offered.insert(word);
        return offered;
    }

    TemporaryFolder work_;
};

TEST_F(Terminal, completion_and_manual_know_every_option_of_the_help_and_no_other) {
    const auto all = commands();
    EXPECT_GT(all.size(), 15U);
    ASSERT_EQ(run({"man", "--folder", (work_ / "man1").string()}).code, 0);
    std::size_t pages = 0;
    for (const auto& entry : fs::directory_iterator(work_ / "man1")) pages += entry.is_regular_file();
    EXPECT_EQ(pages, all.size());
    for (const auto& path : all) {
        const auto options = options_in(help_of(path));
        EXPECT_TRUE(options.contains("--help")) << joined(path);
        auto words = path;
        words.emplace_back("-");
        EXPECT_EQ(completed(words), options) << joined(path);

        auto name = path;
        name.insert(name.begin(), "cerebellum");
        auto page = read_file(work_ / "man1" / (joined(name, "-") + ".1"));
        std::set<std::string> documented;
        const std::regex entry(R"(\\fB((?:\\-)+[^\\]*(?:\\-[^\\]*)*)\\fR)");
        for (std::sregex_iterator i(page.begin(), page.end(), entry), end; i != end; ++i)
            documented.insert(std::regex_replace((*i)[1].str(), std::regex(R"(\\-)"), "-"));
        EXPECT_EQ(documented, options) << joined(path);
    }
}

TEST_F(Terminal, an_option_takes_the_same_kind_of_value_in_every_command) {
    // By option, what its value is called and in which commands; flags have none.
    std::map<std::string, std::map<std::string, std::string>> kinds;
    for (const auto& path : commands())
        for (const auto& line : lines_of(help_of(path))) {
            std::smatch match;
            if (!std::regex_search(line, match, std::regex("^  (-[-a-zA-Z0-9,]*) ?([A-Z\\[][^ :]*)?"))) continue;
            // Neither defaults nor what is only allowed in front of a value make another kind.
            auto kind = std::regex_replace(match[2].str(), std::regex("=[^\\]]*$"), "");
            if (kind.starts_with("[DOMAIN=]")) kind = kind.substr(9);
            if (kind == "UINT" || kind == "INT,...") kind = "INT";
            std::istringstream names(match[1]);
            for (std::string name; std::getline(names, name, ',');) kinds[name][kind] += " [" + joined(path) + "]";
        }
    EXPECT_GT(kinds.size(), 50U);
    for (const auto& [name, values] : kinds) {
        std::string seen;
        for (const auto& [value, where] : values) seen += "\n  " + (value.empty() ? "(flag)" : value) + ":" + where;
        EXPECT_EQ(values.size(), 1U) << name << seen;
    }
}

TEST_F(Terminal, bash_completes_subcommands_choices_and_files) {
    EXPECT_EQ(completed({"quan"}), std::set<std::string>{"quantize"});
    EXPECT_EQ(completed({"imatrix", ""}), (std::set<std::string>{"compute", "merge", "show"}));
    EXPECT_EQ(completed({"completion", ""}), (std::set<std::string>{"bash", "fish", "zsh"}));
    EXPECT_EQ(completed({"quantize", "--objective", ""}), (std::set<std::string>{"kld", "nll", "top1"}));
    EXPECT_EQ(completed({"quantize", "--tokens", ""}), std::set<std::string>{});
    write_file_atomically(work_ / "model-f16.gguf", "x");
    EXPECT_EQ(completed({"inspect", (work_ / "model").string()}),
              std::set<std::string>{(work_ / "model-f16.gguf").string()});
    EXPECT_EQ(completed({"quantize", "m.gguf", "--imatrix", (work_ / "model").string()}),
              std::set<std::string>{(work_ / "model-f16.gguf").string()});
}

TEST_F(Terminal, zsh_offers_what_bash_offers) {
    if (!have("zsh")) GTEST_SKIP() << "there is no zsh on this machine";
    write_file_atomically(work_ / "_cerebellum", run({"completion", "zsh"}).output);
    // The functions that zsh's own system would call, printing what they are given.
    const std::string stubs =
        "compdef() { :; }; _files() { echo files; }; _message() { :; }; compadd() { shift; print -l -- $@; };"
        "_describe() { local list=${@[-1]}; print -l -- ${${(P)list}%%:*}; };";
    const auto offered = [&](const std::string& words, int current) {
        const auto script = fmt::format("{} words=({}); CURRENT={}; source {}; _cerebellum", stubs, words, current,
                                        testing::quoted(work_ / "_cerebellum"));
        const auto result = Program({"zsh", "-f", "-c", script}, work_.path()).wait();
        EXPECT_EQ(result.errors, "");
        const auto lines = lines_of(result.output);
        return std::set<std::string>(lines.begin(), lines.end());
    };
    EXPECT_EQ(offered("cerebellum quantize -", 3), completed({"quantize", "-"}));
    EXPECT_EQ(offered("cerebellum imatrix ''", 3), completed({"imatrix", ""}));
    EXPECT_EQ(offered("cerebellum quantize --objective ''", 4), completed({"quantize", "--objective", ""}));
    EXPECT_EQ(offered("cerebellum inspect ''", 3), std::set<std::string>{"files"});
}

TEST_F(Terminal, fish_offers_what_bash_offers) {
    if (!have("fish")) GTEST_SKIP() << "there is no fish on this machine";
    write_file_atomically(work_ / "cerebellum.fish", run({"completion", "fish"}).output);
    const auto offered = [&](const std::string& line) {
        const auto result =
            Program({"fish", "--no-config", "-c",
                     fmt::format("source {}; complete -C '{}'", testing::quoted(work_ / "cerebellum.fish"), line)},
                    work_.path())
                .wait();
        EXPECT_EQ(result.errors, "");
        std::set<std::string> names;
        for (const auto& each : lines_of(result.output)) names.insert(each.substr(0, each.find('\t')));
        return names;
    };
    EXPECT_EQ(offered("cerebellum quantize --"), [&] {
        auto names = completed({"quantize", "--"});
        return names;
    }());
    EXPECT_EQ(offered("cerebellum imatrix "), completed({"imatrix", ""}));
    EXPECT_EQ(offered("cerebellum quantize --objective "), completed({"quantize", "--objective", ""}));
}

TEST_F(Terminal, manual_pages_are_clean_roff) {
    if (!have("groff")) GTEST_SKIP() << "there is no groff on this machine";
    ASSERT_EQ(run({"man", "--folder", (work_ / "man1").string()}).code, 0);
    const auto result = shell(fmt::format(
        "for page in {}/*.1; do groff -man -Tutf8 -P-cbou -ww -Wbreak -rLL=78n \"$page\" >>{}/text || exit 1; done",
        (work_ / "man1").string(), work_.path().string()));
    EXPECT_EQ(result.code, 0);
    EXPECT_EQ(result.errors, "");
    const auto text = read_file(work_ / "text");
    EXPECT_NE(text.find("SYNOPSIS"), std::string::npos);
    EXPECT_NE(text.find("quantize model-f16.gguf --size 4.25bpw"), std::string::npos);
}

TEST_F(Terminal, pages_of_commands_that_are_not_there) {
    const auto result = run({"man", "imatrix", "nothing"});
    EXPECT_EQ(result.code, 2);
    EXPECT_THAT(result.errors, HasSubstr("imatrix nothing"));
    EXPECT_EQ(run({"completion", "csh"}).code, 2);
}

class Defaults : public Terminal {
  protected:
    std::string file(const std::string& content) const {
        write_file_atomically(work_ / "config.toml", content);
        return (work_ / "config.toml").string();
    }
    /// What 'doctor' or 'inspect' prints is JSON where a default says so.
    ProgramResult inspect(const std::string& config, const std::vector<std::string>& more = {}) const {
        std::vector<std::string> arguments = {"inspect", small_model().string(), "--config", config};
        arguments.insert(arguments.end(), more.begin(), more.end());
        return run(arguments);
    }
};

TEST_F(Defaults, hold_for_every_command_or_for_one) {
    EXPECT_THAT(inspect(file("json = true\n")).output, HasSubstr("\"fingerprint\""));
    EXPECT_THAT(inspect(file("[inspect]\njson = true\n")).output, HasSubstr("\"fingerprint\""));
    EXPECT_THAT(inspect(file("[quantize]\njson = true\n")).output, Not(HasSubstr("\"fingerprint\"")));
    // The closer section wins, wherever it stands.
    EXPECT_THAT(inspect(file("json = true\n[inspect]\njson = false\n")).output, Not(HasSubstr("\"fingerprint\"")));
    // A section holds for the commands below it.
    const auto merged = run({"imatrix", "show", "nothing.gguf", "--config", file("[imatrix]\njson = true\n")});
    EXPECT_EQ(merged.code, 1) << merged.errors;
}

TEST_F(Defaults, the_users_own_file_is_found) {
    fs::create_directories(work_ / "xdg" / "cerebellum");
    write_file_atomically(work_ / "xdg" / "cerebellum" / "config.toml", "# mine\njson = true\n");
    const auto result = Program({"env", "XDG_CONFIG_HOME=" + (work_ / "xdg").string(), CEREBELLUM_EXECUTABLE, "inspect",
                                 small_model().string()},
                                work_.path())
                            .wait();
    EXPECT_EQ(result.code, 0) << result.errors;
    EXPECT_THAT(result.output, HasSubstr("\"fingerprint\""));
}

TEST_F(Defaults, what_is_given_counts_more) {
    const auto folder = work_.path().string();
    const auto config = file("[show]\nwidth = 41\n");
    const auto result = run({"show", "nothing.db", "--config", config, "--width", "7"});
    EXPECT_EQ(result.code, 2);  // 7 is too narrow; 41 was not taken
    EXPECT_THAT(result.errors, HasSubstr("--width"));
}

TEST_F(Defaults, mistakes_are_named) {
    for (const auto& [content, word] : {std::pair{"thread = 2\n", "thread"},
                                        {"[quantise]\nthreads = 2\n", "quantise"},
                                        {"[inspect]\nsize = \"3MB\"\n", "size"},
                                        {"version = true\n", "version"},
                                        {"[inspect]\nhelp = true\n", "help"}}) {
        const auto result = inspect(file(content));
        EXPECT_EQ(result.code, 2) << content;
        EXPECT_THAT(result.errors, HasSubstr(word));
    }
    const auto invalid = run({"show", "nothing.db", "--config", file("width = \"wide\"\n")});
    EXPECT_EQ(invalid.code, 2);
    EXPECT_THAT(invalid.errors, HasSubstr("width"));
    EXPECT_EQ(inspect((work_ / "nowhere.toml").string()).code, 2);
}

/// A journal of a model that is not there: 30 blocks, three tensors each, and an embedding.
class Drawing : public Terminal {
  protected:
    static constexpr int blocks = 30;

    Drawing() {
        auto journal = Journal::open(path(), {{{"model", "made up"}}});
        auto tensors = nlohmann::json::array();
        const auto add = [&](const std::string& name, double damage) {
            tensors.push_back(
                {{"name", name}, {"shape", {256, 256, 1, 1}}, {"dimensions", 2}, {"bytes", 131072}, {"type", "f16"}});
            for (const auto& [type, factor] : {std::pair{"q2_K", 100.0}, {"q4_K", 10.0}, {"q8_0", 1.0}}) {
                Measurement row;
                row.tensor = name;
                row.type = type;
                row.counts = {10, 10, 10};
                row.kld = {9.9 * factor * damage, 10.0 * factor * damage, 10.1 * factor * damage};
                row.delta_nll = row.kld;
                row.top1_agree = {9, 9, 9};
                journal.record(row);
            }
        };
        for (int block = 0; block < blocks; ++block)
            for (const auto& [role, damage] : {std::pair{"attn_q", 1e-6}, {"attn_output", 1e-5}, {"ffn_down", 1e-4}})
                add(fmt::format("blk.{}.{}.weight", block, role), damage);
        add("token_embd.weight", 1e-3);
        journal.put_artifact("tensors", tensors.dump());
    }

    std::string path() const { return (work_ / "journal.db").string(); }
};

TEST_F(Drawing, fits_80_columns_without_colour) {
    const auto result = run({"show", path()});
    ASSERT_EQ(result.code, 0) << result.errors;
    EXPECT_EQ(result.output.find('\033'), std::string::npos);
    for (const auto& line : lines_of(result.output)) EXPECT_LE(line.size(), 80U) << line;
    EXPECT_THAT(result.output, HasSubstr("attn_output  " + std::string(2 * blocks, '=')));
    EXPECT_THAT(result.output, HasSubstr("ffn_down     " + std::string(2 * blocks, '*')));
    EXPECT_THAT(result.output, HasSubstr("token_embd   @@ 1.00e-01"));
    EXPECT_THAT(result.output, HasSubstr("bits per weight"));
}

TEST_F(Drawing, type_width_and_colour_can_be_chosen) {
    EXPECT_THAT(run({"show", path(), "--type", "q8_0"}).output, HasSubstr("token_embd   @@ 1.00e-03"));
    EXPECT_THAT(run({"show", path(), "--color", "always"}).output, HasSubstr("\033["));
    for (const auto& line : lines_of(run({"show", path(), "--width", "50"}).output)) EXPECT_LE(line.size(), 80U);
}

TEST_F(Drawing, as_json) {
    const auto result = run({"show", path(), "--json", "--type", "q2_K"});
    ASSERT_EQ(result.code, 0) << result.errors;
    const auto json = nlohmann::json::parse(result.output);
    EXPECT_EQ(json["tensors"].size(), 3U * blocks + 1);
    const auto& points = json["frontier"];
    ASSERT_GT(points.size(), 2U);
    for (std::size_t i = 1; i < points.size(); ++i) {
        EXPECT_GT(points[i]["bytes"], points[i - 1]["bytes"]);
        EXPECT_LT(points[i]["predicted_kld"], points[i - 1]["predicted_kld"]);
    }
}

TEST_F(Drawing, what_cannot_be_shown) {
    EXPECT_EQ(run({"show", (work_ / "nothing.db").string()}).code, 1);
    EXPECT_EQ(run({"show", path(), "--type", "q9_Z"}).code, 2);
    EXPECT_EQ(run({"show", path(), "--tier", "fast"}).code, 1);
    EXPECT_EQ(run({"show", path(), "--model", small_model().string()}).code, 1);  // another model's journal
    EXPECT_EQ(run({"show", small_model().string()}).code, 1);
    EXPECT_EQ(run({"show"}).code, 2);
}

TEST_F(Terminal, doctor_says_what_is_there) {
    const auto result = run({"doctor", small_model().string(), "--size", "3MB"});
    EXPECT_EQ(result.code, 0) << result.output;
    for (const auto* word : {"build", "processor", "memory", "devices", "disk", "measuring", "room for files"})
        EXPECT_THAT(result.output, HasSubstr(word));
    for (const auto& line : lines_of(result.output)) EXPECT_LE(line.size(), 100U) << line;
    const auto json = nlohmann::json::parse(run({"doctor", "--json"}).output);
    EXPECT_GT(json["memory_bytes"].get<std::uint64_t>(), 0U);
    EXPECT_FALSE(json["findings"].empty());
}

TEST_F(Terminal, doctor_sees_what_is_wrong) {
    const auto result =
        Program({"env", "TMPDIR=" + (work_ / "nowhere").string(), CEREBELLUM_EXECUTABLE, "doctor"}, work_.path())
            .wait();
    EXPECT_EQ(result.code, 1);
    EXPECT_THAT(result.output, AllOf(HasSubstr("problem"), HasSubstr("TMPDIR")));
    EXPECT_EQ(run({"doctor", (work_ / "nothing.gguf").string()}).code, 1);
    EXPECT_EQ(run({"doctor", "--size", "3MB"}).code, 2);
}

}  // namespace
}  // namespace cerebellum
