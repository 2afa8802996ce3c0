// Files from anywhere, given to every command that reads such a file: it refuses them in one line or does its work, in
// time, without a crash, and leaves them as they are.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>

#include "tests/hostile/small_jobs.h"

namespace cerebellum {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using ::testing::IsEmpty;
using testing::ProgramResult;
using testing::with_little_text;
using testing::Workshop;

/// A command that reads a file of some kind; the file's name goes in the place of "@".
struct Reader {
    std::string name;
    std::vector<std::string> arguments;
};

class SlowHostileFiles : public ::testing::Test {
  protected:
    static constexpr auto deadline = std::chrono::seconds(60);

    void SetUp() override {
        shop_.measure();
        for (const auto& arguments : std::vector<std::vector<std::string>>{
                 {"build", model(), "--preset", "Q4_0", "--threads", "1", "-o", in("built.gguf")},
                 {"imatrix", "compute", model(), "--text", text(), "--ctx", "32", "--windows", "2", "--threads", "1",
                  "-o", in("imatrix.gguf")}}) {
            const auto made = shop_.run(arguments);
            ASSERT_EQ(made.code, 0) << made.errors;
        }
        write_file_atomically(in("ablation.json"), ablation().dump());
        before_ = shop_.contents("in");
    }
    static json ablation() {
        const auto test = [](const char* tensor, double ppl) {
            return json{{"gguf_tensor", tensor}, {"ppl", {{"text", ppl}}}, {"kld", ppl / 100.0}, {"type", "q2_K"}};
        };
        return {{"baseline_ppl", {{"text", 10.0}}},
                {"crush_type", "q2_K"},
                {"tests", {{"a", test("blk.0.attn_q.weight", 11.0)}, {"b", test("blk.0.attn_k.weight", 12.0)}}}};
    }

    std::string in(const std::string& name) const { return (shop_ / ("in/" + name)).string(); }
    std::string model() const { return shop_.model().string(); }
    std::string text() const { return shop_.text().string(); }
    std::string journal() const { return shop_.journal().string(); }
    std::vector<std::string> measuring(std::vector<std::string> arguments) const {
        return with_little_text(std::move(arguments), shop_.text());
    }

    std::string hostile_file(const std::string& name, const std::string& content) {
        const auto path = shop_ / "hostile" / name;
        fs::create_directories(path.parent_path());
        fs::remove(path);
        write_file_atomically(path, content);
        return path.string();
    }

    /// Whether it was refused.
    bool expect_no_harm(const Reader& reader, const std::string& file, const std::string& what) {
        SCOPED_TRACE(fmt::format("{}: {}", reader.name, what));
        auto arguments = reader.arguments;
        for (auto& word : arguments)
            for (std::size_t at = 0; (at = word.find('@', at)) != std::string::npos; at += file.size())
                word.replace(at, 1, file);
        std::error_code ignored;
        const auto regular = fs::is_regular_file(file, ignored);
        const auto content = regular ? read_file(file) : std::string();
        const auto begun = std::chrono::steady_clock::now();
        const auto result = shop_.run(arguments, deadline);
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begun;
        EXPECT_EQ(result.signal, 0) << result.errors;
        // To a diff the code says whether there are differences.
        const bool differs = reader.name == "recipe diff" && result.code == 1 && result.errors.empty();
        if (result.code != 0 && !differs) testing::expect_short_error(result);
        EXPECT_THAT(shop_.litter(), IsEmpty());
        if (regular) {
            EXPECT_TRUE(read_file(file) == content) << "the file was written to";
        }
        shop_.empty_out();
        ++cases_;
        slowest_ = std::max(slowest_, took.count());
        return result.code != 0;
    }
    void TearDown() override {
        // A card has its facts beside the file that it is about; nothing else may be new, and nothing another.
        for (const auto& [path, content] : shop_.contents("in"))
            if (!path.ends_with(".facts.json") && !path.ends_with(".findings.json")) {
                EXPECT_TRUE(before_.contains(path) && before_.at(path) == content) << path << " was written to";
            }
        fmt::print("{} cases, the slowest in {:.1f} s\n", cases_, slowest_);
        RecordProperty("cases", cases_);
    }

    std::vector<Reader> readers_of_models() const {
        return {
            {"inspect", {"inspect", "@"}},
            {"quantize", measuring({"quantize", "@", "--size", "8bpw", "-o", shop_.out("q.gguf")})},
            {"build", {"build", "@", "--preset", "Q4_0", "-o", shop_.out("b.gguf"), "--threads", "1", "-q"}},
            {"eval ppl", {"eval", "ppl", "@", "--text", text(), "--ctx", "32", "--windows", "2", "--threads", "1"}},
            {"compare", {"compare", model(), "@"}},
            {"allocate", {"allocate", "@", "--size", "8bpw", "--journal", journal(), "-o", shop_.out("r.json")}},
            {"ablate", measuring({"ablate", "@", "--journal", shop_.out("a.db")})},
            {"verify", measuring({"verify", model(), "@", "--journal", shop_.out("v.db")})},
            {"memory", {"memory", "@"}},
            {"card", {"card", "@", "-o", shop_.out("README.md"), "--force"}},
            {"modelfile", {"modelfile", "@"}},
            {"imatrix compute",
             {"imatrix", "compute", "@", "--text", text(), "--ctx", "32", "--windows", "2", "--threads", "1", "-o",
              shop_.out("i.gguf")}},
            {"recipe from-gguf", {"recipe", "from-gguf", model(), "@", "-o", shop_.out("r.json")}},
            {"eval kld", {"eval", "kld", model(), "@", "--text", text(), "--ctx", "32", "--windows", "2"}},
            {"report", {"report", "@", "--journal", journal(), "-o", shop_.out("r.html")}},
            {"doctor", {"doctor", "@"}},
            {"frontier", {"frontier", "@", "--journal", journal(), "-o", shop_.out("f.json")}},
            {"import", {"import", in("ablation.json"), "--model", "@"}},
        };
    }
    std::vector<Reader> readers_of_texts() const {
        return {
            {"imatrix compute",
             {"imatrix", "compute", model(), "--text", "@", "--ctx", "32", "--windows", "2", "--threads", "1", "-o",
              shop_.out("i.gguf")}},
            {"eval ppl", {"eval", "ppl", model(), "--text", "@", "--ctx", "32", "--windows", "2", "--threads", "1"}},
            {"eval kld", {"eval", "kld", model(), in("built.gguf"), "--text", "@", "--ctx", "32", "--windows", "2"}},
            {"ablate", with_little_text({"ablate", model(), "--journal", shop_.out("a.db")}, "@")},
            {"quantize", with_little_text({"quantize", model(), "--size", "8bpw", "-o", shop_.out("q.gguf")}, "@")},
            {"verify", with_little_text({"verify", model(), in("built.gguf"), "--journal", shop_.out("v.db")}, "@")},
        };
    }
    std::vector<Reader> readers_of_matrices() const {
        return {
            {"imatrix show", {"imatrix", "show", "@"}},
            {"imatrix merge", {"imatrix", "merge", "@", in("imatrix.gguf"), "-o", shop_.out("m.gguf")}},
            {"build --imatrix",
             {"build", model(), "--preset", "Q4_0", "--imatrix", "@", "-o", shop_.out("b.gguf"), "--threads", "1"}},
            {"quantize --imatrix",
             measuring({"quantize", model(), "--size", "8bpw", "--imatrix", "@", "-o", shop_.out("q.gguf")})},
        };
    }
    std::vector<Reader> readers_of_lists() const {
        return {
            {"recipe from-type-file", {"recipe", "from-type-file", model(), "@", "-o", shop_.out("r.json")}},
            {"import csv", {"import", "@", "--model", model()}},
            {"allocate --sensitivity",
             {"allocate", "--sensitivity", "@", "--model", model(), "--budget", "1", "-o", shop_.out("t.txt")}},
            {"eval choice",
             {"eval", "choice", "choice", model(), "--questions", "@", "--out", shop_.out("e"), "--threads", "1"}},
            {"eval choice hellaswag",
             {"eval", "choice", "hellaswag", model(), "--questions", "@", "--out", shop_.out("e"), "--threads", "1"}},
            {"eval choice truthfulqa",
             {"eval", "choice", "truthfulqa", model(), "--questions", "@", "--out", shop_.out("e"), "--threads", "1"}},
            {"eval code",
             {"eval", "code", "humaneval", "--tasks", "@", "--server", "http://127.0.0.1:9", "--retries", "0", "--out",
              shop_.out("e")}},
        };
    }
    std::vector<Reader> readers_of_json() const {
        return {
            {"build --recipe", {"build", model(), "--recipe", "@", "-o", shop_.out("b.gguf"), "--threads", "1", "-q"}},
            {"recipe diff", {"recipe", "diff", "@", model()}},
            {"report --recipe",
             {"report", model(), "--journal", journal(), "--recipe", "@", "-o", shop_.out("r.html")}},
            {"report --results",
             {"report", model(), "--journal", journal(), "--results", "@", "-o", shop_.out("r.html")}},
            {"card --results", {"card", in("built.gguf"), "--results", "@", "-o", shop_.out("README.md"), "--force"}},
            {"compare-evals", {"compare-evals", "@"}},
            {"import", {"import", "@", "--model", model()}},
            {"allocate --ablation",
             {"allocate", "--ablation", "@", "--model", model(), "--budget", "1", "-o", shop_.out("t.txt")}},
            {"ablate --plan", measuring({"ablate", model(), "--baseline", "source", "--plan", "@", "--journal",
                                         shop_.out("a.db"), "-o", shop_.out("a.json")})},
            {"verify-derivation", {"verify-derivation", "@"}},
            {"eval audit", {"eval", "audit", "@"}},
            {"eval rejudge", {"eval", "rejudge", "@", "--reason", "x"}},
        };
    }

    Workshop shop_;
    std::map<std::string, std::string> before_;
    int cases_ = 0;
    double slowest_ = 0.0;
};

// Models --------------------------------------------------------------------------------------------------------------

/// A number in a GGUF's header that says how much of something follows, what it is, or where it lies.
struct Field {
    std::string what;
    std::size_t at, size;
};

/// Walks over a header that is sound.
class HeaderFields {
  public:
    explicit HeaderFields(const std::string& bytes) : bytes_(bytes) {
        at_ = 4;
        take("version", 4);
        const auto tensors = take("number of tensors", 8), pairs = take("number of keys", 8);
        for (std::uint64_t i = 0; i < pairs; ++i) {
            const auto key = string("key");
            value(static_cast<unsigned>(take("type of " + key, 4)), key);
        }
        for (std::uint64_t i = 0; i < tensors; ++i) {
            const auto name = string("tensor");
            const auto n = take("dimensions of " + name, 4);
            for (std::uint64_t d = 0; d < n; ++d) take("dimension of " + name, 8);
            take("type id of " + name, 4);
            take("offset of " + name, 8);
        }
        end_ = at_;
    }
    const std::vector<Field>& all() const { return all_; }
    std::size_t end() const { return end_; }

  private:
    std::uint64_t take(const std::string& what, std::size_t size) {
        std::uint64_t number = 0;
        std::memcpy(&number, bytes_.data() + at_, size);
        all_.push_back({what, at_, size});
        at_ += size;
        return number;
    }
    std::string string(const std::string& what) {
        const auto size = take("length of a " + what, 8);
        at_ += size;
        return bytes_.substr(at_ - size, size);
    }
    void value(unsigned type, const std::string& key) {
        constexpr unsigned string_type = 8, array_type = 9;
        static const std::size_t sizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
        if (type == string_type) {
            string("value of " + key);
        } else if (type == array_type) {
            const auto of = static_cast<unsigned>(take("type of the elements of " + key, 4));
            const auto n = take("length of " + key, 8);
            for (std::uint64_t i = 0; i < n; ++i) {
                std::uint64_t size = sizes[of];
                if (of == string_type) {
                    std::memcpy(&size, bytes_.data() + at_, 8);
                    at_ += 8;
                }
                at_ += size;
            }
        } else {
            take("value of " + key, sizes[type]);
        }
    }

    const std::string& bytes_;
    std::size_t at_ = 0, end_ = 0;
    std::vector<Field> all_;
};

std::string with_number(std::string bytes, const Field& field, std::uint64_t number) {
    std::memcpy(bytes.data() + field.at, &number, field.size);
    return bytes;
}

/// Fields that others judge: what a type id or a block count that contradicts the tensors is said to be.
bool is_judged_elsewhere(const Field& field) {
    return field.what.starts_with("type id") || field.what.find("block_count") != std::string::npos;
}

TEST_F(SlowHostileFiles, models_that_are_cut_padded_or_have_holes) {
    const auto sound = read_file(shop_.model());
    const HeaderFields header(sound);
    const auto readers = readers_of_models();
    std::size_t turn = 0;
    const auto try_some = [&](const std::string& content, const std::string& what, std::size_t count, bool broken) {
        const auto file = hostile_file("model.gguf", content);
        for (std::size_t i = 0; i < count; ++i) {
            const auto& reader = readers[turn++ % readers.size()];
            // The doctor says what is wrong with it among what is wrong with the machine, imports need the header
            // alone.
            const bool refused = expect_no_harm(reader, file, what);
            if (broken) {
                EXPECT_TRUE(refused || reader.name == "doctor" || reader.name == "import")
                    << reader.name << ": " << what;
            }
        }
    };
    std::mt19937 random(1);
    for (const std::size_t length : {std::size_t(0), std::size_t(1), std::size_t(4), std::size_t(8), std::size_t(23),
                                     header.end() - 1, header.end(), sound.size() / 2, sound.size() - 1})
        try_some(sound.substr(0, length), fmt::format("cut at {}", length), 4, true);
    for (int i = 0; i < 20; ++i) {
        const auto length = random() % (i % 2 == 0 ? header.end() : sound.size());
        try_some(sound.substr(0, length), fmt::format("cut at {}", length), 2, true);
    }
    try_some(sound + std::string(4096, '\0'), "padded with zeros", 3, false);
    try_some(sound + sound, "twice in one file", 3, false);
    auto hole = sound;
    std::fill(hole.begin() + static_cast<std::ptrdiff_t>(header.end()), hole.end(), '\0');
    try_some(hole, "nothing but zeros as weights", readers.size(), false);
    hole = sound;
    std::fill(hole.begin() + 30, hole.begin() + 400, '\0');
    try_some(hole, "a hole in the header", readers.size(), false);
    try_some(std::string(1 << 20, '\0'), "nothing but zeros", 4, true);
    try_some("GGUF" + std::string(1 << 16, '\xff'), "nothing but ones", 4, true);
}

TEST_F(SlowHostileFiles, models_with_absurd_numbers_in_their_headers) {
    const auto sound = read_file(shop_.model());
    const HeaderFields header(sound);
    const auto readers = readers_of_models();
    std::mt19937 random(2);
    std::size_t turn = 0;
    for (const auto& field : header.all()) {
        if (is_judged_elsewhere(field)) continue;
        const std::uint64_t values[] = {0, 1, ~0ULL, 1ULL << 63, 0x7fffffffULL, 1ULL << 40, random() % 4096};
        for (int i = 0; i < 2; ++i) {
            const auto value = values[random() % std::size(values)];
            const auto file = hostile_file("model.gguf", with_number(sound, field, value));
            expect_no_harm(readers[turn++ % readers.size()], file, fmt::format("{} is {}", field.what, value));
        }
    }
}

TEST_F(SlowHostileFiles, models_whose_metadata_or_tensors_contradict_each_other) {
    const auto readers = readers_of_models();
    const std::vector<testing::TestTensor> twice = {{"token_embd.weight", GGML_TYPE_F16, {64, 16, 1, 1}},
                                                    {"token_embd.weight", GGML_TYPE_F16, {64, 16, 1, 1}}};
    const auto sound = read_file(shop_.model());
    const HeaderFields header(sound);
    std::map<std::string, std::string> files;
    // Two tensors at one place, one outside of the file, one that is not aligned.
    std::vector<Field> offsets;
    for (const auto& field : header.all())
        if (field.what.starts_with("offset of ")) offsets.push_back(field);
    files["overlapping tensors"] = with_number(sound, offsets.at(3), 0);
    files["a tensor out of the file"] = with_number(sound, offsets.at(4), 1ULL << 44);
    files["a tensor half out of the file"] = with_number(sound, offsets.at(4), (sound.size() - header.end()) & ~31ULL);
    files["a tensor that is not aligned"] = with_number(sound, offsets.at(4), 13);
    // Names of one length, so that one can be given the other's.
    auto same = sound;
    const auto gate = same.find("blk.0.attn_q.weight"), up = same.find("blk.0.attn_k.weight");
    same.replace(up, std::strlen("blk.0.attn_k.weight"), same.substr(gate, std::strlen("blk.0.attn_k.weight")));
    files["two tensors of one name"] = same;
    for (const auto& [key, value] :
         std::vector<std::pair<std::string, std::uint32_t>>{{"embedding_length", 63},
                                                            {"embedding_length", 1U << 30},
                                                            {"feed_forward_length", 7},
                                                            {"attention.head_count", 0},
                                                            {"attention.head_count_kv", 0},
                                                            {"attention.head_count_kv", 5},
                                                            {"context_length", 0},
                                                            {"vocab_size", 7},
                                                            {"rope.dimension_count", 1U << 31}})
        for (const auto& field : header.all())
            if (field.what == "value of llama." + key)
                files[fmt::format("{} is {}", key, value)] = with_number(sound, field, value);
    for (const auto& [name, value] :
         std::vector<std::pair<std::string, std::uint16_t>>{{"NaN", 0x7e00}, {"infinity", 0x7c00}}) {
        auto bytes = sound;
        std::memcpy(bytes.data() + header.end() + 4096, &value, 2);
        files["a weight that is " + name] = bytes;
        for (std::size_t at = header.end() + 64; at + 2 < bytes.size(); at += 2)
            std::memcpy(bytes.data() + at, &value, 2);
        files["all weights are " + name] = bytes;
    }
    for (const auto& [what, content] : files) {
        const auto file = hostile_file("model.gguf", content);
        for (const auto& reader : readers) expect_no_harm(reader, file, what);
    }
}

// Texts, matrices, lists ----------------------------------------------------------------------------------------------

TEST_F(SlowHostileFiles, texts) {
    std::string utf16 = "\xff\xfe";
    for (const char c : testing::some_text()) utf16 += {c, '\0'};
    const std::map<std::string, std::string> texts = {
        {"empty", ""},
        {"a byte order mark alone", "\xef\xbb\xbf"},
        {"behind a byte order mark", "\xef\xbb\xbf" + testing::some_text()},
        {"UTF-16", utf16},
        {"zeros", std::string(20000, '\0')},
        {"zeros between letters", testing::some_text() + std::string(100, '\0') + testing::some_text()},
        {"one line", std::string(1 << 20, 'a')},
        {"line ends", std::string(1 << 20, '\n')},
        {"blanks", std::string(1 << 20, ' ')},
        {"half a gzip", "\x1f\x8b\x08" + std::string(5, '\0')},
        {"noise as a gzip", std::string("\x1f\x8b\x08\0\0\0\0\0\0\3", 10) + testing::some_text()},
        {"special tokens", [] {
             std::string all;
             for (int i = 0; i < 2000; ++i) all += "<|endoftext|><s></s><|im_start|>";
             return all;
         }()}};
    for (const auto& [what, content] : texts) {
        const auto file = hostile_file("text.txt", content);
        for (const auto& reader : readers_of_texts()) expect_no_harm(reader, file, what);
    }
    const auto bomb = hostile_file("bomb.gz", "");
    const auto pack = fmt::format("head -c 1300000000 /dev/zero | gzip -1 > '{}'", bomb);
    ASSERT_EQ(std::system(pack.c_str()), 0);
    EXPECT_TRUE(expect_no_harm(readers_of_texts().front(), bomb, "unpacks to 1.3 GB"));
}

/// Cut, flipped, with pieces repeated or taken out: as a fuzzer would, but from one seed.
std::string mutated(std::string bytes, std::mt19937& random) {
    if (bytes.empty()) return bytes;
    const auto anywhere = [&] { return static_cast<std::size_t>(random()) % bytes.size(); };
    switch (random() % 4) {
        case 0:
            return bytes.substr(0, anywhere());
        case 1:
            for (unsigned i = 0; i < 1 + random() % 8; ++i) bytes[anywhere()] = static_cast<char>(random());
            return bytes;
        case 2: {
            const auto at = anywhere();
            return bytes.insert(at, bytes.substr(anywhere(), random() % 300));
        }
        default:
            return bytes.erase(anywhere(), 1 + random() % 100);
    }
}

TEST_F(SlowHostileFiles, importance_matrices) {
    ASSERT_EQ(shop_.run({"imatrix", "merge", in("imatrix.gguf"), "-o", in("imatrix.dat")}).code, 0);
    before_ = shop_.contents("in");
    const auto readers = readers_of_matrices();
    std::mt19937 random(3);
    for (const auto* name : {"imatrix.gguf", "imatrix.dat"}) {
        const auto sound = read_file(in(name));
        for (int i = 0; i < 40; ++i) {
            const auto file = hostile_file(name, mutated(sound, random));
            expect_no_harm(readers[static_cast<std::size_t>(i) % readers.size()], file,
                           fmt::format("{}, mutation {}", name, i));
        }
        for (const float value : {std::numeric_limits<float>::quiet_NaN(), -1.0F, 3e38F, 0.0F}) {
            auto bytes = sound;
            for (std::size_t at = bytes.size() * 3 / 4 & ~3ULL; at + 4 <= bytes.size() - 32; at += 4)
                std::memcpy(bytes.data() + at, &value, 4);
            const auto file = hostile_file(name, bytes);
            for (const auto& reader : readers) expect_no_harm(reader, file, fmt::format("{} of {}", name, value));
        }
    }
}

TEST_F(SlowHostileFiles, lists_tables_and_questions) {
    const std::string question = R"({"question": "x?", "choices": ["first", "second"], "answer": 1})";
    const std::vector<std::pair<std::string, std::string>> contents = {
        {"empty", ""},
        {"line ends", std::string(100000, '\n')},
        {"one line of a megabyte", std::string(1 << 20, 'x')},
        {"zeros", std::string(1000, '\0')},
        {"commas", std::string(1 << 18, ',')},
        {"quotes", std::string(1 << 18, '"')},
        {"a quote that never ends", "tensor,\"kld\nblk.0.attn_q.weight,1\n"},
        {"a pattern of many stars", std::string(3000, '*') + "=q8_0\n"},
        {"a pattern that backtracks", "(a|a)*(a|a)*(a|a)*(a|a)*b" + std::string(200, 'a') + "=q8_0\n"},
        {"no type", "blk.0.attn_q.weight=\n=q8_0\n=\n"},
        {"many types",
         [] {
             std::string all;
             for (int i = 0; i < 20000; ++i) all += fmt::format("blk.{}.attn_q.weight=q8_0\n", i);
             return all;
         }()},
        {"numbers that are none", "tensor,kld,bytes\nblk.0.attn_q.weight,nan,-1\nblk.0.attn_k.weight,inf,1e400\n"},
        {"brackets", std::string(200000, '[')},
        {"objects",
         [] {
             std::string all;
             for (int i = 0; i < 100000; ++i) all += "{\"a\":";
             return all;
         }()},
        {"a question of wrong types", R"({"question": 1, "choices": "ab", "answer": []})"
                                      "\n"},
        {"an answer that is none",
         R"({"question": "x?", "choices": ["first", "second"], "answer": 99999999999999999999})"
         "\n"},
        {"a negative answer", R"({"question": "x?", "choices": ["first", "second"], "answer": -1})"
                              "\n"},
        {"no choices", R"({"question": "x?", "choices": [], "answer": 0})"
                       "\n"},
        {"bytes that are no text", question + "\n\xff\xfe\x80\n"},
        {"a question of a megabyte", R"({"question": ")" + std::string(1 << 20, 'x') +
                                         R"(", "choices": ["first", "second"], "answer": 1})"
                                         "\n"},
    };
    for (const auto& [what, content] : contents) {
        for (const auto& reader : readers_of_lists()) {
            const auto file = hostile_file(reader.name.find("csv") != std::string::npos ? "a.csv" : "list", content);
            expect_no_harm(reader, file, what);
        }
    }
}

// JSON ----------------------------------------------------------------------------------------------------------------

TEST_F(SlowHostileFiles, json_that_is_none) {
    const std::vector<std::pair<std::string, std::string>> contents = {
        {"empty", ""},
        {"an open bracket", "{"},
        {"null", "null"},
        {"a number", "42"},
        {"a text", "\"x\""},
        {"a list", "[]"},
        {"an object", "{}"},
        {"a list of lists", "[[[[1]]]]"},
        {"200000 brackets", std::string(200000, '[')},
        {"a number that is too large", R"({"format": "cerebellum-recipe", "version": 1e999, "types": {}})"},
        {"noise", std::string("\x80\xff\x00{}", 5)},
        {"one name many times",
         [] {
             std::string all = "{\"a\": 1";
             for (int i = 0; i < 20000; ++i) all += ", \"a\": 1";
             return all + "}";
         }()},
    };
    for (const auto& [what, content] : contents) {
        const auto file = hostile_file("a.json", content);
        for (const auto& reader : readers_of_json()) expect_no_harm(reader, file, what);
    }
}

/// A document with one of its values replaced by something else.
std::string with_a_wrong_value(const json& document, std::mt19937& random) {
    const auto flat = document.flatten();
    auto changed = document;
    if (flat.empty()) return "[]";
    auto item = flat.begin();
    std::advance(item, static_cast<std::ptrdiff_t>(random() % flat.size()));
    json::json_pointer place(item.key());
    // Sometimes a whole object or list instead of what is in it.
    for (unsigned up = random() % 4; up > 0 && !place.parent_pointer().empty(); --up) place = place.parent_pointer();
    const std::vector<json> values = {nullptr,
                                      -1,
                                      0,
                                      1e308,
                                      "x",
                                      "\x1b]0;owned\x07",
                                      true,
                                      json::array(),
                                      json::object(),
                                      {1, 2},
                                      std::numeric_limits<std::uint64_t>::max(),
                                      std::string(100000, 'y')};
    changed[place] = values[random() % values.size()];
    return changed.dump(-1, ' ', false, json::error_handler_t::replace);
}

TEST_F(SlowHostileFiles, json_with_values_of_other_types) {
    // Documents as the program itself writes them.
    const auto made = shop_.run(
        measuring({"quantize", model(), "--size", "8bpw", "-o", shop_.out("q.gguf"), "--journal", shop_.out("q.db")}));
    ASSERT_EQ(made.code, 0) << made.errors;
    std::map<std::string, json> documents = {{"results", json::parse(read_file(shop_.out("q.results.json")))},
                                             {"recipe", json::parse(read_file(shop_.out("q.recipe.json")))}};
    const auto kld = shop_.run({"eval", "kld", model(), in("built.gguf"), "--text", text(), "--ctx", "32", "--windows",
                                "2", "--threads", "1", "--json", "-q"});
    ASSERT_EQ(kld.code, 0) << kld.errors;
    documents["kld"] = json::parse(kld.output);
    documents["ablation"] = ablation();
    documents["plan"] = json{{"tensors", {{{"name", "blk.0.attn_q.weight"}}}}};
    const std::map<std::string, std::vector<std::string>> read_by = {
        {"results", {"report --results", "card --results", "compare-evals"}},
        {"recipe", {"build --recipe", "report --recipe", "recipe diff"}},
        {"kld", {"compare-evals", "card --results", "report --results"}},
        {"ablation", {"import", "allocate --ablation"}},
        {"plan", {"ablate --plan"}}};
    std::mt19937 random(4);
    for (const auto& [kind, document] : documents)
        for (int i = 0; i < 30; ++i) {
            const auto content = with_a_wrong_value(document, random);
            const auto file = hostile_file(kind + ".json", content);
            const auto& names = read_by.at(kind);
            for (const auto& reader : readers_of_json())
                if (reader.name == names[static_cast<std::size_t>(i) % names.size()])
                    expect_no_harm(reader, file, content.substr(0, 3000));
        }
}

// What is no file -----------------------------------------------------------------------------------------------------

TEST_F(SlowHostileFiles, pipes_devices_folders_and_nothing) {
    const auto pipe = shop_ / "pipe";
    ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
    fs::create_directory(shop_ / "folder");
    fs::create_symlink(shop_ / "link", shop_ / "link");
    std::vector<Reader> all;
    for (const auto& some :
         {readers_of_models(), readers_of_texts(), readers_of_matrices(), readers_of_lists(), readers_of_json()})
        all.insert(all.end(), some.begin(), some.end());
    all.push_back(
        {"allocate --journal", {"allocate", model(), "--size", "8bpw", "--journal", "@", "-o", shop_.out("r.json")}});
    all.push_back({"journal show", {"journal", "show", "@"}});
    all.push_back({"journal merge", {"journal", "merge", shop_.out("m.db"), "@"}});
    all.push_back({"show", {"show", "@"}});
    all.push_back({"--config", {"inspect", model(), "--config", "@"}});
    for (const auto& reader : all)
        for (const auto& what : {pipe, fs::path("/dev/zero"), shop_ / "folder", shop_ / "nowhere", shop_ / "link"}) {
            const bool refused = expect_no_harm(reader, what.string(), what.filename().string());
            EXPECT_TRUE(refused || reader.name == "doctor") << reader.name << ": " << what.filename();
        }
}

}  // namespace
}  // namespace cerebellum
