// Goals, constraints and recipes through the real executable, from one small measurement of the embedded model.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "cerebellum/build/build_gguf.h"
#include "cerebellum/build/recipe.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/core/tensor_name.h"
#include "cerebellum/gguf/gguf_file.h"
#include "tests/e2e/program.h"

namespace cerebellum {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::run_program;
using testing::small_model;
using testing::TemporaryFolder;

constexpr int usage = 2, failure = 1;
constexpr std::uint64_t budget = 3'700'000;

class Allocating : public ::testing::Test {
  protected:
    static void SetUpTestSuite() {
        shared_ = new TemporaryFolder();
        write_file_atomically(*shared_ / "text.txt", testing::some_text());
        const auto result = run_program(
            {"quantize", small_model().string(), "--size", std::to_string(budget), "--text",
             (*shared_ / "text.txt").string(), "--ctx", "64", "--tokens", "128", "--threads", "1", "--types",
             "q2_K,q4_K,q6_K,q8_0", "--journal", journal(), "-o", (*shared_ / "small.gguf").string(), "-q"},
            shared_->path(), std::chrono::minutes(8));
        ASSERT_EQ(result.code, 0) << result.errors;
    }
    static void TearDownTestSuite() {
        delete shared_;
        shared_ = nullptr;
    }
    static std::string journal() { return (*shared_ / "journal.db").string(); }
    static fs::path small() { return *shared_ / "small.gguf"; }
    static fs::path beside(const std::string& ending) { return *shared_ / ("small." + ending); }

    fs::path path(const std::string& name) const { return work_ / name; }
    testing::ProgramResult run(std::vector<std::string> arguments) const {
        return run_program(arguments, work_.path(), std::chrono::minutes(3));
    }
    testing::ProgramResult allocate(std::vector<std::string> more, const std::string& output = "r.json") const {
        std::vector<std::string> arguments = {"allocate", small_model().string(), "--journal", journal(),
                                              "-o",       path(output).string(),  "--force",   "--threads",
                                              "1"};
        arguments.insert(arguments.end(), more.begin(), more.end());
        return run(arguments);
    }
    Recipe allocated(std::vector<std::string> more) const {
        const auto result = allocate(std::move(more));
        EXPECT_EQ(result.code, 0) << result.errors;
        return read_recipe(path("r.json"));
    }
    std::string refused(std::vector<std::string> more, int code) const {
        const auto result = allocate(std::move(more), "never.json");
        EXPECT_EQ(result.code, code) << result.errors;
        EXPECT_FALSE(fs::exists(path("never.json")));
        EXPECT_EQ(std::ranges::count(result.errors, '\n'), 1) << result.errors;
        return result.errors;
    }

    static TemporaryFolder* shared_;
    TemporaryFolder work_;
};

TemporaryFolder* Allocating::shared_ = nullptr;

TEST_F(Allocating, constraints_hold_in_the_recipe) {
    const auto recipe =
        allocated({"--size", std::to_string(budget), "--pin", "token_embd=q8_0", "--floor", "attn_v=q6_K", "--ceiling",
                   "ffn_*=q4_K", "--couple", "qkv", "--protect-layers", "first=1,last=0,type=q4_K"});
    EXPECT_LE(recipe.file_bytes, budget);
    EXPECT_EQ(recipe.types.at("token_embd.weight"), GGML_TYPE_Q8_0);
    for (const auto& [name, type] : recipe.types) {
        const double bits = bits_per_weight(type.type);
        if (role_of(name) == "attn_v") {
            EXPECT_GE(bits, bits_per_weight(GGML_TYPE_Q6_K));
            for (const char* other : {"attn_q", "attn_k"})
                EXPECT_EQ(recipe.types.at(fmt::format("blk.{}.{}.weight", *block_of(name), other)), type);
        }
        if (role_of(name).starts_with("ffn_")) {
            EXPECT_LE(bits, bits_per_weight(GGML_TYPE_Q4_K));
        }
        if (block_of(name) == 0) {
            EXPECT_GE(bits, bits_per_weight(GGML_TYPE_Q4_K));
        }
    }
    EXPECT_THAT(recipe.provenance.at("constraints"), HasSubstr("--pin token_embd=q8_0"));
    // The journal has more types than are asked for. The source's own always may stay.
    const auto asked = allocated({"--size", "5000000", "--types", "q4_K,q8_0"});
    EXPECT_FALSE(asked.types.empty());
    for (const auto& [name, type] : asked.types)
        EXPECT_THAT(type.type, ::testing::AnyOf(GGML_TYPE_Q4_K, GGML_TYPE_Q8_0, GGML_TYPE_F16)) << name;
    const auto few = allocated({"--bpw", "4.5", "--max-types", "2", "--only-types", "q2_K,q4_K,q6_K"});
    std::set<ggml_type> used;
    for (const auto& [name, type] : few.types) used.insert(type.type);
    EXPECT_LE(used.size(), 2U);
}

TEST_F(Allocating, the_smallest_file_under_a_kld_is_what_a_size_would_have_given) {
    const auto sized = allocated({"--size", std::to_string(budget)});
    // What is promised is the damage of the whole file, as measured recipes calibrate it, with its error.
    const auto upper = [](const Recipe& recipe) {
        return std::stod(recipe.provenance.at("calibrated_kld")) +
               std::stod(recipe.provenance.at("calibrated_kld_error"));
    };
    const double wanted = upper(sized) * 1.001;
    const auto under = allocated({"--max-kld", fmt::format("{:.12g}", wanted)});
    EXPECT_LE(upper(under), wanted);
    EXPECT_LE(static_cast<double>(under.file_bytes), 1.01 * static_cast<double>(sized.file_bytes));
    const auto smaller =
        allocated({"--size", std::to_string(static_cast<std::uint64_t>(0.98 * static_cast<double>(under.file_bytes)))});
    EXPECT_GT(upper(smaller), wanted);
}

TEST_F(Allocating, memory_is_filled_and_not_exceeded) {
    const std::uint64_t memory = 24'000'000;
    const auto result = allocate({"--vram", std::to_string(memory), "--serve-ctx", "1024", "--kv", "q8_0", "--parallel",
                                  "2", "--serve-on", "CPU"});
    ASSERT_EQ(result.code, 0) << result.errors;
    EXPECT_THAT(result.output, HasSubstr("llama.cpp's account of CPU (1024 tokens of context, 2 sequences"));
    const auto few = read_recipe(path("r.json"));
    const auto longer = allocated({"--vram", std::to_string(memory), "--serve-ctx", "2048", "--kv", "q8_0",
                                   "--parallel", "2", "--serve-on", "CPU"});
    EXPECT_LT(longer.file_bytes, few.file_bytes);
    EXPECT_THAT(refused({"--vram", "3MB", "--serve-ctx", "4096", "--serve-on", "CPU"}, failure),
                AllOf(HasSubstr("even the smallest file"), HasSubstr("cache")));
}

TEST_F(Allocating, the_context_of_the_file_may_still_be_called_as_before) {
    const std::vector<std::string> goal = {"--vram", "24MB", "--kv", "q8_0", "--serve-on", "CPU"};
    const auto with = [&](const std::string& option) {
        auto all = goal;
        all.insert(all.end(), {option, "1024"});
        const auto result = allocate(all);
        EXPECT_EQ(result.code, 0) << result.errors;
        const auto recipe = read_recipe(path("r.json"));
        return std::tuple(recipe.file_bytes, recipe.provenance.at("goal"),
                          result.errors.find("called --serve-ctx now") != std::string::npos);
    };
    const auto [bytes, text, told] = with("--serve-ctx");
    EXPECT_FALSE(told);
    EXPECT_THAT(text, HasSubstr("--serve-ctx 1024"));
    EXPECT_EQ(with("--ctx"), std::tuple(bytes, text, true));
}

TEST_F(Allocating, a_split_names_every_tensor_once) {
    const auto result = allocate({"--gpu-size", "2MB", "--cpu-size", "2MB", "--serve-on", "CPU"});
    ASSERT_EQ(result.code, 0) << result.errors;
    EXPECT_THAT(result.output, AllOf(HasSubstr("--n-gpu-layers 999"), HasSubstr("=CPU'")));
    const auto recipe = read_recipe(path("r.json"));
    EXPECT_LE(recipe.file_bytes, 4'000'000 + 1'000'000U);
    EXPECT_THAT(recipe.provenance.at("override_tensor"), HasSubstr("--override-tensor"));
}

TEST_F(Allocating, the_frontier_agrees_with_allocate_and_is_stored) {
    const auto file = path("f.json").string();
    const auto result =
        run({"frontier", small_model().string(), "--journal", journal(), "-o", file, "--json", "--threads", "1"});
    ASSERT_EQ(result.code, 0) << result.errors;
    const auto frontier = json::parse(result.output);
    EXPECT_EQ(frontier, json::parse(read_file(file)));
    const auto& steps = frontier.at("steps");
    ASSERT_GT(steps.size(), 20U);
    for (const auto i : {std::size_t{3}, steps.size() / 2, steps.size() - 1}) {
        const auto recipe = allocated({"--size", std::to_string(steps[i].at("bytes").get<std::uint64_t>())});
        EXPECT_NEAR(recipe.predicted_kld, steps[i].at("predicted_kld").get<double>(), 1e-9);
    }
    std::set<std::string> presets;
    for (const auto& preset : frontier.at("presets")) presets.insert(preset.at("name").get<std::string>());
    EXPECT_TRUE(presets.contains("Q4_K_M"));
    const auto table = run({"frontier", small_model().string(), "--journal", journal(), "-o", file, "--force"});
    EXPECT_THAT(table.output, AllOf(HasSubstr("predicted KLD"), HasSubstr("Q6_K")));
}

TEST_F(Allocating, a_recipe_gives_the_identical_file) {
    const auto built =
        run({"build", small_model().string(), "--recipe", beside("recipe.json").string(), "--imatrix",
             beside("imatrix.gguf").string(), "-o", path("again.gguf").string(), "--threads", "1", "-q"});
    ASSERT_EQ(built.code, 0) << built.errors;
    EXPECT_TRUE(read_file(path("again.gguf")) == read_file(small()));
    const auto recipe = read_recipe(beside("recipe.json"));
    for (const char* key : {"cerebellum", "llama.cpp", "journal_sha256", "imatrix_sha256", "measured.text", "goal"})
        EXPECT_FALSE(recipe.provenance.at(key).empty()) << key;

    // Without the importance matrix, or with another one, it would be another file.
    const auto without = run({"build", small_model().string(), "--recipe", beside("recipe.json").string(), "-o",
                              path("no.gguf").string(), "--threads", "1"});
    EXPECT_EQ(without.code, failure);
    EXPECT_THAT(without.errors, HasSubstr("--imatrix"));
    auto other = read_imatrix(beside("imatrix.gguf"));
    other.entries.begin()->second.in_sum2[0] *= 1.5F;
    write_imatrix(path("other.imatrix.gguf"), other);
    const auto with_other =
        run({"build", small_model().string(), "--recipe", beside("recipe.json").string(), "--imatrix",
             path("other.imatrix.gguf").string(), "-o", path("no.gguf").string(), "--threads", "1"});
    EXPECT_EQ(with_other.code, failure);
    EXPECT_THAT(with_other.errors, HasSubstr("another importance matrix"));
    EXPECT_FALSE(fs::exists(path("no.gguf")));
}

TEST_F(Allocating, a_recipe_for_another_model_names_the_first_tensor_that_differs) {
    auto content = read_file(small_model());
    const auto source = GgufFile::open(small_model());
    const auto& changed = source.tensors()[3];
    content[changed.file_offset + 100] = static_cast<char>(content[changed.file_offset + 100] ^ 1);
    write_file_atomically(path("tuned.gguf"), content);
    const auto result =
        run({"build", path("tuned.gguf").string(), "--recipe", beside("recipe.json").string(), "--imatrix",
             beside("imatrix.gguf").string(), "-o", path("no.gguf").string(), "--threads", "1"});
    EXPECT_EQ(result.code, failure);
    EXPECT_THAT(result.errors, AllOf(HasSubstr("another model"), HasSubstr(changed.name + " has other weights")));
    EXPECT_FALSE(fs::exists(path("no.gguf")));
}

TEST_F(Allocating, recipes_are_compared_and_imported) {
    const auto recipe = beside("recipe.json").string();
    const auto same = run({"recipe", "diff", recipe, recipe});
    EXPECT_EQ(same.code, 0) << same.errors;
    allocated({"--bpw", "3.6"});
    const auto differs = run({"recipe", "diff", recipe, path("r.json").string(), "--json"});
    EXPECT_EQ(differs.code, 1) << differs.errors;
    EXPECT_GT(json::parse(differs.output).at("tensors").size(), 0U);

    // Our own file's mix comes back as it was.
    const auto copied =
        run({"recipe", "from-gguf", small_model().string(), small().string(), "-o", path("c.json").string()});
    ASSERT_EQ(copied.code, 0) << copied.errors;
    const auto source = GgufFile::open(small_model());
    EXPECT_EQ(complete_types(source, read_recipe(path("c.json")).types),
              complete_types(source, read_recipe(recipe).types));
    // So it does from the file that llama-quantize would be given.
    const auto typed = run({"recipe", "from-type-file", small_model().string(), beside("tensor-types.txt").string(),
                            "--base", "q8_0", "-o", path("t.json").string()});
    ASSERT_EQ(typed.code, 0) << typed.errors;
    EXPECT_EQ(complete_types(source, read_recipe(path("t.json")).types),
              complete_types(source, read_recipe(recipe).types));

    write_file_atomically(path("types.txt"), "attn_v=Q6_K\nFFN_DOWN=q4_K ffn=q2_K\n");
    ASSERT_EQ(run({"recipe", "from-type-file", small_model().string(), path("types.txt").string(), "--base", "Q5_K_M",
                   "-o", path("t2.json").string()})
                  .code,
              0);
    const auto types = complete_types(source, read_recipe(path("t2.json")).types);
    EXPECT_EQ(types.at("blk.1.attn_v.weight"), GGML_TYPE_Q6_K);
    EXPECT_EQ(types.at("blk.1.ffn_down.weight"), GGML_TYPE_Q4_K);
    EXPECT_EQ(types.at("blk.1.ffn_up.weight"), GGML_TYPE_Q2_K);
    EXPECT_EQ(types.at("blk.1.attn_k.weight"), GGML_TYPE_Q5_K);
    // Remarks and a byte order mark are none of it; a pattern that does nothing is a mistake.
    write_file_atomically(path("types-2.txt"), "\xEF\xBB\xBF# mine\n\nattn_v=Q6_K # more\nFFN_DOWN=q4_K ffn=q2_K\n");
    const auto remarks = run({"recipe", "from-type-file", small_model().string(), path("types-2.txt").string(),
                              "--base", "Q5_K_M", "-o", path("t3.json").string()});
    ASSERT_EQ(remarks.code, 0) << remarks.errors;
    EXPECT_EQ(read_recipe(path("t3.json")).types, read_recipe(path("t2.json")).types);
    write_file_atomically(path("types-3.txt"), "attn_v=q6_K\nblk.77.attn_v=q8_0\n");
    const auto nothing = run({"recipe", "from-type-file", small_model().string(), path("types-3.txt").string(), "-o",
                              path("t4.json").string()});
    EXPECT_EQ(nothing.code, 1);
    EXPECT_THAT(nothing.errors, AllOf(HasSubstr("types-3.txt:2"), HasSubstr("blk.77.attn_v"), HasSubstr("no tensor")));
    if (!testing::have_referees()) return;
    ASSERT_TRUE(testing::run_referee("llama-quantize",
                                     "--allow-requantize --imatrix " + testing::quoted(beside("imatrix.gguf")) +
                                         " --tensor-type-file types.txt " + testing::quoted(small_model()) +
                                         " referee.gguf Q5_K_M 1",
                                     work_.path()));
    const auto referee = GgufFile::open(path("referee.gguf"));
    for (const auto& tensor : referee.tensors())
        EXPECT_EQ(type_name(types.at(tensor.name)), type_name(tensor.type)) << tensor.name;
}

TEST_F(Allocating, what_cannot_be_is_refused_by_name) {
    EXPECT_THAT(refused({"--size", "3.7MB", "--pin", "nothing*=q8_0"}, failure),
                AllOf(HasSubstr("--pin nothing*=q8_0"), HasSubstr("matches no tensor")));
    EXPECT_THAT(refused({"--size", "3.7MB", "--pin", "attn_q=q8_0", "--ceiling", "blk.2.*=q4_K"}, failure),
                AllOf(HasSubstr("--pin attn_q=q8_0 and --ceiling blk.2.*=q4_K"), HasSubstr("blk.2.attn_q.weight")));
    EXPECT_THAT(refused({"--size", "3MB", "--floor", "*=q8_0"}, failure),
                AllOf(HasSubstr("3000000"), HasSubstr("--floor *=q8_0")));
    EXPECT_THAT(refused({"--size", "3.7MB", "--pin", "attn_q=q3_K"}, failure), HasSubstr("q6_K"));
    EXPECT_THAT(refused({"--size", "3.7MB", "--bpw", "4"}, usage), HasSubstr("several goals"));
    EXPECT_THAT(refused({}, usage), HasSubstr("no goals"));
    EXPECT_THAT(refused({"--gpu-size", "2MB"}, usage), HasSubstr("--cpu-size"));
    EXPECT_THAT(refused({"--vram", "100MB", "--serve-on", "GPU17"}, usage), HasSubstr("GPU17"));
    EXPECT_THAT(refused({"--vram", "100MB", "--kv", "q9"}, usage), HasSubstr("q9"));
    EXPECT_THAT(refused({"--max-kld", "0.0000000001", "--only-types", "q2_K,q4_K"}, failure),
                HasSubstr("the least is"));
    EXPECT_EQ(run({"frontier", small_model().string(), "--journal", journal(), "--max-types", "3"}).code, usage);
    EXPECT_EQ(run({"recipe", "from-type-file", small_model().string(), journal(), "-o", path("x.json").string()}).code,
              failure);
    EXPECT_FALSE(fs::exists(path("x.json")));
}

}  // namespace
}  // namespace cerebellum
