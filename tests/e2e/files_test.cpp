// Files as the ecosystem has them: importance matrices against llama-imatrix, our files in other people's readers.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/gguf/imatrix_file.h"
#include "tests/e2e/program.h"

namespace cerebellum {
namespace {

using ::testing::HasSubstr;
using testing::quoted;
using testing::run_program;
using testing::run_referee;
using testing::small_model;
using testing::some_text;
using testing::TemporaryFolder;

namespace fs = std::filesystem;

class Files : public ::testing::Test {
  protected:
    testing::ProgramResult run(const std::vector<std::string>& arguments) {
        auto result = run_program(arguments, work_.path());
        EXPECT_EQ(result.code, 0) << result.errors;
        return result;
    }

    /// A mixture of six experts with random weights, and the embedded model's tokenizer.
    fs::path experts() {
        const auto path = work_ / "experts.gguf";
        const auto embedded = GgufFile::open(small_model());
        std::vector<testing::TestTensor> tensors = {{"token_embd.weight", GGML_TYPE_F16, {256, 4096, 1, 1}},
                                                    {"output_norm.weight", GGML_TYPE_F32, {256, 1, 1, 1}},
                                                    {"output.weight", GGML_TYPE_F16, {256, 4096, 1, 1}}};
        for (const std::string block : {"blk.0.", "blk.1."}) {
            for (const auto* norm : {"attn_norm", "ffn_norm"})
                tensors.push_back({block + norm + ".weight", GGML_TYPE_F32, {256, 1, 1, 1}});
            for (const std::string name : {"attn_q", "attn_k", "attn_v", "attn_output"}) {
                const TensorInfo& like = *embedded.find("blk.0." + name + ".weight");
                tensors.push_back({block + name + ".weight", GGML_TYPE_F16, like.shape});
            }
            tensors.push_back({block + "ffn_gate_inp.weight", GGML_TYPE_F32, {256, 6, 1, 1}});
            for (const auto* name : {"ffn_gate_exps", "ffn_up_exps"})
                tensors.push_back({block + name + ".weight", GGML_TYPE_F16, {256, 64, 6, 1}});
            tensors.push_back({block + "ffn_down_exps.weight", GGML_TYPE_F16, {64, 256, 6, 1}});
        }
        testing::write_test_gguf(path, tensors, [&](gguf_context* context) {
            gguf_set_kv(context, embedded.context());
            gguf_set_val_u32(context, "llama.block_count", 2);
            gguf_set_val_u32(context, "llama.feed_forward_length", 64);
            gguf_set_val_u32(context, "llama.expert_count", 6);
            gguf_set_val_u32(context, "llama.expert_used_count", 2);
        });
        return path;
    }

    void expect_llama_imatrix_s(const fs::path& model) {
        SCOPED_TRACE(model.filename().string());
        write_file_atomically(work_ / "text.txt", some_text());
        ASSERT_TRUE(
            run_referee("llama-imatrix",
                        fmt::format("-m {} -f text.txt -o theirs.gguf -c 128 -b 128 -ub 128 --chunks 4 -t 1 -ngl 0 "
                                    "-fa off --no-repack --process-output",
                                    quoted(model)),
                        work_.path()));
        run({"imatrix", "compute", model.string(), "--text", (work_ / "text.txt").string(), "--ctx", "128", "--chunks",
             "4", "--process-output", "--threads", "1", "--force", "-o", (work_ / "ours.gguf").string()});
        const auto ours = read_imatrix(work_ / "ours.gguf"), theirs = read_imatrix(work_ / "theirs.gguf");
        EXPECT_EQ(ours.chunk_count, theirs.chunk_count);
        EXPECT_EQ(ours.chunk_size, theirs.chunk_size);
        ASSERT_EQ(ours.entries.size(), theirs.entries.size());
        double worst = 0.0;
        for (const auto& [name, entry] : theirs.entries) {
            const auto found = ours.entries.find(name);
            ASSERT_NE(found, ours.entries.end()) << name;
            EXPECT_EQ(found->second.counts, entry.counts) << name;
            ASSERT_EQ(found->second.in_sum2.size(), entry.in_sum2.size()) << name;
            for (std::size_t i = 0; i < entry.in_sum2.size(); ++i) {
                const double x = entry.in_sum2[i], y = found->second.in_sum2[i];
                if (x != y) worst = std::max(worst, std::fabs(x - y) / std::max(std::fabs(x), std::fabs(y)));
            }
        }
        EXPECT_LE(worst, 1e-5);
        RecordProperty("largest_relative_difference", std::to_string(worst));
    }

    TemporaryFolder work_;
};

using FilesSlow = Files;

TEST_F(Files, importance_matrix_is_llama_imatrix_s) {
    if (!testing::have_referees()) GTEST_SKIP() << "llama.cpp's tools are not there (CEREBELLUM_REFEREE_BIN)";
    expect_llama_imatrix_s(small_model());
    expect_llama_imatrix_s(experts());
}

TEST_F(Files, importance_matrix_goes_through_merge_and_show) {
    write_file_atomically(work_ / "text.txt", some_text());
    const auto matrix = (work_ / "a.gguf").string(), legacy = (work_ / "a.dat").string();
    run({"imatrix", "compute", small_model().string(), "--text", (work_ / "text.txt").string(), "--ctx", "64",
         "--chunks", "2", "--threads", "1", "-o", matrix});
    for (const auto& [name, entry] : read_imatrix(matrix).entries) EXPECT_TRUE(name.starts_with("blk.")) << name;
    run({"imatrix", "merge", matrix, "-o", legacy});
    EXPECT_EQ(read_imatrix(legacy).chunk_size, 0U);
    run({"imatrix", "merge", matrix, legacy, "--chunk-size", "64", "-o", (work_ / "both.gguf").string()});
    const auto once = read_imatrix(matrix), twice = read_imatrix(work_ / "both.gguf");
    const auto& name = once.entries.begin()->first;
    EXPECT_EQ(twice.entries.at(name).counts[0], 2 * once.entries.at(name).counts[0]);
    EXPECT_EQ(twice.chunk_count, 4U);
    const auto shown = nlohmann::json::parse(run({"imatrix", "show", matrix, "--json"}).output);
    EXPECT_EQ(shown.at("tensors").size(), once.entries.size());
    EXPECT_THAT(run({"imatrix", "show", matrix}).output, HasSubstr("blk.5.ffn_down.weight"));
}

TEST_F(Files, dry_run_says_what_a_build_writes) {
    const auto output = (work_ / "out.gguf").string();
    const auto planned = nlohmann::json::parse(run({"build", small_model().string(), "--preset", "q4_k_m", "--dry-run",
                                                    "--json", "--split-size", "2MB", "-o", output})
                                                   .output);
    EXPECT_FALSE(fs::exists(work_ / "out.gguf"));
    ASSERT_GT(planned.at("files").size(), 1U);
    for (const auto& file : planned.at("files")) EXPECT_FALSE(fs::exists(file.at("path").get<std::string>()));
    run({"build", small_model().string(), "--preset", "q4_k_m", "--split-size", "2MB", "-o", output, "--threads", "1"});
    for (const auto& file : planned.at("files"))
        EXPECT_EQ(fs::file_size(file.at("path").get<std::string>()), file.at("bytes").get<std::uint64_t>());
    EXPECT_THAT(run({"build", small_model().string(), "--preset", "Q8_0", "--dry-run"}).output,
                ::testing::AllOf(HasSubstr("blk.0.ffn_up.weight"), HasSubstr("nothing was written")));
    // A split model is a model for every command.
    EXPECT_THAT(run({"inspect", planned.at("files")[0].at("path")}).output, HasSubstr("blk.5.ffn_down.weight"));
}

TEST_F(Files, a_preset_s_recipe_builds_the_preset_s_file) {
    const auto first = (work_ / "first.gguf").string(), second = (work_ / "second.gguf").string();
    const auto recipe = (work_ / "recipe.json").string();
    run({"build", small_model().string(), "--preset", "Q3_K_L", "--save-recipe", recipe, "-o", first, "--threads",
         "1"});
    run({"build", small_model().string(), "--recipe", recipe, "-o", second, "--threads", "1"});
    EXPECT_TRUE(read_file(first) == read_file(second));
    const auto same = nlohmann::json::parse(run({"compare", first, second, "--json"}).output);
    EXPECT_TRUE(same.at("identical").get<bool>());
    const auto other = nlohmann::json::parse(run({"compare", small_model().string(), first, "--json"}).output);
    EXPECT_FALSE(other.at("identical").get<bool>());
    EXPECT_EQ(run({"compare", first, second, "--diffable"}).output, "");
    EXPECT_THAT(run({"compare", first, "--diffable"}).output, HasSubstr("tensor \"blk.0.ffn_up.weight\" q3_K"));
}

/// Reads a file with PyPI's gguf and prints what is in it as `inspect --json` does.
constexpr auto python_reader = R"(
import json, sys
from gguf import GGUFReader
reader = GGUFReader(sys.argv[1])
tensors = [{"name": t.name, "type": t.tensor_type.name.lower(), "shape": [int(n) for n in t.shape], "bytes": int(t.n_bytes)}
           for t in reader.tensors]
metadata = {}
for name, field in reader.fields.items():
    if name.startswith("GGUF."): continue
    value = field.contents()
    metadata[name] = {"count": len(value), "first": value[:8]} if isinstance(value, list) and len(value) > 8 else value
print(json.dumps({"tensors": tensors, "metadata": metadata}))
)";

TEST_F(FilesSlow, are_read_by_python_s_gguf) {
    const auto site = work_ / "site";
    const auto install = fmt::format("python3 -m pip install -q --target {} gguf==0.19.0 >{} 2>&1", quoted(site),
                                     quoted(work_ / "pip.log"));
    if (std::system(install.c_str()) != 0) GTEST_SKIP() << "pip cannot install gguf: " << read_file(work_ / "pip.log");
    write_file_atomically(work_ / "reader.py", python_reader);
    const auto experts_model = experts();
    for (const auto& [model, preset] : {std::pair(small_model(), "Q4_K_M"),
                                        {small_model(), "Q2_K"},
                                        {small_model(), "IQ4_XS"},
                                        {small_model(), "TQ2_0"},
                                        {small_model(), "BF16"},
                                        {experts_model, "Q5_K_S"},
                                        {experts_model, "MXFP4_MOE"}}) {
        SCOPED_TRACE(fmt::format("{} {}", model.filename().string(), preset));
        const auto built = work_ / "built.gguf";
        run({"build", model.string(), "--preset", preset, "-o", built.string(), "--force", "--threads", "1"});
        const auto command =
            fmt::format("PYTHONPATH={} python3 {} {} >{} 2>{}", quoted(site), quoted(work_ / "reader.py"),
                        quoted(built), quoted(work_ / "theirs.json"), quoted(work_ / "python.log"));
        ASSERT_EQ(std::system(command.c_str()), 0) << read_file(work_ / "python.log");
        const auto theirs = nlohmann::json::parse(read_file(work_ / "theirs.json"));
        const auto ours = nlohmann::json::parse(run({"inspect", built.string(), "--json"}).output);
        ASSERT_EQ(ours.at("tensors").size(), theirs.at("tensors").size());
        for (std::size_t i = 0; i < ours.at("tensors").size(); ++i) {
            const auto &a = ours.at("tensors")[i], &b = theirs.at("tensors")[i];
            EXPECT_EQ(a.at("name"), b.at("name"));
            std::string type = a.at("type");
            std::ranges::transform(type, type.begin(),
                                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
            EXPECT_EQ(type, b.at("type"));
            EXPECT_EQ(a.at("shape"), b.at("shape"));
            EXPECT_EQ(a.at("bytes"), b.at("bytes"));
        }
        EXPECT_EQ(ours.at("metadata"), theirs.at("metadata"));
    }
}

}  // namespace
}  // namespace cerebellum
