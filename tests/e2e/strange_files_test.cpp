// Files that are not what they are taken for, files with strange names, and servers that say nothing: one line at once
// instead of a hang, a library's own words, or an exception after hours.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <nlohmann/json.hpp>

#include "cerebellum/evaluate/raw_server_support_test.h"
#include "cerebellum/gguf/gguf_file.h"
#include "tests/e2e/program.h"

namespace cerebellum {
namespace {

using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::ProgramResult;
using testing::run_program;
using testing::small_model;
using testing::TemporaryFolder;

namespace fs = std::filesystem;

using Arguments = std::vector<std::string>;

class BadInputFiles : public ::testing::Test {
  protected:
    std::string path(const std::string& name) const { return (work_ / name).string(); }
    std::string write(const std::string& name, const std::string& content) {
        write_file_atomically(work_ / name, content);
        return path(name);
    }
    ProgramResult run(const Arguments& arguments) const {
        return run_program(arguments, work_.path(), std::chrono::seconds(20));
    }
    /// Expects one line and the code 1, and returns the line.
    std::string refused(const Arguments& arguments) const {
        const auto result = run(arguments);
        EXPECT_EQ(result.code, 1) << arguments[0] << ": signal " << result.signal << ": " << result.errors;
        EXPECT_EQ(std::ranges::count(result.errors, '\n'), 1) << result.errors;
        EXPECT_THAT(result.errors, Not(AnyOf(HasSubstr("json.exception"), HasSubstr("::at"), HasSubstr("_M_range"),
                                             HasSubstr("basic_string"), HasSubstr("device"))));
        return result.errors;
    }
    /// Every command that reads a file, with that file in each place in turn.
    std::vector<Arguments> readers_of(const std::string& file) const {
        const auto model = small_model().string();
        return {
            {"inspect", file},
            {"compare", model, file},
            {"quantize", file, "--size", "3MB", "-o", path("o.gguf")},
            {"quantize", model, "--size", "3MB", "-o", path("o.gguf"), "--text", file, "--journal", path("t.db")},
            {"quantize", model, "--size", "3MB", "-o", path("o.gguf"), "--imatrix", file, "--journal", path("i.db")},
            {"quantize", model, "--size", "3MB", "-o", path("o.gguf"), "--text", path("text.txt"), "--journal", file},
            {"ablate", file, "--journal", path("a.db")},
            {"ablate", model, "--text", file, "--journal", path("a.db")},
            {"allocate", model, "--size", "3MB", "-o", path("r.json"), "--journal", file},
            {"build", model, "--recipe", file, "-o", path("o.gguf")},
            {"build", model, "--preset", "Q4_K_M", "--imatrix", file, "-o", path("o.gguf")},
            {"build", file, "--preset", "Q4_K_M", "-o", path("o.gguf")},
            {"verify", file, model, "--journal", path("v.db")},
            {"recipe", "diff", file, file},
            {"imatrix", "show", file},
            {"imatrix", "merge", file, file, "-o", path("m.gguf")},
            {"imatrix", "compute", model, "--text", file, "-o", path("m.gguf")},
            {"journal", "show", file},
            {"show", file},
            {"explain", "--journal", file, "*"},
            {"report", "--journal", file, "-o", path("r.html")},
            {"import", file},
            {"memory", file},
            {"modelfile", file},
            {"card", file},
            {"eval", "ppl", file, "--text", path("text.txt")},
            {"eval", "ppl", model, "--text", file},
            {"eval", "choice", "arc", model, "--questions", file, "--out", path("out")},
            {"eval", "audit", file},
            {"eval", "rejudge", file, "--reason", "x"},
            {"compare-evals", file},
            {"--config", file, "doctor"},
        };
    }

    TemporaryFolder work_;
};

TEST_F(BadInputFiles, pipes_and_devices_are_refused_and_not_waited_for) {
    write("text.txt", testing::some_text());
    ASSERT_EQ(::mkfifo(path("pipe").c_str(), 0600), 0);
    for (const auto& file : {path("pipe"), std::string("/dev/zero"), work_.path().string()})
        for (const auto& arguments : readers_of(file)) {
            const auto begin = std::chrono::steady_clock::now();
            const auto result = run(arguments);
            const auto line = ::testing::PrintToString(arguments) + ": " + result.errors;
            EXPECT_THAT(result.code, AnyOf(1, 2)) << line;
            EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(10)) << line;
            EXPECT_THAT(result.errors, HasSubstr(file)) << line;
        }
}

TEST_F(BadInputFiles, pointers_of_git_lfs_are_known_everywhere) {
    write("text.txt", testing::some_text());
    const auto pointer = write("pointer", "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 5\n");
    for (const auto& arguments : readers_of(pointer)) {
        const auto result = run(arguments);
        EXPECT_EQ(result.code, 1) << ::testing::PrintToString(arguments);
        EXPECT_THAT(result.errors, AllOf(HasSubstr(pointer), HasSubstr("git lfs pull")))
            << ::testing::PrintToString(arguments);
    }
}

TEST_F(BadInputFiles, json_of_other_kinds_is_refused_in_words_of_ours) {
    write("text.txt", testing::some_text());
    for (const std::string content :
         {"{}", "[]", "null", "[1, 2]", "\"text\"", R"({"format": "cerebellum-recipe", "version": 1})",
          R"({"format": "cerebellum-recipe", "version": 1, "source": [], "types": {}})",
          R"({"format": "cerebellum-recipe", "version": 1, "source": {}, "types": {"a": null}})",
          R"({"format": "cerebellum-recipe", "version": 1, "source": {}, "types": {}, "scaling": [{"producer": 1}]})",
          R"({"format": "cerebellum-eval", "benchmark": 3})", R"({"format": "cerebellum-eval", "model": {}})"}) {
        const auto file = write("file.json", content + "\n");
        for (const auto& arguments : readers_of(file)) {
            if (arguments[0] == "eval" && arguments[1] == "ppl") continue;  // it is a text
            if (std::ranges::find(arguments, "--text") != arguments.end()) continue;
            const auto result = run(arguments);
            const auto line = ::testing::PrintToString(arguments) + " with " + content + ": " + result.errors;
            EXPECT_THAT(result.code, AnyOf(0, 1, 2)) << line;
            EXPECT_THAT(result.errors, Not(AnyOf(HasSubstr("json.exception"), HasSubstr("::at"), HasSubstr("_M_range"),
                                                 HasSubstr("did not expect"))))
                << line;
        }
    }
    // Answers without what judging them again takes.
    const auto answers = write("a.jsonl", R"({"format": "cerebellum-eval", "model": {}})"
                                          "\n"
                                          R"({"id": "q7", "raw": "A", "metrics": {}})"
                                          "\n");
    EXPECT_THAT(refused({"eval", "rejudge", answers, "--reason", "x"}), AllOf(HasSubstr("q7"), HasSubstr("choices")));
}

/// The small model with another value of a number in its metadata.
std::string with_value(const std::string& key, std::uint32_t value) {
    auto bytes = read_file(small_model());
    const auto at = bytes.find(key) + key.size() + sizeof(std::int32_t);
    std::memcpy(bytes.data() + at, &value, sizeof value);
    return bytes;
}

TEST_F(BadInputFiles, metadata_that_contradict_the_tensors_are_named) {
    const auto text = write("text.txt", testing::some_text());
    const auto journal = path("j.db");
    for (const auto& [key, value] :
         {std::pair("llama.block_count", 7U), std::pair("llama.block_count", 5U),
          std::pair("llama.block_count", 100000U), std::pair("llama.embedding_length", 128U),
          std::pair("llama.attention.head_count", 7U), std::pair("llama.attention.head_count", 0U)}) {
        const auto model = write("model.gguf", with_value(key, value));
        const auto wanted = AllOf(HasSubstr(model), HasSubstr(key), HasSubstr(" is " + std::to_string(value)));
        EXPECT_THAT(refused({"ablate", model, "--text", text, "--journal", journal}), wanted);
        EXPECT_THAT(refused({"eval", "ppl", model, "--text", text}), wanted);
        EXPECT_THAT(refused({"memory", model}), wanted);
        EXPECT_EQ(run({"inspect", model}).code, 0);
    }
    // What only llama.cpp knows to be wrong: its words, and of which file.
    for (const auto& [key, value] :
         {std::pair("llama.feed_forward_length", 512U), std::pair("llama.rope.dimension_count", 0U),
          std::pair("llama.attention.head_count_kv", 1000000U)}) {
        const auto model = write("model.gguf", with_value(key, value));
        EXPECT_THAT(refused({"ablate", model, "--text", text, "--journal", journal}), HasSubstr(model)) << key;
    }
    EXPECT_FALSE(fs::exists(journal));
}

TEST_F(BadInputFiles, types_of_other_programs_are_not_called_damage) {
    auto bytes = read_file(small_model());
    const std::string name = "blk.0.ffn_down.weight";
    const std::int32_t iq2_k = 137;
    const auto at = bytes.find(name) + name.size() + sizeof(std::uint32_t) + 2 * sizeof(std::int64_t);
    std::memcpy(bytes.data() + at, &iq2_k, sizeof iq2_k);
    EXPECT_THAT(refused({"inspect", write("ik.gguf", bytes)}),
                AllOf(HasSubstr(name), HasSubstr("137"), HasSubstr("ik_llama.cpp"), Not(HasSubstr("damaged"))));
}

TEST_F(BadInputFiles, names_that_are_no_utf8_are_no_end_of_a_job) {
    const auto folder = path("folder-\xff");
    fs::create_directory(folder);
    const auto model = folder + "/m\xfe.gguf", text = folder + "/t\xfe.txt", output = folder + "/o\xfe.gguf";
    fs::copy_file(small_model(), model);
    write_file_atomically(text, testing::some_text());
    const auto inspected = run({"inspect", model, "--json"});
    EXPECT_EQ(inspected.code, 0) << inspected.errors;
    EXPECT_TRUE(nlohmann::json::accept(inspected.output));
    const auto job = run_program({"quantize", model, "--text", text, "--ctx", "64", "--tokens", "64", "--types",
                                  "q4_K,q6_K", "--size", "4MB", "--threads", "1", "-o", output, "--json"},
                                 work_.path(), std::chrono::minutes(5));
    ASSERT_EQ(job.code, 0) << job.errors;
    EXPECT_TRUE(nlohmann::json::accept(job.output));
    EXPECT_TRUE(fs::exists(output));
    for (const Arguments& arguments : std::vector<Arguments>{
             {"inspect", output, "--json"},
             {"memory", output, "--json"},
             {"compare", model, output, "--json"},
             {"modelfile", output, "--json"},
             {"build", model, "--preset", "Q4_K_M", "--threads", "1", "-o", folder + "/p\xfe.gguf", "--json"}}) {
        const auto result = run(arguments);
        EXPECT_EQ(result.code, 0) << arguments[0] << ": " << result.errors;
        EXPECT_TRUE(nlohmann::json::accept(result.output)) << arguments[0] << ": " << result.output;
    }
}

TEST_F(BadInputFiles, a_tensor_whose_name_is_no_utf8_is_refused_at_the_start) {
    auto bytes = read_file(small_model());
    bytes[bytes.find("blk.3.attn_k.weight") + 2] = '\xff';
    const auto model = write("name.gguf", bytes);
    EXPECT_THAT(refused({"quantize", model, "--size", "4MB", "-o", path("o.gguf")}),
                AllOf(HasSubstr(model), HasSubstr("bl\\xff.3.attn_k.weight"), HasSubstr("UTF-8")));
}

class BadInputServers : public BadInputFiles {
  protected:
    Arguments with(const std::string& option, const testing::RawServer& server) {
        return {"ablate",    small_model().string(), "--text", write("text.txt", testing::some_text()),
                "--journal", path("j.db"),           option,   server.url().substr(std::string("http://").size())};
    }
};

TEST_F(BadInputServers, an_rpc_server_that_stays_silent_is_given_up) {
    const testing::RawServer server([](const auto& peer, const auto&) { peer.stay_silent(); });
    for (const auto* option : {"--rpc", "--device"}) {
        const auto arguments = with(option, server);
        const auto begin = std::chrono::steady_clock::now();
        const auto result = run(arguments);
        EXPECT_EQ(result.code, 1) << result.errors;
        EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(15));
        EXPECT_THAT(result.errors, AllOf(HasSubstr(arguments.back()), HasSubstr("does not answer within 10 s")));
    }
}

TEST_F(BadInputServers, waiting_for_an_rpc_server_ends_with_ctrl_c) {
    const testing::RawServer server([](const auto& peer, const auto&) { peer.stay_silent(); });
    testing::Program program(testing::with_program(with("--rpc", server)), work_.path());
    while (program.running() && server.connections() == 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    const auto begin = std::chrono::steady_clock::now();
    program.send(SIGINT);
    const auto result = program.wait();
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(1));
    EXPECT_NE(result.code, 0);
    EXPECT_EQ(result.signal, 0);
}

}  // namespace
}  // namespace cerebellum
