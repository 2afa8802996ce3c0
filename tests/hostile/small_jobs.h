#pragma once

// What the hostile tests have in common: the smallest model that every command takes, one run of each command on it,
// and a look at what a run leaves behind.

#include <algorithm>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "cerebellum/core/proc_files.h"
#include "cerebellum/gguf/gguf_file.h"
#include "tests/e2e/program.h"

namespace cerebellum::testing {

/// One block of width 64 with the embedded model's tokenizer: 0.6 MB, and a job on it takes a second.
inline void write_tiny_model(const fs::path& path) {
    const auto embedded = GgufFile::open(small_model());
    const std::vector<TestTensor> tensors = {{"token_embd.weight", GGML_TYPE_F16, {64, 4096, 1, 1}},
                                             {"output_norm.weight", GGML_TYPE_F32, {64, 1, 1, 1}},
                                             {"blk.0.attn_norm.weight", GGML_TYPE_F32, {64, 1, 1, 1}},
                                             {"blk.0.ffn_norm.weight", GGML_TYPE_F32, {64, 1, 1, 1}},
                                             {"blk.0.attn_q.weight", GGML_TYPE_F16, {64, 64, 1, 1}},
                                             {"blk.0.attn_k.weight", GGML_TYPE_F16, {64, 64, 1, 1}},
                                             {"blk.0.attn_v.weight", GGML_TYPE_F16, {64, 64, 1, 1}},
                                             {"blk.0.attn_output.weight", GGML_TYPE_F16, {64, 64, 1, 1}},
                                             {"blk.0.ffn_gate.weight", GGML_TYPE_F16, {64, 96, 1, 1}},
                                             {"blk.0.ffn_up.weight", GGML_TYPE_F16, {64, 96, 1, 1}},
                                             {"blk.0.ffn_down.weight", GGML_TYPE_F16, {96, 64, 1, 1}}};
    write_test_gguf(path, tensors, [&](gguf_context* context) {
        gguf_set_kv(context, embedded.context());
        for (const auto& [key, value] : std::map<std::string, std::uint32_t>{{"block_count", 1},
                                                                             {"embedding_length", 64},
                                                                             {"feed_forward_length", 96},
                                                                             {"attention.head_count", 2},
                                                                             {"attention.head_count_kv", 2},
                                                                             {"rope.dimension_count", 32}})
            gguf_set_val_u32(context, ("llama." + key).c_str(), value);
    });
}

/// Options under which measuring takes next to no time.
inline std::vector<std::string> with_little_text(std::vector<std::string> arguments, const fs::path& text) {
    for (const std::string word :
         {"--text", text.c_str(), "--ctx", "32", "--tokens", "64", "--types", "q4_0,q8_0", "--threads", "1", "-q"})
        arguments.push_back(word);
    return arguments;
}

/// A folder of the test with a tiny model and a text in `in`, and room for what runs write in `out` and `tmp`.
class Workshop {
  public:
    Workshop() {
        for (const auto* name : {"in", "out", "tmp", "logs"}) fs::create_directory(folder_ / name);
        write_tiny_model(model());
        write_file_atomically(text(), some_text());
    }
    fs::path operator/(const std::string& name) const { return folder_ / name; }
    const fs::path& path() const { return folder_.path(); }
    fs::path model() const { return folder_ / "in/tiny.gguf"; }
    fs::path text() const { return folder_ / "in/text.txt"; }
    fs::path journal() const { return folder_ / "in/journal.db"; }
    fs::path logs() const { return folder_ / "logs"; }
    std::string out(const std::string& name) const { return (folder_ / ("out/" + name)).string(); }

    /// Its command line: temporary files go to `tmp`, and it and all its children are a session of their own.
    std::vector<std::string> alone(std::vector<std::string> arguments) const {
        const std::vector<std::string> before = {"env", "TMPDIR=" + (folder_ / "tmp").string(),
                                                 "XDG_CACHE_HOME=" + (folder_ / "cache").string(), "setsid",
                                                 CEREBELLUM_EXECUTABLE};
        arguments.insert(arguments.begin(), before.begin(), before.end());
        return arguments;
    }
    ProgramResult run(const std::vector<std::string>& arguments,
                      std::chrono::seconds limit = std::chrono::seconds(60)) const {
        Program program(alone(arguments), logs());
        return program.wait(limit);
    }
    /// The journal of a sweep over the model, measured once.
    void measure() const {
        const auto result = run(with_little_text({"ablate", model(), "--journal", journal()}, text()));
        ASSERT_EQ(result.code, 0) << result.errors;
    }
    void empty_out() const {
        for (const auto* name : {"out", "tmp"})
            for (const auto& entry : fs::directory_iterator(folder_ / name)) fs::remove_all(entry);
    }
    /// Names of what only a running process may have lying about: everything in `tmp`, and partial files and locks.
    std::set<std::string> litter() const {
        std::set<std::string> found;
        for (const auto* name : {"in", "out"})
            for (const auto& entry : fs::recursive_directory_iterator(folder_ / name))
                if (const auto file = entry.path().filename().string();
                    file.ends_with(".partial") || file.ends_with(".lock") || file.starts_with(".cerebellum-"))
                    found.insert(file);
        for (const auto& entry : fs::directory_iterator(folder_ / "tmp")) found.insert(entry.path().filename());
        return found;
    }
    /// Contents of a folder's files.
    std::map<std::string, std::string> contents(const std::string& name) const {
        std::map<std::string, std::string> files;
        for (const auto& entry : fs::recursive_directory_iterator(folder_ / name))
            if (entry.is_regular_file()) files[entry.path().string()] = read_file(entry.path());
        return files;
    }

  private:
    TemporaryFolder folder_;
};

/// Processes of a session that are still there (and no zombies).
inline std::set<pid_t> processes_of_session(pid_t session) {
    std::set<pid_t> found;
    for (const pid_t process : all_processes()) {
        const auto line = proc_text(fmt::format("/proc/{}/stat", process));
        const auto close = line.rfind(')');
        if (close == std::string::npos) continue;
        std::istringstream fields(line.substr(close + 1));
        char state = ' ';
        long parent = 0, group = 0, of = 0;
        if (fields >> state >> parent >> group >> of && of == session && state != 'Z' && state != 'X')
            found.insert(process);
    }
    return found;
}

/// The same a moment later where there are some: who was killed takes a while to be gone.
inline std::set<pid_t> lasting_processes_of_session(pid_t session) {
    for (int i = 0; i < 50 && !processes_of_session(session).empty(); ++i)
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
    return processes_of_session(session);
}

/// One short line of ours: no words of a library's exceptions, no terminal's sequences.
inline void expect_short_error(const ProgramResult& result) {
    EXPECT_EQ(result.signal, 0) << result.errors;
    EXPECT_TRUE(result.code == 1 || result.code == 2) << result.code << " " << result.errors;
    const auto last = result.errors.rfind("cerebellum: ");
    ASSERT_NE(last, std::string::npos) << result.errors;
    const auto line = result.errors.substr(last);
    EXPECT_EQ(std::ranges::count(line, '\n'), 1) << line;
    EXPECT_LT(line.size(), 2000U) << line.substr(0, 2000);
    for (const auto* words :
         {"std::", "terminate called", "basic_string", "vector::", "_M_", "json.exception", "map::at"})
        EXPECT_EQ(result.errors.find(words), std::string::npos) << result.errors;
    EXPECT_TRUE(std::ranges::none_of(result.errors, [](char c) {
        return (static_cast<unsigned char>(c) < 0x20 && c != '\n') || c == 0x7F;
    })) << result.errors;
}

}  // namespace cerebellum::testing
