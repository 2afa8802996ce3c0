// `cerebellum convert`: the rules around llama.cpp's converter with a converter of our own (quick), and the real one
// on a model that the transformers package makes (slow: several GB of packages are installed the first time).
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <nlohmann/json.hpp>

#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/llama/log.h"
#include "cerebellum/llama/model.h"
#include "tests/e2e/program.h"

namespace cerebellum {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::quoted;
using testing::run_program;
using testing::small_model;
using testing::TemporaryFolder;

namespace fs = std::filesystem;

/// Of this process, and so of the programs that it starts, until the test's end.
class Variable {
  public:
    Variable(const char* name, const std::string& value) : name_(name) { ::setenv(name, value.c_str(), 1); }
    ~Variable() { ::unsetenv(name_); }
    Variable(const Variable&) = delete;
    Variable& operator=(const Variable&) = delete;

  private:
    const char* name_;
};

class Convert : public ::testing::Test {
  protected:
    Convert() : data_("CEREBELLUM_DATA", (work_ / "data").string()) {
        fs::create_directories(work_ / "data" / "converter");
        fs::create_directories(model());
        write("model/config.json", "{}");
        write("model/model.safetensors", "weights");
        converter("shutil.copyfile(os.environ['TEST_GGUF'], arguments.outfile)");
        ::setenv("TEST_GGUF", small_model().c_str(), 1);
    }

    fs::path model() { return work_ / "model"; }
    void write(const std::string& name, const std::string& content) { write_file_atomically(work_ / name, content); }
    /// A converter with the real one's arguments and way of speaking.
    void converter(const std::string& body) {
        write("data/converter/convert_hf_to_gguf.py",
              "import argparse, logging, os, shutil, sys\n"
              "parser = argparse.ArgumentParser()\n"
              "parser.add_argument('model')\n"
              "parser.add_argument('--outfile')\n"
              "parser.add_argument('--outtype')\n"
              "arguments = parser.parse_args()\n"
              "arguments.outfile = arguments.outfile.format(ftype='f16')\n"
              "logging.basicConfig(level=logging.INFO)\n"
              "log = logging.getLogger('hf-to-gguf')\n"
              "log.info('blk.0.attn_q.weight, torch.bfloat16 --> F16, shape = {256, 256}')\n" +
                  body + "\n");
    }
    testing::ProgramResult convert(std::vector<std::string> more = {}) {
        std::vector<std::string> arguments = {"convert", model().string(), "-o", out().string(), "--python", "python3"};
        arguments.insert(arguments.end(), more.begin(), more.end());
        return run_program(arguments, work_.path());
    }
    fs::path out() { return work_ / "out {1}.gguf"; }
    /// Neither the output nor what it was to become.
    void expect_nothing_left() {
        for (const auto& entry : fs::directory_iterator(work_.path()))
            EXPECT_THAT(entry.path().filename().string(), Not(HasSubstr("out {1}")));
    }

    TemporaryFolder work_;
    Variable data_;
};

TEST_F(Convert, GivesTheFileItsNameWhenItIsComplete) {
    const auto result = convert({"--json", "--verbose"});
    ASSERT_EQ(result.code, 0) << result.errors;
    EXPECT_EQ(read_file(out()), read_file(small_model()));
    const auto json = nlohmann::json::parse(result.output);
    EXPECT_EQ(json["bytes"], fs::file_size(small_model()));
    EXPECT_EQ(json["architecture"], "llama");
    EXPECT_THAT(result.errors, HasSubstr("blk.0.attn_q.weight, torch.bfloat16 --> F16"));
    EXPECT_EQ(convert().code, 1) << "replaced a file without --force";
}

TEST_F(Convert, PassesOnWarningsAndTheReasonOfAFailure) {
    converter(
        "log.warning('the tokenizer looks odd')\n"
        "open(arguments.outfile, 'wb').write(b'half')\n"
        "raise NotImplementedError('Architecture \"Strange\" not supported!')");
    const auto result = convert();
    EXPECT_EQ(result.code, 1);
    EXPECT_THAT(result.errors, HasSubstr("warning: converter: the tokenizer looks odd\n"));
    EXPECT_THAT(result.errors, HasSubstr("NotImplementedError: Architecture \"Strange\" not supported!; --verbose"));
    EXPECT_THAT(result.errors, Not(HasSubstr("Traceback")));
    expect_nothing_left();

    converter("log.error('Model Strange is not supported')\nsys.exit(1)");
    EXPECT_THAT(convert().errors, HasSubstr("Model Strange is not supported"));
}

TEST_F(Convert, LooksAtTheFileItself) {
    converter("open(arguments.outfile, 'wb').write(b'GGUF' + bytes(100))");
    const auto result = convert();
    EXPECT_EQ(result.code, 1);
    EXPECT_THAT(result.errors, HasSubstr("GGUF version is 0"));
    expect_nothing_left();
}

TEST_F(Convert, RefusesWhatIsNoModel) {
    fs::remove(model() / "config.json");
    auto result = convert();
    EXPECT_EQ(result.code, 2);
    EXPECT_THAT(result.errors, HasSubstr("has no config.json"));
    write("model/config.json", "{}");
    write("model/model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n");
    result = convert();
    EXPECT_EQ(result.code, 1);
    EXPECT_THAT(result.errors, HasSubstr("git lfs pull"));
    fs::remove(model() / "model.safetensors");
    EXPECT_THAT(convert().errors, HasSubstr("has no weights"));
    expect_nothing_left();
}

TEST_F(Convert, AStopLeavesNothingBehind) {
    converter(
        "import time\nopen(arguments.outfile, 'wb').write(b'half')\nopen(os.environ['TEST_GGUF'], 'w').write('x')\n"
        "time.sleep(60)");
    const Variable started("TEST_GGUF", (work_ / "started").string());
    testing::Program program(
        testing::with_program({"convert", model().string(), "-o", out().string(), "--python", "python3"}),
        work_.path());
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (!fs::exists(work_ / "started") && std::chrono::steady_clock::now() < deadline)
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
    program.send(SIGINT);
    const auto result = program.wait();
    EXPECT_EQ(result.code, 1);
    EXPECT_THAT(result.errors, HasSubstr("interrupted"));
    expect_nothing_left();
}

TEST_F(Convert, QuantizeTakesAFolderAndConvertsItOnce) {
    const Variable cache("CEREBELLUM_CACHE", (work_ / "cache").string());
    // The environment of our own is there already, as far as can be seen: it is the system's Python.
    write("data/converter/requirements.txt", "# nothing\n");
    // A journal that cannot be made ends the run soon after the conversion.
    const std::vector<std::string> arguments = {
        "quantize", model().string() + "/",          "--size",    "4MB",
        "-o",       (work_ / "small.gguf").string(), "--journal", (work_ / "missing" / "journal.db").string()};
    const auto make_environment = fmt::format(
        "cd {} && e=cache/converter-$(sha256sum data/converter/requirements.txt | cut -c1-12) && mkdir -p $e/bin && ln "
        "-s \"$(command -v python3)\" $e/bin/python && touch $e/complete",
        quoted(work_.path()));
    ASSERT_EQ(std::system(make_environment.c_str()), 0);
    auto result = run_program(arguments, work_.path());
    EXPECT_EQ(result.code, 1);
    EXPECT_THAT(result.errors, HasSubstr("missing"));
    const auto converted = [&] {
        std::vector<fs::path> files;
        for (const auto& entry : fs::directory_iterator(work_.path()))
            if (const auto name = entry.path().filename().string();
                name.starts_with("model-") && name.ends_with(".gguf"))
                files.push_back(entry.path());
        return files;
    };
    ASSERT_EQ(converted().size(), 1u);
    const auto first = converted().front();
    result = run_program(arguments, work_.path());
    EXPECT_THAT(result.errors, HasSubstr("which was converted before"));
    // Another time is not another model; a file that was changed is made again.
    fs::last_write_time(model() / "config.json", fs::file_time_type::clock::now() + std::chrono::hours(1));
    const auto content = read_file(first);
    auto damaged = content;
    damaged.back() = static_cast<char>(damaged.back() ^ 1);
    write_file_atomically(first, damaged);
    result = run_program(arguments, work_.path());
    EXPECT_THAT(result.errors, Not(HasSubstr("which was converted before")));
    EXPECT_EQ(read_file(first), content);
    // A folder of the same name with another model in it is another model.
    const auto other = work_ / "other" / "model";
    fs::create_directories(other.parent_path());
    fs::copy(model(), other);
    auto config = read_file(other / "config.json");
    write_file_atomically(other / "config.json", config + "\n");
    auto again = arguments;
    again[1] = other.string();
    result = run_program(again, work_.path());
    EXPECT_THAT(result.errors, Not(HasSubstr("which was converted before")));
    EXPECT_EQ(converted().size(), 2u);
}

using ConvertSlow = Convert;

TEST_F(ConvertSlow, MakesAnEnvironmentOfItsOwnOnce) {
    const Variable cache("CEREBELLUM_CACHE", (work_ / "cache").string());
    write("data/converter/requirements.txt", "# nothing to install, so that no network is needed\n");
    const std::vector<std::string> arguments = {"convert", model().string(), "-o", out().string(), "--force"};
    auto result = run_program(arguments, work_.path());
    ASSERT_EQ(result.code, 0) << result.errors;
    EXPECT_THAT(result.errors, HasSubstr("Installing the converter's packages"));
    EXPECT_EQ(read_file(out()), read_file(small_model()));
    result = run_program(arguments, work_.path());
    ASSERT_EQ(result.code, 0) << result.errors;
    EXPECT_THAT(result.errors, Not(HasSubstr("Installing")));
    // A list that cannot be satisfied: the error is pip's, and no environment counts as complete.
    write("data/converter/requirements.txt", "cerebellum-no-such-package==1.0\n");
    result = run_program(arguments, work_.path());
    EXPECT_EQ(result.code, 1);
    EXPECT_THAT(result.errors, AllOf(HasSubstr("cannot install the converter's packages"), HasSubstr("ERROR")));
}

TEST_F(ConvertSlow, LogitsAreThoseOfTransformers) {
    ::unsetenv("CEREBELLUM_DATA");  // the real converter
    const auto made = work_ / "transformers";
    auto result = run_program({"convert", model().string(), "-o", (work_ / "x.gguf").string()}, work_.path(),
                              std::chrono::hours(1));
    EXPECT_EQ(result.code, 1) << "converted a folder without a model in it";
    // The environment is there now, whatever the converter thought of the folder.
    const auto find = fmt::format(
        "ls -d \"${{CEREBELLUM_CACHE:-${{XDG_CACHE_HOME:-$HOME/.cache}}/cerebellum}}\"/converter-$(sha256sum {} | cut "
        "-c1-12)/bin/python >{}",
        quoted(fs::path(CEREBELLUM_SOURCE_DIR) / "converter/requirements.txt"), quoted(work_ / "python"));
    ASSERT_EQ(std::system(find.c_str()), 0) << result.errors;
    auto python = read_file(work_ / "python");
    python.pop_back();
    const auto make = fmt::format("{} {} {} {} >{} 2>&1", quoted(fs::path(python)),
                                  quoted(fs::path(CEREBELLUM_SOURCE_DIR) / "tests/convert/make_model.py"), quoted(made),
                                  quoted(fs::path(CEREBELLUM_SOURCE_DIR) / "LICENSE"), quoted(work_ / "log"));
    ASSERT_EQ(std::system(make.c_str()), 0) << read_file(work_ / "log");

    result = run_program({"convert", made.string(), "-o", (work_ / "f32.gguf").string(), "--type", "f32"}, work_.path(),
                         std::chrono::minutes(10));
    ASSERT_EQ(result.code, 0) << result.errors;
    const auto expected = nlohmann::json::parse(read_file(made / "logits.json"));
    const auto tokens = expected["tokens"].get<std::vector<Token>>();
    silence_llama_log();
    const auto model = Model::load(work_ / "f32.gguf");
    EXPECT_EQ(model.tokenize(expected["text"].get<std::string>()),
              std::vector<Token>(tokens.begin() + 1, tokens.end()));
    Decoder decoder(model, static_cast<int>(tokens.size()), 1);
    const auto logits = decoder.decode(tokens);
    const auto theirs = expected["logits"].get<std::vector<float>>();
    ASSERT_EQ(logits.size(), theirs.size());
    double square = 0.0, difference = 0.0;
    for (std::size_t i = 0; i < theirs.size(); ++i) {
        square += static_cast<double>(theirs[i]) * static_cast<double>(theirs[i]);
        difference += std::pow(static_cast<double>(theirs[i]) - static_cast<double>(logits[i]), 2);
    }
    // Single precision, but for the cache, which holds 16-bit floats.
    EXPECT_LT(std::sqrt(difference / square), 2e-3);
    RecordProperty("relative_difference", fmt::format("{:.2e}", std::sqrt(difference / square)));
}

}  // namespace
}  // namespace cerebellum
