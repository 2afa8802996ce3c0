// No output is an input of the run or another of its outputs, nothing is replaced that nobody wanted replaced, and no
// two runs write the same file.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <map>

#include "cerebellum/core/proc_files.h"
#include "tests/e2e/program.h"

namespace cerebellum {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::Program;
using testing::ProgramResult;
using testing::run_program;
using testing::small_model;
using testing::TemporaryFolder;
using testing::with_program;

namespace fs = std::filesystem;

struct Job {
    std::vector<std::string> arguments;  // "@name": the input of this name
    std::vector<std::string> outputs;    // options; the first one must be given
};

/// Every command that writes a file whose name the user gives. What is read is looked at after its name only.
const std::vector<Job>& jobs() {
    static const std::vector<Job> all = {
        {{"quantize", "@model", "--size", "3MB", "--text", "@text", "--imatrix", "@imatrix", "--journal", "@journal"},
         {"-o", "--imatrix-out", "--report"}},
        {{"build", "@model", "--recipe", "@recipe", "--imatrix", "@imatrix", "--moments", "@moments"},
         {"-o", "--save-recipe"}},
        {{"allocate", "@model", "--size", "3MB", "--journal", "@journal"}, {"-o"}},
        {{"allocate", "--ablation", "@ablation", "--model", "@model", "--imatrix", "@imatrix", "--plan", "@plan",
          "--recipe", "@list", "--budget", "1"},
         {"-o"}},
        {{"ablate", "@model", "--baseline", "Q4_K_M", "--text", "@text", "--plan", "@plan", "--journal", "@journal"},
         {"-o"}},
        {{"report", "@model", "--journal", "@journal", "--recipe", "@recipe", "--results", "@results"}, {"-o"}},
        {{"frontier", "@model", "--journal", "@journal"}, {"-o"}},
        {{"recipe", "from-gguf", "@model", "@other"}, {"-o"}},
        {{"recipe", "from-type-file", "@model", "@list"}, {"-o"}},
        {{"imatrix", "compute", "@model", "--text", "@text"}, {"-o"}},
        {{"imatrix", "merge", "@imatrix", "@other"}, {"-o"}},
        {{"card", "@model", "--journal", "@journal", "--results", "@results"}, {"-o"}},
        {{"modelfile", "@model"}, {"-o"}},
    };
    return all;
}

class Outputs : public ::testing::Test {
  protected:
    Outputs() {
        for (const auto* folder : {"in", "out", "hf"}) fs::create_directory(work_ / folder);
        write_file_atomically(work_ / "hf" / "config.json", "{}");
        write_file_atomically(work_ / "hf" / "model.safetensors", std::string(4096, 'w'));
    }

    /// An input with some content.
    fs::path input(const std::string& name) {
        const auto path = work_ / "in" / name;
        if (!fs::exists(path))
            write_file_atomically(
                path, name == "plan" ? R"({"tensors": [{"name": "blk.0.attn_q.weight"}]})" : "precious " + name);
        return path;
    }
    fs::path fresh() const { return work_ / "out" / "new.gguf"; }

    std::vector<std::string> arguments(const Job& job) {
        auto result = job.arguments;
        for (auto& word : result)
            if (word.starts_with('@')) word = input(word.substr(1)).string();
        return result;
    }
    ProgramResult run(const std::vector<std::string>& arguments) { return run_program(arguments, work_.path()); }
    /// A refusal in one line, nothing written.
    void expect_refused(const std::vector<std::string>& arguments, const std::vector<std::string>& said) {
        const auto before = contents();
        const auto result = run(arguments);
        EXPECT_EQ(result.code, 1) << fmt::format("{}", result.errors);
        EXPECT_EQ(std::ranges::count(result.errors, '\n'), 1) << result.errors;
        for (const auto& words : said) EXPECT_THAT(result.errors, HasSubstr(words));
        EXPECT_TRUE(contents() == before);
    }
    std::map<std::string, std::string> contents() const {
        std::map<std::string, std::string> files;
        for (const auto* folder : {"in", "out", "hf"})
            for (const auto& entry : fs::directory_iterator(work_ / folder))
                files[entry.path().string()] = read_file(entry.path());
        return files;
    }

    TemporaryFolder work_;
};

TEST_F(Outputs, are_never_an_input) {
    for (const auto& job : jobs())
        for (const auto& output : job.outputs)
            for (const auto& word : job.arguments) {
                if (!word.starts_with('@')) continue;
                const auto victim = input(word.substr(1));
                const auto link = work_ / "out" / "link", hard = work_ / "out" / "hard";
                fs::create_symlink(victim, link);
                fs::create_hard_link(victim, hard);
                for (const auto& name : {victim, link, hard}) {
                    auto all = arguments(job);
                    if (output != "-o") all.insert(all.end(), {"-o", fresh().string()});
                    all.insert(all.end(), {output, name.string(), "--force"});
                    SCOPED_TRACE(fmt::format("{} {} {}", job.arguments[0], output, name.string()));
                    expect_refused(all, {"would replace", victim.string()});
                }
                fs::remove(link);
                fs::remove(hard);
            }
}

TEST_F(Outputs, are_never_a_file_of_the_folder_that_is_converted) {
    for (const auto* name : {"config.json", "model.safetensors"}) {
        const auto victim = (work_ / "hf" / name).string();
        expect_refused({"convert", (work_ / "hf").string(), "-o", victim, "--force"}, {"would replace", victim});
        expect_refused({"quantize", (work_ / "hf").string(), "--size", "3MB", "-o", victim, "--force"},
                       {"would replace", victim});
    }
}

TEST_F(Outputs, of_one_run_are_different_files) {
    const auto model = input("model").string(), out = fresh().string();
    for (const auto* option : {"--imatrix-out", "--report"})
        expect_refused({"quantize", model, "--size", "3MB", "-o", out, option, out, "--force"}, {"would replace", out});
    const auto results = (work_ / "out" / "new.results.json").string();
    expect_refused({"quantize", model, "--size", "3MB", "-o", out, "--report", results, "--force"}, {"would replace"});
    expect_refused({"quantize", model, "--size", "3MB", "-o", out, "--journal", results, "--force"},
                   {"would replace", "journal"});
    expect_refused({"build", model, "--preset", "Q8_0", "-o", out, "--save-recipe", out, "--force"}, {"would replace"});
    // What has its name from the output's is no input either.
    const auto text = work_ / "out" / "new.recipe.json";
    write_file_atomically(text, "precious text");
    expect_refused({"quantize", model, "--size", "3MB", "--text", text.string(), "-o", out, "--force"},
                   {"would replace", text.string()});
}

TEST_F(Outputs, that_exist_are_kept_without_force) {
    const auto there = (work_ / "out" / "there").string();
    write_file_atomically(there, "precious");
    for (const auto& job : jobs())
        for (const auto& output : job.outputs) {
            auto all = arguments(job);
            if (output != "-o") all.insert(all.end(), {"-o", fresh().string()});
            all.insert(all.end(), {output, there});
            SCOPED_TRACE(fmt::format("{} {}", job.arguments[0], output));
            expect_refused(all, {there, "--force"});
        }
    expect_refused({"convert", (work_ / "hf").string(), "-o", there}, {there, "--force"});
}

TEST_F(Outputs, beside_the_output_are_kept_without_force) {
    const auto model = input("model").string(), journal = input("journal").string();
    const auto expect_kept = [&](const std::string& ending, const std::vector<std::string>& arguments) {
        const auto side = work_ / "out" / ("new" + ending);
        write_file_atomically(side, "precious");
        expect_refused(arguments, {side.string(), "--force"});
        fs::remove(side);
    };
    for (const auto* ending : {".recipe.json", ".tensor-types.txt", ".imatrix.gguf", ".results.json"})
        expect_kept(ending, {"quantize", model, "--size", "3MB", "-o", fresh().string()});
    expect_kept(".tensor-types.txt", {"allocate", model, "--size", "3MB", "--journal", journal, "-o",
                                      (work_ / "out" / "new.json").string()});
    fs::copy_file(small_model(), fresh());
    for (const auto* ending : {".facts.json", ".findings.json"})
        expect_kept(ending, {"card", fresh().string(), "--journal", journal});
}

TEST_F(Outputs, a_publication_replaces_nothing_that_it_reads) {
    const auto folder = work_ / "out";
    fs::copy_file(small_model(), folder / "name.gguf");
    expect_refused({"publish", (folder / "name.gguf").string(), "--size", "3MB", "--folder", folder.string(),
                    "--file-name", "name", "--force"},
                   {"would replace", "name.gguf"});
    write_file_atomically(folder / "README.md", testing::some_text());
    expect_refused({"publish", small_model().string(), "--size", "3MB", "--folder", folder.string(), "--text",
                    (folder / "README.md").string(), "--force"},
                   {"would replace", "README.md"});
}

/// Whether some process holds a lock on the file, which is there a moment earlier. Seen without touching it: whoever
/// asked for the lock would be in the way of the one who is about to take it.
bool is_locked(const fs::path& path) {
    struct stat info {};
    if (::stat(path.c_str(), &info) != 0) return false;
    return proc_text("/proc/locks").find(fmt::format(":{} ", info.st_ino)) != std::string::npos;
}

TEST_F(Outputs, are_written_by_one_run_at_a_time) {
    const auto text = work_ / "text";
    write_file_atomically(text, testing::some_text());
    const std::vector<std::string> quantize = {"quantize",  small_model().string(),
                                               "--size",    "3MB",
                                               "-o",        fresh().string(),
                                               "--text",    text.string(),
                                               "--ctx",     "64",
                                               "--tokens",  "64",
                                               "--types",   "q2_K,q8_0",
                                               "--threads", "1",
                                               "-q"};
    const auto lock = work_ / "out" / "new.gguf.lock";
    {
        Program first(with_program(quantize), work_.path());
        while (first.running() && !is_locked(lock)) std::this_thread::sleep_for(std::chrono::milliseconds(2));
        first.send(SIGSTOP);
        auto second = quantize;
        second.insert(second.end(), {"--journal", (work_ / "other.db").string(), "--force"});
        const auto refused = run(second);
        EXPECT_EQ(refused.code, 1);
        EXPECT_THAT(refused.errors, AllOf(HasSubstr("another run"), HasSubstr(fresh().string())));
        EXPECT_FALSE(fs::exists(work_ / "other.db"));
        first.send(SIGKILL);
        EXPECT_EQ(first.wait().signal, SIGKILL);
    }
    EXPECT_TRUE(fs::exists(lock));
    // What a killed run leaves keeps nobody from going on, and is gone afterwards.
    write_file_atomically(work_ / "out" / "new.gguf.unverified.1.partial", "left behind");
    const auto third = run(quantize);
    EXPECT_EQ(third.code, 0) << third.errors;
    for (const auto& entry : fs::directory_iterator(work_ / "out"))
        EXPECT_THAT(entry.path().filename().string(),
                    ::testing::AnyOf("new.gguf", "new.recipe.json", "new.tensor-types.txt", "new.imatrix.gguf",
                                     "new.results.json", ::testing::StartsWith("wikicode-6.8M-f16.cerebellum.db")));
    expect_refused(quantize, {fresh().string(), "--force"});
}

}  // namespace
}  // namespace cerebellum
