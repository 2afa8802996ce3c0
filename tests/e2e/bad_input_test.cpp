// Whatever is wrong with the input: the right exit code, one line that says what to do, and nothing left behind.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mount.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "cerebellum/gguf/gguf_file.h"
#include "tests/e2e/program.h"

namespace cerebellum {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::ProgramResult;
using testing::run_program;
using testing::small_model;
using testing::TemporaryFolder;
using testing::TestTensor;

namespace fs = std::filesystem;

constexpr int failure = 1;
constexpr int usage = 2;

/// A recipe that leaves every tensor as it is and does not know the size of the file.
constexpr auto no_change = R"({"format": "cerebellum-recipe", "version": 1, "source": {}, "types": {}})";

class BadInput : public ::testing::Test {
  protected:
    BadInput() { fs::create_directory(work_ / "out"); }

    fs::path out() const { return work_ / "out"; }
    std::string output() const { return (out() / "small.gguf").string(); }

    /// Everything below the output's folder.
    std::set<std::string> left_behind() const {
        std::set<std::string> names;
        for (const auto& entry : fs::recursive_directory_iterator(out()))
            names.insert(entry.path().filename().string());
        return names;
    }

    void expect_one_line(const ProgramResult& result, int code) {
        EXPECT_EQ(result.code, code) << "signal " << result.signal << ", stderr:\n" << result.errors;
        EXPECT_TRUE(result.errors.starts_with("cerebellum: ")) << result.errors;
        EXPECT_EQ(std::ranges::count(result.errors, '\n'), 1) << result.errors;
        EXPECT_TRUE(result.errors.ends_with('\n')) << result.errors;
        EXPECT_EQ(result.output, "");
    }

    /// Runs, expects the code and the single line, and returns that line.
    std::string refused(const std::vector<std::string>& arguments, int code) {
        const auto before = left_behind();
        const auto result = run_program(arguments, work_.path(), std::chrono::seconds(10));
        expect_one_line(result, code);
        for (const auto& name : left_behind()) {
            if (before.contains(name)) continue;
            // A journal may have begun; it is what makes the next run resume.
            EXPECT_NE(name.find(".cerebellum.db"), std::string::npos) << name << " was left behind\n" << result.errors;
        }
        return result.errors;
    }

    std::vector<std::string> quantize(const fs::path& model, std::vector<std::string> more = {}) const {
        std::vector<std::string> all = {"quantize", model.string(), "--size", "3MB", "-o", output(), "--threads", "1"};
        all.insert(all.end(), more.begin(), more.end());
        return all;
    }

    /// A file that is no usable model must be refused by every command that reads one, and its name be in the message.
    void expect_refused_model(const fs::path& model, const ::testing::Matcher<std::string>& message) {
        EXPECT_THAT(refused(quantize(model), failure), AllOf(HasSubstr(model.string()), message));
        EXPECT_THAT(refused({"inspect", model.string()}, failure), AllOf(HasSubstr(model.string()), message));
        EXPECT_THAT(
            refused({"ablate", model.string(), "--threads", "1", "--journal", (out() / "a.cerebellum.db").string()},
                    failure),
            AllOf(HasSubstr(model.string()), message));
        EXPECT_THAT(refused({"allocate", model.string(), "--size", "3MB", "-o", (out() / "r.json").string()}, failure),
                    AllOf(HasSubstr(model.string()), message));
        EXPECT_THAT(refused({"verify", small_model().string(), model.string(), "--threads", "1", "--journal",
                             (out() / "v.cerebellum.db").string()},
                            failure),
                    AllOf(HasSubstr(model.string()), message));
    }

    fs::path write(const std::string& name, const std::string& content) {
        write_file_atomically(work_ / name, content);
        return work_ / name;
    }

    TemporaryFolder work_;
};

TEST_F(BadInput, missing_model) {
    expect_refused_model(work_ / "nowhere.gguf", HasSubstr("no such file"));
}

TEST_F(BadInput, a_folder_in_the_place_of_a_model) {
    expect_refused_model(out(), HasSubstr("directory"));
}

TEST_F(BadInput, truncated_header) {
    for (const std::size_t length : {0, 3, 10, 24, 5000})
        expect_refused_model(write("short.gguf", read_file(small_model()).substr(0, length)), HasSubstr(""));
}

TEST_F(BadInput, truncated_data) {
    const auto all = read_file(small_model());
    expect_refused_model(write("short.gguf", all.substr(0, all.size() - 1000)), HasSubstr(""));
    expect_refused_model(write("short.gguf", all.substr(0, all.size() / 2)), HasSubstr(""));
}

TEST_F(BadInput, no_gguf) {
    expect_refused_model(write("text.gguf", "This is a text, not a model.\n"), HasSubstr("GGUF"));
}

TEST_F(BadInput, another_version) {
    for (const char version : {'\1', '\11', '\177'}) {
        auto content = read_file(small_model());
        content[4] = version;
        expect_refused_model(write("version.gguf", content), HasSubstr("version"));
    }
}

TEST_F(BadInput, no_tensors) {
    const auto path = work_ / "empty.gguf";
    testing::write_test_gguf(path, {}, [](gguf_context*) {});
    expect_refused_model(path, HasSubstr("tensor"));
}

TEST_F(BadInput, an_architecture_that_llama_cpp_does_not_know) {
    const auto path = work_ / "unknown.gguf";
    testing::write_test_gguf(path, {{"token_embd.weight", GGML_TYPE_F16, {256, 64, 1, 1}}}, [](gguf_context* context) {
        gguf_set_val_str(context, "general.architecture", "positronic");
    });
    EXPECT_THAT(refused(quantize(path), failure), AllOf(HasSubstr(path.string()), HasSubstr("positronic")));
    EXPECT_THAT(refused({"ablate", path.string(), "--threads", "1", "--journal", (out() / "a.cerebellum.db").string()},
                        failure),
                HasSubstr("positronic"));
    EXPECT_EQ(run_program({"inspect", path.string()}, work_.path()).code, 0);  // looking at it is still possible
}

TEST_F(BadInput, a_model_that_llama_cpp_cannot_load) {
    const auto path = work_ / "incomplete.gguf";
    testing::write_test_gguf(path, {{"token_embd.weight", GGML_TYPE_F16, {256, 64, 1, 1}}}, [](gguf_context*) {});
    EXPECT_THAT(refused(quantize(path), failure), HasSubstr(path.string()));
}

TEST_F(BadInput, output_folders_that_cannot_be_written) {
    const auto file = write("file", "x");
    for (const fs::path& folder : {file, work_ / "nowhere", fs::path("/proc"), fs::path("/proc/self")}) {
        const auto path = (folder / "small.gguf").string();
        EXPECT_THAT(refused({"quantize", small_model().string(), "--size", "3MB", "-o", path, "--threads", "1",
                             "--journal", (out() / "j.cerebellum.db").string()},
                            failure),
                    HasSubstr(path));
        EXPECT_THAT(refused({"allocate", small_model().string(), "--size", "3MB", "-o", path}, failure),
                    HasSubstr(path));
    }
    EXPECT_THAT(
        refused({"quantize", small_model().string(), "--size", "3MB", "-o", out().string(), "--threads", "1"}, failure),
        HasSubstr("directory"));
}

TEST_F(BadInput, an_output_folder_without_permission) {
    // Permission bits mean nothing to root, so the program runs as somebody else.
    if (::geteuid() != 0 || !fs::exists("/usr/bin/setpriv")) GTEST_SKIP() << "needs root and setpriv";
    const auto locked = work_ / "out/locked";
    fs::create_directory(locked);
    fs::permissions(locked, fs::perms(0555));
    fs::permissions(work_.path(), fs::perms(0755));
    // The executable and the model may lie where only root can look.
    const auto program = work_ / "cerebellum", model = work_ / "model.gguf";
    fs::copy_file(CEREBELLUM_EXECUTABLE, program);
    fs::copy_file(small_model(), model);
    const auto path = (locked / "small.gguf").string();
    const auto result =
        testing::Program({"/usr/bin/setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", program.string(),
                          "quantize", model.string(), "--size", "3MB", "-o", path, "--threads", "1"},
                         work_.path())
            .wait();
    expect_one_line(result, failure);
    EXPECT_THAT(result.errors, AllOf(HasSubstr(path), HasSubstr("Permission denied")));
    EXPECT_TRUE(fs::is_empty(locked));
}

/// A very small file system of its own.
class SmallDisk {
  public:
    SmallDisk(const fs::path& folder, const char* size) : folder_(folder) {
        fs::create_directory(folder);
        mounted_ = ::mount("tmpfs", folder.c_str(), "tmpfs", 0, (std::string("size=") + size).c_str()) == 0;
    }
    ~SmallDisk() {
        if (mounted_) ::umount2(folder_.c_str(), MNT_DETACH);
    }
    SmallDisk(const SmallDisk&) = delete;
    SmallDisk& operator=(const SmallDisk&) = delete;
    bool mounted() const { return mounted_; }

  private:
    fs::path folder_;
    bool mounted_ = false;
};

TEST_F(BadInput, an_output_folder_without_space) {
    const auto folder = out() / "disk";
    const SmallDisk disk(folder, "1m");
    if (!disk.mounted()) GTEST_SKIP() << "a small file system cannot be mounted here: " << std::strerror(errno);
    const auto path = (folder / "small.gguf").string();
    const auto journal = (out() / "j.cerebellum.db").string();
    // Known before the work starts: the budget is larger than what is free.
    EXPECT_THAT(refused({"quantize", small_model().string(), "--size", "3MB", "-o", path, "--threads", "1", "--journal",
                         journal},
                        failure),
                AllOf(HasSubstr(path), HasSubstr("free")));
    EXPECT_TRUE(fs::is_empty(folder));
    // Found out while writing: a recipe that does not say how large its file will be.
    const auto recipe = write("recipe.json", no_change);
    const auto built =
        run_program({"build", small_model().string(), "--recipe", recipe.string(), "-o", path, "--threads", "1", "-q"},
                    work_.path());
    EXPECT_EQ(built.code, failure) << built.errors;
    EXPECT_TRUE(fs::is_empty(folder));
}

TEST_F(BadInput, a_full_disk_for_the_journal) {
    const auto folder = out() / "disk";
    const SmallDisk disk(folder, "64k");
    if (!disk.mounted()) GTEST_SKIP() << "a small file system cannot be mounted here: " << std::strerror(errno);
    const auto text = write("text.txt", testing::some_text());
    const auto line =
        run_program({"ablate", small_model().string(), "--text", text.string(), "--ctx", "64", "--tokens", "64",
                     "--types", "q4_K", "--threads", "1", "-q", "--journal", (folder / "j.db").string()},
                    work_.path());
    expect_one_line(line, failure);
    EXPECT_THAT(line.errors, HasSubstr((folder / "j.db").string()));
}

/// A copy of the model with a weight that is no number as the last one of a row of a tensor.
fs::path with_a_nan(const std::string& name, std::int64_t row, const fs::path& path) {
    const auto source = GgufFile::open(small_model());
    const auto* tensor = source.find(name);
    EXPECT_EQ(tensor->type, GGML_TYPE_F16);
    const auto data = source.data(*tensor);
    auto bytes = read_file(small_model());
    const auto* begin = reinterpret_cast<const char*>(data.data());
    const auto at = std::search(bytes.begin(), bytes.end(), begin, begin + 4096) - bytes.begin();
    const std::uint16_t nan = 0x7e00;
    const auto end_of_row = static_cast<std::size_t>((row + 1) * tensor->row_length()) * sizeof nan;
    EXPECT_LE(end_of_row, data.size());
    std::memcpy(bytes.data() + static_cast<std::size_t>(at) + end_of_row - sizeof nan, &nan, sizeof nan);
    write_file_atomically(path, bytes);
    return path;
}

TEST_F(BadInput, weights_that_are_no_numbers) {
    write_file_atomically(work_ / "text.txt", testing::some_text());
    const auto ablate = [&](const fs::path& model) {
        return std::vector<std::string>{"ablate",    model.string(),
                                        "--text",    (work_ / "text.txt").string(),
                                        "--ctx",     "64",
                                        "--tokens",  "128",
                                        "--types",   "q4_0,q2_K",
                                        "--tensors", "token_embd.weight",
                                        "--tensors", "blk.0.attn_q.weight",
                                        "--threads", "1",
                                        "--journal", (out() / "a.cerebellum.db").string()};
    };
    // Where everything goes through it, nothing can be measured.
    EXPECT_THAT(refused(ablate(with_a_nan("blk.2.attn_q.weight", 255, work_ / "nan.gguf")), failure),
                AllOf(HasSubstr("nan.gguf"), HasSubstr("blk.2.attn_q.weight")));
    // So too where every window looks it up: the last token begins them.
    fs::remove(out() / "a.cerebellum.db");
    constexpr std::int64_t first_of_text = 4095, byte_ff = 255;
    EXPECT_THAT(refused(ablate(with_a_nan("token_embd.weight", first_of_text, work_ / "bos.gguf")), failure),
                AllOf(HasSubstr("bos.gguf"), HasSubstr("token_embd.weight")));
    // In a row that no text in UTF-8 looks up it concerns its tensor alone, which is left as it is, although only rows
    // of the text are measured.
    fs::remove(out() / "a.cerebellum.db");
    const auto result = run_program(ablate(with_a_nan("token_embd.weight", byte_ff, work_ / "row.gguf")), work_.path());
    EXPECT_EQ(result.code, 0) << result.errors;
    EXPECT_THAT(result.errors, AllOf(HasSubstr("token_embd.weight keeps the source's type"), HasSubstr("nan")));
    EXPECT_THAT(result.output, HasSubstr("blk.0.attn_q.weight"));
    EXPECT_THAT(result.output, ::testing::Not(HasSubstr("token_embd.weight")));
}

TEST_F(BadInput, texts_without_text) {
    for (const std::string content : {"", " \n\t\n"}) {
        const auto text = write("empty.txt", content);
        EXPECT_THAT(refused(quantize(small_model(), {"--text", text.string(), "-q"}), failure),
                    HasSubstr(text.string()));
    }
    EXPECT_THAT(refused(quantize(small_model(), {"--text", (work_ / "nowhere.txt").string()}), failure),
                HasSubstr("nowhere.txt"));
    const auto text = write("short.txt", "A few words.");
    EXPECT_THAT(refused(quantize(small_model(), {"--text", text.string(), "-q"}), failure), HasSubstr("too short"));
}

TEST_F(BadInput, texts_that_are_not_utf8) {
    // A file packed with bzip2, a text in Latin-1, one that was cut within a character.
    for (const std::string content : {"BZh91AY&SY\xd9\xd9 and so on", "Na\xefve text of many words", "Na\xc3"}) {
        const auto text = write("text.txt", content).string();
        for (const auto& arguments : std::vector<std::vector<std::string>>{
                 quantize(small_model(), {"--text", text, "-q"}),
                 {"imatrix", "compute", small_model().string(), "--text", text, "-o", (work_ / "i.gguf").string()},
                 {"eval", "ppl", small_model().string(), "--text", text}}) {
            const auto errors = refused(arguments, failure);
            EXPECT_THAT(errors, HasSubstr(text));
            EXPECT_THAT(errors, HasSubstr("UTF-8"));
        }
    }
}

TEST_F(BadInput, sizes_that_are_none) {
    for (const std::string size : {"large", "", "-3MB", "0", "3XB", "nan", "1e400GB", "4.25 bpw or so", "inf"})
        EXPECT_THAT(
            refused({"quantize", small_model().string(), "--size", size, "-o", output(), "--threads", "1"}, usage),
            HasSubstr("size"))
            << size;
}

TEST_F(BadInput, a_size_that_no_file_can_have) {
    // With the smallest possible size in the message, which then works as a size.
    const auto text = write("text.txt", testing::some_text());
    const std::vector<std::string> common = {"--text",  text.string(), "--ctx",     "64", "--tokens", "64",
                                             "--types", "q4_K,q2_K",   "--threads", "1",  "-q"};
    std::vector<std::string> arguments = {"quantize", small_model().string(), "--size", "1MB", "-o", output()};
    arguments.insert(arguments.end(), common.begin(), common.end());
    const auto line = refused(arguments, failure);
    const std::string before = "the smallest possible file has ";
    ASSERT_THAT(line, HasSubstr(before));
    const auto smallest = std::stoull(line.substr(line.find(before) + before.size()));
    EXPECT_GT(smallest, 2000000U);
    const auto journal = (out() / "wikicode-6.8M-f16.cerebellum.db").string();
    std::vector<std::string> measure = {"ablate", small_model().string(), "--journal", journal};
    measure.insert(measure.end(), common.begin(), common.end());
    ASSERT_EQ(run_program(measure, work_.path()).code, 0);
    const auto recipe = (out() / "recipe.json").string();
    EXPECT_THAT(refused({"allocate", small_model().string(), "--size", std::to_string(smallest - 1), "-o", recipe,
                         "--journal", journal},
                        failure),
                HasSubstr(std::to_string(smallest)));
    EXPECT_EQ(run_program({"allocate", small_model().string(), "--size", std::to_string(smallest), "-o", recipe,
                           "--journal", journal},
                          work_.path())
                  .code,
              0);
}

TEST_F(BadInput, an_output_that_exists) {
    write_file_atomically(output(), "precious");
    EXPECT_THAT(refused(quantize(small_model()), failure), AllOf(HasSubstr(output()), HasSubstr("--force")));
    EXPECT_EQ(read_file(output()), "precious");
    const auto recipe = write("recipe.json", no_change);
    EXPECT_THAT(
        refused({"build", small_model().string(), "--recipe", recipe.string(), "-o", output(), "--threads", "1"},
                failure),
        HasSubstr(""));
    EXPECT_EQ(read_file(output()), "precious");
}

TEST_F(BadInput, the_source_as_output) {
    const auto model = work_ / "out/model.gguf";
    fs::copy_file(small_model(), model);
    EXPECT_THAT(
        refused({"quantize", model.string(), "--size", "3MB", "-o", model.string(), "--threads", "1", "--force"},
                failure),
        HasSubstr(model.string()));
    EXPECT_EQ(fs::file_size(model), fs::file_size(small_model()));
}

TEST_F(BadInput, a_journal_of_something_else) {
    const auto journal = (out() / "j.cerebellum.db").string();
    const auto text = write("text.txt", testing::some_text());
    const auto other_text = write("other.txt", testing::some_text() + "and more");
    const std::vector<std::string> common = {"--journal", journal, "--ctx",     "64", "--tokens", "64",
                                             "--types",   "q4_K",  "--threads", "1",  "-q"};
    const auto ablate = [&](const std::string& model, std::vector<std::string> more) {
        std::vector<std::string> all = {"ablate", model};
        all.insert(all.end(), common.begin(), common.end());
        all.insert(all.end(), more.begin(), more.end());
        return all;
    };
    ASSERT_EQ(run_program(ablate(small_model().string(), {"--text", text.string()}), work_.path()).code, 0);
    EXPECT_THAT(refused(ablate(small_model().string(), {"--text", other_text.string()}), failure),
                AllOf(HasSubstr(journal), HasSubstr("text")));
    EXPECT_THAT(refused(ablate(small_model().string(), {}), failure), AllOf(HasSubstr(journal), HasSubstr("text")));
    // The same model but for one weight.
    auto content = read_file(small_model());
    content[content.size() - 1000] = static_cast<char>(content[content.size() - 1000] ^ 1);
    const auto other_model = write("other.gguf", content);
    EXPECT_THAT(refused(ablate(other_model.string(), {"--text", text.string()}), failure),
                AllOf(HasSubstr(journal), HasSubstr("model")));
    EXPECT_THAT(refused({"allocate", other_model.string(), "--size", "4MB", "-o", (out() / "r.json").string(),
                         "--journal", journal},
                        failure),
                HasSubstr(journal));
    // A file that is no journal at all.
    write_file_atomically(journal, "not a database, but long enough to be looked at: " + std::string(2000, 'x'));
    EXPECT_THAT(refused(ablate(small_model().string(), {"--text", text.string()}), failure), HasSubstr(journal));
    EXPECT_THAT(refused({"allocate", small_model().string(), "--size", "4MB", "-o", (out() / "r.json").string(),
                         "--journal", (work_ / "none.db").string()},
                        failure),
                HasSubstr("none.db"));
}

TEST_F(BadInput, options_that_make_no_sense) {
    const auto model = small_model().string();
    EXPECT_THAT(refused(quantize(small_model(), {"--types", "q4_K,q9_Z"}), usage), HasSubstr("q9_Z"));
    EXPECT_THAT(refused(quantize(small_model(), {"--types", "f32"}), usage), HasSubstr("f32"));
    EXPECT_THAT(refused(quantize(small_model(), {"--types", ","}), usage), HasSubstr("types"));
    EXPECT_THAT(refused(quantize(small_model(), {"--ctx", "100000"}), usage), HasSubstr("256"));
    EXPECT_THAT(refused(quantize(small_model(), {"--ctx", "2"}), usage), HasSubstr("--ctx"));
    EXPECT_THAT(refused(quantize(small_model(), {"--ctx", "128", "--tokens", "64"}), usage), HasSubstr("--tokens"));
    EXPECT_THAT(refused(quantize(small_model(), {"--tokens", "0"}), usage), HasSubstr("--tokens"));
    EXPECT_THAT(refused(quantize(small_model(), {"--tokens", "many"}), usage), HasSubstr("--tokens"));
    EXPECT_THAT(refused(quantize(small_model(), {"--seed", "-1"}), usage), HasSubstr("--seed"));
    EXPECT_THAT(refused(quantize(small_model(), {"--threads", "0"}), usage), HasSubstr("--threads"));
    EXPECT_THAT(refused(quantize(small_model(), {"--frobnicate"}), usage), HasSubstr("--frobnicate"));
    EXPECT_THAT(refused({"quantize", model, "-o", output()}, usage), HasSubstr("--size"));
    EXPECT_THAT(refused({"quantize", model, "--size", "3MB"}, usage), HasSubstr("--output"));
    EXPECT_THAT(refused({"quantize"}, usage), HasSubstr("--help"));
    EXPECT_THAT(refused({}, usage), HasSubstr("--help"));
    EXPECT_THAT(refused({"quantise", model}, usage), HasSubstr("quantise"));
}

TEST_F(BadInput, recipes_that_are_none) {
    const auto model = small_model().string();
    const auto build = [&](const fs::path& recipe) {
        return std::vector<std::string>{"build",     model, "--recipe", recipe.string(), "-o", output(),
                                        "--threads", "1",   "-q"};
    };
    EXPECT_THAT(refused(build(work_ / "none.json"), failure), HasSubstr("none.json"));
    EXPECT_THAT(refused(build(write("text.json", "no recipe")), failure), HasSubstr("text.json"));
    EXPECT_THAT(refused(build(write("empty.json", "{}")), failure), HasSubstr("empty.json"));
}

TEST_F(BadInput, importance_matrices_that_are_none) {
    const auto text = write("text.txt", testing::some_text());
    const std::vector<std::string> small = {"--text", text.string(), "--ctx", "64", "--tokens",
                                            "64",     "--types",     "q4_K",  "-q"};
    const auto with = [&](const fs::path& imatrix) {
        auto more = small;
        more.insert(more.end(), {"--imatrix", imatrix.string()});
        return quantize(small_model(), more);
    };
    EXPECT_THAT(refused(with(work_ / "none.gguf"), failure), HasSubstr("none.gguf"));
    fs::remove_all(out());
    fs::create_directory(out());
    EXPECT_THAT(refused(with(small_model()), failure), HasSubstr(small_model().string()));
    fs::remove_all(out());
    fs::create_directory(out());
    EXPECT_THAT(refused(with(text), failure), HasSubstr(text.string()));
}

TEST_F(BadInput, help_and_version_are_no_errors) {
    for (const std::vector<std::string>& arguments : std::vector<std::vector<std::string>>{{"--help"},
                                                                                           {"--version"},
                                                                                           {"quantize", "--help"},
                                                                                           {"ablate", "--help"},
                                                                                           {"allocate", "--help"},
                                                                                           {"build", "--help"},
                                                                                           {"verify", "--help"},
                                                                                           {"inspect", "--help"}}) {
        const auto result = run_program(arguments, work_.path());
        EXPECT_EQ(result.code, 0) << arguments.front();
        EXPECT_EQ(result.errors, "");
        EXPECT_NE(result.output, "");
    }
}

}  // namespace
}  // namespace cerebellum
