// From a model to a folder that can be published, with the real executable on the embedded model.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <nlohmann/json.hpp>
#include <regex>

#include "tests/e2e/program.h"

namespace cerebellum {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using testing::Program;
using testing::ProgramResult;
using testing::run_program;
using testing::small_model;
using testing::TemporaryFolder;

namespace fs = std::filesystem;

class Publish : public ::testing::Test {
  protected:
    Publish() { write_file_atomically(text(), testing::some_text()); }

    fs::path text() const { return work_ / "text.txt"; }
    fs::path folder() const { return work_ / "out"; }

    ProgramResult run(const std::vector<std::string>& arguments) const {
        return run_program(arguments, work_.path(), std::chrono::seconds(400));
    }
    std::vector<std::string> command(const std::string& size) const {
        return {"publish",      small_model().string(), "--size",    size,  "--folder",  folder().string(),
                "--text",       text().string(),        "--tokens",  "256", "--ctx",     "64",
                "--types",      "q2_K,q4_K,q8_0",       "--threads", "1",   "--license", "cc-by-sa-3.0",
                "--base-model", "someone/wikicode"};
    }
    ProgramResult publish(const std::string& size, const std::vector<std::string>& more = {}) const {
        auto arguments = command(size);
        arguments.insert(arguments.end(), more.begin(), more.end());
        return run(arguments);
    }
    std::string read(const std::string& name) const { return read_file(folder() / name); }

    TemporaryFolder work_;
};

/// Everything that a card links to is there, and is what the card says.
void check_links(const fs::path& folder, const std::string& card) {
    const std::regex link(R"(\[([^\]]*)\]\(([^)#]*)#([^)]*)\))");
    std::size_t count = 0;
    for (std::sregex_iterator i(card.begin(), card.end(), link), end; i != end; ++i, ++count) {
        const auto stored = nlohmann::json::parse(read_file(folder / (*i)[2].str()));
        const nlohmann::json::json_pointer pointer((*i)[3].str());
        ASSERT_TRUE(stored.contains(pointer)) << (*i)[0];
        EXPECT_TRUE(stored.at(pointer).is_number()) << (*i)[0];
    }
    EXPECT_GT(count, 50U);
}

/// Whole publications: each takes most of a minute.
class PublishSlow : public Publish {};

TEST_F(PublishSlow, one_command_makes_the_whole_folder_and_goes_on_where_it_stopped) {
    const auto name = std::string("wikicode-6.8M-3MB");
    const auto first = publish("3MB");
    ASSERT_EQ(first.code, 0) << first.errors;
    for (const auto& file :
         {name + ".gguf", std::string("README.md"), std::string("Modelfile"), name + ".results.json",
          name + ".recipe.json", name + ".tensor-types.txt", name + ".imatrix.gguf", name + ".facts.json",
          name + ".findings.json", name + ".serving.json", name + ".report.html", std::string("SHA256SUMS")})
        EXPECT_TRUE(fs::exists(folder() / file)) << file;
    EXPECT_LE(fs::file_size(folder() / (name + ".gguf")), 3'000'000U);

    const auto card = read("README.md");
    check_links(folder(), card);
    EXPECT_THAT(card, HasSubstr("license: cc-by-sa-3.0"));
    EXPECT_THAT(card, HasSubstr("someone/wikicode"));
    EXPECT_THAT(card, HasSubstr("cerebellum publish wikicode-6.8M-f16.gguf --size 3MB"));
    EXPECT_THAT(card, Not(HasSubstr(work_.path().string())));  // no path of this machine
    EXPECT_THAT(card, HasSubstr("](" + name + ".report.html)"));
    EXPECT_THAT(read(name + ".report.html"), HasSubstr(name + ".results.json"));
    EXPECT_THAT(read("SHA256SUMS"), HasSubstr("  " + name + ".gguf\n"));
    EXPECT_THAT(read("SHA256SUMS"), HasSubstr("  " + name + ".report.html\n"));
    EXPECT_THAT(read("Modelfile"), HasSubstr("FROM ./" + name + ".gguf"));
    EXPECT_EQ(Program({"bash", "-c", "cd " + testing::quoted(folder()) + " && sha256sum --check --quiet SHA256SUMS"},
                      work_.path())
                  .wait()
                  .code,
              0);

    // What it was made of is said, and holds: from the source it comes out the same again.
    const auto statement = (folder() / (name + ".derivation.json")).string();
    EXPECT_THAT(read(name + ".derivation.json"), Not(HasSubstr(work_.path().string())));
    const auto derived = run({"verify-derivation", statement, "--source", small_model().string(), "--threads", "1"});
    EXPECT_EQ(derived.code, 0) << derived.output << derived.errors;
    EXPECT_THAT(derived.output, HasSubstr("made again, with the same bytes"));

    // A damaged output is noticed, by the checker and by the next run, which makes it again.
    const auto whole = read(name + ".gguf");
    auto damaged = whole;
    damaged[damaged.size() / 2] = static_cast<char>(damaged[damaged.size() / 2] ^ 1);
    write_file_atomically(folder() / (name + ".gguf"), damaged);
    const auto checked = run({"verify-derivation", statement});
    EXPECT_EQ(checked.code, 1);
    EXPECT_THAT(checked.output, HasSubstr("DIFFERS"));
    const auto mended = publish("3MB");
    EXPECT_EQ(mended.code, 0) << mended.errors;
    EXPECT_TRUE(read(name + ".gguf") == whole);
    const auto mended_card = read("README.md");

    // Done is done; what is missing is made again.
    const auto written = fs::last_write_time(folder() / (name + ".gguf"));
    const auto again = publish("3MB");
    EXPECT_EQ(again.code, 0) << again.errors;
    EXPECT_EQ(again.errors.find("quantize:"), std::string::npos) << again.errors;
    EXPECT_EQ(fs::last_write_time(folder() / (name + ".gguf")), written);

    // The folder is not touched by another job unless it is told to.
    const auto other = publish("4MB");
    EXPECT_EQ(other.code, 1);
    EXPECT_THAT(other.errors, HasSubstr("--force"));
    EXPECT_EQ(read("README.md"), mended_card);
    ASSERT_EQ(publish("4MB", {"--force", "--json"}).code, 0);
    EXPECT_TRUE(fs::exists(folder() / "wikicode-6.8M-4MB.gguf"));
    EXPECT_THAT(read("README.md"), HasSubstr("wikicode-6.8M-4MB"));
}

TEST_F(PublishSlow, is_resumed_after_it_was_killed) {
    Program program(testing::with_program(command("3MB")), work_.path());
    const auto journal = folder() / "wikicode-6.8M.cerebellum.db";
    while (program.running() && !fs::exists(journal)) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    program.send(SIGTERM);
    const auto stopped = program.wait();
    EXPECT_NE(stopped.code, 0);
    EXPECT_FALSE(fs::exists(folder() / "README.md"));
    const auto resumed = publish("3MB");
    ASSERT_EQ(resumed.code, 0) << resumed.errors;
    check_links(folder(), read("README.md"));
}

TEST_F(Publish, refuses_what_cannot_be_done) {
    fs::create_directories(folder());
    write_file_atomically(folder() / "mine.txt", "x");
    const auto occupied = publish("3MB");
    EXPECT_EQ(occupied.code, 1);
    EXPECT_THAT(occupied.errors, HasSubstr("not empty"));
    fs::remove(folder() / "mine.txt");
    EXPECT_EQ(run({"publish", small_model().string(), "--folder", folder().string()}).code, 2);
    EXPECT_EQ(run({"publish", "--size", "3MB"}).code, 2);
    EXPECT_EQ(publish("3MB", {"--file-name", "a/b"}).code, 2);
    EXPECT_EQ(publish("3MB", {"--results", (work_ / "nothing.json").string()}).code, 1);
    EXPECT_EQ(run({"publish", (work_ / "nothing.gguf").string(), "--size", "3MB", "--folder", folder().string()}).code,
              1);
    EXPECT_THAT(run({"publish", work_.path().string(), "--size", "3MB", "--folder", folder().string()}).errors,
                HasSubstr("cerebellum convert"));
    const auto impossible = publish("1kB");
    EXPECT_EQ(impossible.code, 1);
    EXPECT_THAT(impossible.errors, HasSubstr("smallest possible file"));
}

TEST_F(Publish, modelfile_and_server_line_are_the_files_own) {
    const auto shown = run({"modelfile", small_model().string(), "--ctx", "256"});
    ASSERT_EQ(shown.code, 0) << shown.errors;
    EXPECT_THAT(shown.output, HasSubstr("FROM ./wikicode-6.8M-f16.gguf\n"));
    EXPECT_THAT(shown.output, HasSubstr("PARAMETER num_ctx 256\n"));
    EXPECT_THAT(shown.output, HasSubstr("--ctx-size 256 --parallel 1"));
    const auto json = nlohmann::json::parse(run({"modelfile", small_model().string(), "--json"}).output);
    EXPECT_EQ(json["template"], "none");
    EXPECT_TRUE(json["fits"].get<bool>());
    EXPECT_GT(json["memory"][0]["total"].get<std::uint64_t>(), fs::file_size(small_model()) / 2);
    const auto output = (work_ / "Modelfile").string();
    EXPECT_EQ(run({"modelfile", small_model().string(), "-o", output}).code, 0);
    EXPECT_EQ(run({"modelfile", small_model().string(), "-o", output}).code, 1);
    EXPECT_EQ(run({"modelfile", small_model().string(), "-o", output, "--force"}).code, 0);
    EXPECT_EQ(run({"modelfile", small_model().string(), "--kv", "q9"}).code, 2);
    EXPECT_EQ(run({"modelfile", small_model().string(), "--serve-on", "CUDA7"}).code, 2);
    EXPECT_EQ(run({"modelfile", text().string()}).code, 1);
}

TEST_F(Publish, a_card_of_a_file_alone) {
    fs::create_directories(folder());
    fs::copy_file(small_model(), folder() / "alone.gguf");
    const auto file = (folder() / "alone.gguf").string();
    ASSERT_EQ(run({"card", file, "--tag", "demo"}).code, 0);
    const auto card = read("README.md");
    EXPECT_THAT(card, HasSubstr("- demo"));
    EXPECT_THAT(card, Not(HasSubstr("KLD")));
    EXPECT_EQ(run({"card", file}).code, 1);  // there is one already
    EXPECT_EQ(run({"card", file, "--force", "--results", (folder() / "alone.facts.json").string()}).code, 1);
    EXPECT_EQ(run({"card", file, "--force", "--journal", text().string()}).code, 1);
    EXPECT_EQ(read("README.md"), card);
}

TEST_F(Publish, a_card_quotes_figures_of_its_own_file_only) {
    fs::create_directories(folder());
    const auto file = (folder() / "o.gguf").string(), journal = (folder() / "j.db").string();
    const std::vector<std::string> small = {"--text",  text().string(), "--ctx",     "64", "--tokens", "64",
                                            "--types", "q2_K,q8_0",     "--threads", "1",  "-q"};
    auto quantize =
        std::vector<std::string>{"quantize", small_model().string(), "--size", "3MB", "-o", file, "--journal", journal};
    quantize.insert(quantize.end(), small.begin(), small.end());
    const auto made = run(quantize);
    ASSERT_EQ(made.code, 0) << made.errors;
    const auto results = nlohmann::json::parse(read("o.results.json"));
    EXPECT_EQ(results["output"], "o.gguf");
    EXPECT_EQ(results["sha256"].get<std::string>().size(), 64U);
    ASSERT_EQ(run({"card", file, "--journal", journal}).code, 0);
    EXPECT_THAT(read("README.md"), HasSubstr("Its KL divergence from the source is"));

    // Figures of the same name, of another file.
    const auto speed = (folder() / "speed.json").string();
    write_file_atomically(speed, R"({"prompt_tokens": 1, "files": [{"file": "o.gguf", "sha256": "00"}]})");
    EXPECT_THAT(run({"card", file, "--force", "--results", speed}).errors,
                HasSubstr("speed.json is about another file"));
    write_file_atomically(speed, R"({"prompt_tokens": 1, "files": [{"file": "o.gguf"}]})");
    EXPECT_THAT(run({"card", file, "--force", "--results", speed}).errors, HasSubstr("does not say by a digest"));

    // A journal and results of another model: one weight differs.
    auto content = read_file(small_model());
    content[content.size() - 1000] = static_cast<char>(content[content.size() - 1000] ^ 1);
    const auto other_model = (folder() / "other.gguf").string(), other = (folder() / "other.db").string();
    write_file_atomically(other_model, content);
    auto ablate =
        std::vector<std::string>{"ablate", other_model, "--journal", other, "--tensors", "blk.0.attn_q.weight"};
    ablate.insert(ablate.end(), small.begin(), small.end());
    ASSERT_EQ(run(ablate).code, 0);
    const auto card = read("README.md"), findings = read("o.findings.json");
    EXPECT_THAT(run({"card", file, "--force", "--journal", other}).errors, HasSubstr("measured on another model"));
    EXPECT_EQ(read("README.md"), card);
    EXPECT_EQ(read("o.findings.json"), findings);
    const auto page = run({"report", "--journal", other, "--results", (folder() / "o.results.json").string(), "-o",
                           (folder() / "page.html").string()});
    EXPECT_EQ(page.code, 1);
    EXPECT_THAT(page.errors, HasSubstr("o.results.json is about files of another model"));

    // The file is built again in other types: what lies beside it is about the old one.
    ASSERT_EQ(run({"build", small_model().string(), "--preset", "Q4_0", "-o", file, "--force", "--threads", "1"}).code,
              0);
    const auto stale = run({"card", file, "--force"});
    EXPECT_EQ(stale.code, 1);
    EXPECT_THAT(stale.errors, HasSubstr("o.results.json is about another file than o.gguf"));
    fs::remove(folder() / "o.results.json");
    EXPECT_THAT(run({"card", file, "--force"}).errors, HasSubstr("o.recipe.json is about another file"));
    fs::remove(folder() / "o.recipe.json");
    fs::remove(folder() / "o.findings.json");
    const auto plain = run({"card", file, "--force"});
    ASSERT_EQ(plain.code, 0) << plain.errors;
    EXPECT_THAT(read("README.md"), Not(HasSubstr("measured")));
    // The journal is of its source; a stock file does not say what it was made from.
    EXPECT_EQ(run({"card", file, "--force", "--journal", journal}).code, 0);
    ASSERT_EQ(run({"build", small_model().string(), "--preset", "Q4_0", "--no-provenance", "-o", file, "--force",
                   "--threads", "1"})
                  .code,
              0);
    EXPECT_THAT(run({"card", file, "--force", "--journal", journal}).errors,
                HasSubstr("does not say what it was made from"));
}

TEST_F(Publish, the_front_matter_is_text_for_every_reader_of_yaml) {
    const auto check = [&](const std::string& line) { return Program({"python3", "-c", line}, work_.path()).wait(); };
    if (check("import yaml").code != 0) GTEST_SKIP() << "python3 has no yaml here";
    fs::create_directories(folder());
    fs::copy_file(small_model(), folder() / "1e3 100%.gguf");
    ASSERT_EQ(run({"card", (folder() / "1e3 100%.gguf").string(), "--tag", "no", "--tag", "2020-01-02", "--tag", "012",
                   "--language", "no", "--quantized-by", "1e3", "--license", "null", "--license-link", "~",
                   "--base-model", "on"})
                  .code,
              0);
    const auto read_back = check(fmt::format(
        "import yaml, json; card = open({}).read(); print(json.dumps(yaml.safe_load(card.split('---\\n')[1]), "
        "default=str))",
        testing::quoted(folder() / "README.md")));
    ASSERT_EQ(read_back.code, 0) << read_back.errors;
    const auto front = nlohmann::json::parse(read_back.output);
    EXPECT_EQ(front["tags"], nlohmann::json({"gguf", "no", "2020-01-02", "012"}));
    EXPECT_EQ(front["language"], nlohmann::json({"no"}));
    EXPECT_EQ(front["quantized_by"], "1e3");
    EXPECT_EQ(front["license"], "other");
    EXPECT_EQ(front["license_name"], "null");
    EXPECT_EQ(front["license_link"], "~");
    EXPECT_EQ(front["base_model"], nlohmann::json({"on"}));
    EXPECT_FALSE(front.contains("base_model_relation"));  // nothing is quantized in it
}

TEST_F(Publish, a_modelfile_names_the_file_from_its_own_folder) {
    fs::create_directories(folder() / "deep");
    fs::copy_file(small_model(), folder() / "my model.gguf");
    const auto file = (folder() / "my model.gguf").string();
    ASSERT_EQ(run({"modelfile", file, "-o", (folder() / "deep" / "Modelfile").string()}).code, 0);
    EXPECT_THAT(read("deep/Modelfile"),
                ::testing::StartsWith("# ollama create my-model -f Modelfile\nFROM \"../my model.gguf\"\n"));
    fs::create_directory_symlink(folder() / "deep", work_ / "link");
    ASSERT_EQ(run({"modelfile", file, "-o", (work_ / "link" / "Modelfile").string(), "--force"}).code, 0);
    EXPECT_THAT(read("deep/Modelfile"), HasSubstr("FROM \"../my model.gguf\"\n"));
    const auto json = nlohmann::json::parse(run({"modelfile", file, "--json"}).output);
    EXPECT_THAT(json["llama_server"].get<std::string>(), HasSubstr("--model 'my model.gguf' "));
    EXPECT_EQ(json["sha256"].get<std::string>().size(), 64U);
}

class SlowHub : public Publish {};

/// What the Hub's own library makes of a card. Needs the package index; skips without it.
TEST_F(SlowHub, reads_the_card_as_it_is_meant) {
    const auto python = work_ / "venv" / "bin" / "python";
    const auto shell = [&](const std::string& line) { return Program({"bash", "-c", line}, work_.path()).wait(); };
    if (shell("python3 -m venv " + testing::quoted(work_ / "venv")).code != 0)
        GTEST_SKIP() << "python3 has no venv here";
    if (shell(testing::quoted(python) + " -m pip install --quiet huggingface_hub").code != 0)
        GTEST_SKIP() << "huggingface_hub cannot be installed here";
    ASSERT_EQ(publish("3MB").code, 0);
    const auto checked = shell(fmt::format("{} {} {}", testing::quoted(python),
                                           testing::quoted(fs::path(CEREBELLUM_SOURCE_DIR) / "tests/e2e/check_card.py"),
                                           testing::quoted(folder() / "README.md")));
    EXPECT_EQ(checked.code, 0) << checked.output << checked.errors;
}

}  // namespace
}  // namespace cerebellum
