// What is not ours must not drive the terminal, wherever the program prints it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "cerebellum/evaluate/audit_log.h"
#include "cerebellum/evaluate/raw_server_support_test.h"
#include "cerebellum/journal/journal.h"
#include "tests/e2e/program.h"

namespace cerebellum {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using ::testing::HasSubstr;
using testing::ProgramResult;
using testing::TemporaryFolder;

/// Sets the title, clears the screen in both encodings of C1, turns the order of reading around.
const std::string hostile =
    "a\033]0;owned\007\033[2J\xC2\x9B"
    "2J\xE2\x80\xAE"
    "b\r";

class HostileNames : public ::testing::Test {
  protected:
    ProgramResult run(const std::vector<std::string>& arguments) const {
        auto result = testing::run_program(arguments, work_.path(), std::chrono::minutes(4));
        for (const auto& text : {result.output, result.errors}) {
            const auto obeyed = [](char c) { return (static_cast<unsigned char>(c) < 0x20 && c != '\n') || c == 0x7F; };
            EXPECT_TRUE(std::ranges::none_of(text, obeyed))
                << arguments.front() << " prints controls: " << json(text).dump(-1, ' ', true);
            EXPECT_EQ(text.find("\xC2\x9B"), std::string::npos) << arguments.front();
            EXPECT_EQ(text.find("\xE2\x80\xAE"), std::string::npos) << arguments.front();
        }
        return result;
    }
    std::string path(const std::string& name) const { return (work_ / name).string(); }

    TemporaryFolder work_;
};

TEST_F(HostileNames, of_a_file_s_tensors_and_keys) {
    testing::write_test_gguf(path("a.gguf"), {{hostile, GGML_TYPE_F16, {64, 4, 1, 1}}}, [](gguf_context* context) {
        gguf_set_val_str(context, "general.name", hostile.c_str());
        gguf_set_val_str(context, ("x." + hostile).c_str(), hostile.c_str());
    });
    const auto listing = run({"inspect", path("a.gguf")});
    EXPECT_EQ(listing.code, 0) << listing.errors;
    EXPECT_THAT(listing.output, HasSubstr("\\u001b]0;owned"));
    const auto stated = json::parse(run({"inspect", path("a.gguf"), "--json"}).output);
    EXPECT_EQ(stated["tensors"][0]["name"], hostile);
}

TEST_F(HostileNames, of_a_journal_s_settings) {
    {
        auto journal = Journal::open(path("a.db"), {{{"model", hostile}, {hostile, "x"}}});
        journal.put_artifact(hostile, "bytes");
        journal.put_meta("when", hostile);
    }
    const auto shown = run({"journal", "show", path("a.db")});
    EXPECT_EQ(shown.code, 0) << shown.errors;
    EXPECT_THAT(shown.output, HasSubstr("\\u001b]0;owned"));
    EXPECT_EQ(json::parse(run({"journal", "show", path("a.db"), "--json"}).output)["identity"]["model"], hostile);
}

TEST_F(HostileNames, of_a_command_line_s_files) {
    const auto result = run({"inspect", path(hostile)});
    EXPECT_EQ(result.code, 1);
    EXPECT_THAT(result.errors, HasSubstr("\\u001b]0;owned"));
    EXPECT_EQ(run({hostile}).code, 2);
}

TEST_F(HostileNames, in_stored_answers) {
    AuditFile log{
        {{"format", "cerebellum-eval"}, {"benchmark", hostile}, {"questions", 4}, {"model", {{"file", hostile}}}}, {}};
    for (int i = 0; i < 4; ++i)
        log.records.push_back({{"id", hostile + std::to_string(i)},
                               {"raw", i == 0 ? " " : hostile},
                               {"parsed", ""},
                               {"correct", false},
                               {"metrics", {{"acc", 0.0}}},
                               {"choices", {hostile, "b"}},
                               {"gold", {"A"}}});
    write_audit_log(path("a.jsonl"), log);
    const auto audited = run({"eval", "audit", path("a.jsonl")});
    EXPECT_EQ(audited.code, 1);
    EXPECT_THAT(audited.output, HasSubstr("\\u001b]0;owned"));
    EXPECT_EQ(json::parse(run({"eval", "audit", path("a.jsonl"), "--json"}).output)[0]["unparsed"].size(), 3U);
    run({"eval", "rejudge", path("a.jsonl"), "--reason", hostile});
}

TEST_F(HostileNames, of_a_server_s_model) {
    const std::string id = "../../" + hostile;
    const testing::RawServer server([&](const testing::RawServer::Peer& peer, const std::string& request) {
        const json models = {{"data", {{{"id", id}}}}};
        const json reply = {{"choices", {{{"message", {{"content", "B " + hostile}}}}}}};
        peer.say(testing::http_answer((request.starts_with("GET") ? models : reply).dump()));
    });
    write_file_atomically(path("questions.jsonl"), R"({"question": "x?", "choices": ["first", "second"], "answer": 1})"
                                                   "\n");
    run({"eval", "chat", "choice", "--questions", path("questions.jsonl"), "--server", server.url(), "--out",
         path("out")});
    std::vector<std::string> files;
    for (const auto& entry : fs::recursive_directory_iterator(work_.path()))
        if (entry.path().string().find(".jsonl") != std::string::npos)
            files.push_back(entry.path().filename().string());
    std::ranges::sort(files);
    EXPECT_THAT(files, ::testing::ElementsAre("choice-chat.a__0_owned___2J_2J_b_.unknown.jsonl", "questions.jsonl"));
}

}  // namespace
}  // namespace cerebellum
