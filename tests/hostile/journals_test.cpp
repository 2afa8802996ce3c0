// Journals that somebody, or a disk, has changed: each command refuses them, or says what it says of the sound one.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sqlite3.h>

#include <random>

#include "tests/hostile/small_jobs.h"

namespace cerebellum {
namespace {

namespace fs = std::filesystem;
using ::testing::IsEmpty;
using testing::ProgramResult;
using testing::with_little_text;
using testing::Workshop;

/// A command that reads a journal, and the file of its answer (empty: what it prints).
struct Reader {
    std::string name;
    std::vector<std::string> arguments;
    std::string output;
};

class SlowHostileJournals : public ::testing::Test {
  protected:
    void SetUp() override {
        shop_.measure();
        sound_ = read_file(shop_.journal());
        const auto model = shop_.model().string(), journal = damaged().string();
        fs::create_directory(shop_ / "damaged");
        readers_ = {
            {"journal show", {"journal", "show", "--json", journal}, ""},
            {"allocate",
             {"allocate", model, "--size", "8bpw", "--journal", journal, "-o", shop_.out("r.json")},
             "r.json"},
            {"report", {"report", model, "--journal", journal, "-o", shop_.out("r.html")}, "r.html"},
            {"show", {"show", journal, "--json"}, ""},
            {"explain", {"explain", "blk.0.attn_q.weight", "--journal", journal, "--json"}, ""},
            {"journal merge", {"journal", "merge", shop_.out("merged.db"), journal}, ""},
            {"frontier", {"frontier", model, "--journal", journal, "-o", shop_.out("f.json"), "-q"}, "f.json"},
            {"quantize",
             with_little_text({"quantize", model, "--size", "8bpw", "-o", shop_.out("q.gguf"), "--journal", journal},
                              shop_.text()),
             "q.gguf"},
            {"ablate", with_little_text({"ablate", model, "--json", "--journal", journal}, shop_.text()), ""},
        };
        write_file_atomically(damaged(), sound_);
        for (const auto& reader : readers_) {
            const auto result = read_by(reader);
            ASSERT_EQ(result.code, 0) << reader.name << " " << result.errors;
            expected_[reader.name] = answer_of(reader, result);
        }
    }
    void TearDown() override {
        fmt::print("{} cases: {} refused, {} as of the sound journal\n", refused_ + same_, refused_, same_);
    }

    fs::path damaged() const { return shop_ / "damaged/j.db"; }
    std::string answer_of(const Reader& reader, const ProgramResult& result) const {
        return reader.output.empty() ? result.output : read_file(shop_.out(reader.output));
    }
    ProgramResult read_by(const Reader& reader) const {
        shop_.empty_out();
        return shop_.run(reader.arguments);
    }
    void damage(const std::string& content) const {
        for (const auto& entry : fs::directory_iterator(shop_ / "damaged")) fs::remove(entry);
        write_file_atomically(damaged(), content);
    }
    void damage_by(const std::string& sql) const {
        damage(sound_);
        sqlite3* database = nullptr;
        ASSERT_EQ(sqlite3_open(damaged().c_str(), &database), SQLITE_OK);
        EXPECT_EQ(sqlite3_exec(database, sql.c_str(), nullptr, nullptr, nullptr), SQLITE_OK)
            << sql << ": " << sqlite3_errmsg(database);
        sqlite3_close(database);
    }
    /// Whether it was refused.
    bool expect_refused_or_same(const Reader& reader, const std::string& what) {
        SCOPED_TRACE(fmt::format("{}: {}", reader.name, what));
        const auto result = read_by(reader);
        EXPECT_EQ(result.signal, 0) << result.errors;
        EXPECT_THAT(shop_.litter(), IsEmpty());
        if (result.code != 0) {
            testing::expect_short_error(result);
            ++refused_;
            return true;
        }
        EXPECT_TRUE(answer_of(reader, result) == expected_.at(reader.name)) << "another answer";
        ++same_;
        return false;
    }

    Workshop shop_;
    std::string sound_;
    std::vector<Reader> readers_;
    std::map<std::string, std::string> expected_;
    int refused_ = 0, same_ = 0;
};

TEST_F(SlowHostileJournals, with_flipped_bytes) {
    std::mt19937 random(7);
    for (int i = 0; i < 300; ++i) {
        auto bytes = sound_;
        const auto n = i % 3 == 0 ? 1 + random() % 16 : 1;
        for (unsigned k = 0; k < n; ++k) {
            auto& byte = bytes[random() % bytes.size()];
            byte = static_cast<char>(byte ^ (i % 2 == 0 ? 1 << random() % 8 : 1 + static_cast<int>(random() % 255)));
        }
        // Those that write may mend or extend what they found: of the figures everybody reads the same.
        damage(bytes);
        expect_refused_or_same(readers_[static_cast<std::size_t>(i) % readers_.size()], fmt::format("flip {}", i));
    }
}

TEST_F(SlowHostileJournals, that_are_cut_or_have_holes) {
    std::mt19937 random(8);
    for (int i = 0; i < 40; ++i) {
        auto bytes = sound_;
        if (i % 2 == 0) {
            bytes.resize(random() % bytes.size());
        } else {
            const auto begin = random() % bytes.size();
            std::fill_n(bytes.begin() + static_cast<std::ptrdiff_t>(begin),
                        std::min<std::size_t>(1 + random() % 4096, bytes.size() - begin), '\0');
        }
        damage(bytes);
        const auto& reader = readers_[static_cast<std::size_t>(i) % readers_.size()];
        // An empty file is what a journal begins as.
        if (bytes.empty()) continue;
        expect_refused_or_same(reader, fmt::format("{} {}", i % 2 == 0 ? "cut" : "hole", i));
    }
}

TEST_F(SlowHostileJournals, with_figures_that_nobody_measured) {
    const std::string numbers[] = {"zeroblob(7)",
                                   "x'000000000000f87f'",
                                   "x'000000000000f0ff'",
                                   "x'00000000000008c0'",
                                   "zeroblob(8000)",
                                   "zeroblob(50000000)",
                                   "1.5",
                                   "-1"};
    for (const auto* column : {"counts", "kld", "delta_nll", "top1_agree", "local_energy", "local_counts", "wall_s",
                               "tensor", "type", "tier"})
        for (const auto& number : numbers) {
            const auto sql = fmt::format(
                "PRAGMA ignore_check_constraints = 1; UPDATE OR REPLACE measurement SET {} = {} WHERE rowid = 1",
                column, number);
            damage_by(sql);
            for (std::size_t r = 0; r < 2; ++r) {
                EXPECT_TRUE(expect_refused_or_same(readers_[r], sql)) << readers_[r].name << ": " << sql;
            }
        }
}

TEST_F(SlowHostileJournals, of_other_shapes) {
    const std::vector<std::pair<std::string, bool>> statements = {
        {"DROP TABLE measurement", true},
        {"DROP TABLE identity", true},
        {"DROP TABLE artifact", true},
        {"DROP TABLE meta", true},
        {"DROP TABLE mix", true},
        {"DROP TABLE unusable", true},
        {"ALTER TABLE measurement DROP COLUMN kld", true},
        {"ALTER TABLE measurement DROP COLUMN digest", true},
        {"ALTER TABLE measurement RENAME TO m; CREATE VIEW measurement AS SELECT * FROM m", true},
        {"ALTER TABLE meta RENAME TO m; CREATE VIEW meta AS SELECT * FROM m", true},
        {"ALTER TABLE meta RENAME TO m; CREATE VIEW meta AS WITH RECURSIVE r(key, value, digest) AS (SELECT 'a', 'b', "
         "'c' UNION ALL SELECT key, value, digest FROM r) SELECT * FROM r",
         true},
        {"CREATE TRIGGER t AFTER INSERT ON measurement BEGIN DELETE FROM measurement; END", false},
        {"CREATE TRIGGER t BEFORE INSERT ON meta BEGIN SELECT load_extension('x'); END", false},
        {"PRAGMA user_version = 3", true},
        {"PRAGMA user_version = 2147483647", true},
        {"PRAGMA application_id = 1", true},
        {"UPDATE identity SET value = 'x'", true},
        {"UPDATE artifact SET bytes = substr(bytes, 1, length(bytes) / 2)", false},
        {"UPDATE artifact SET bytes = zeroblob(10000000)", false},
        {"UPDATE meta SET value = zeroblob(1000000)", true},
        {"UPDATE meta SET key = key || 'x'", true},
        {"VACUUM", false},
    };
    for (const auto& [sql, broken] : statements)
        for (const auto& reader : readers_) {
            damage_by(sql);
            // Who has nothing to do with the artifacts need not notice.
            const bool refused = expect_refused_or_same(reader, sql);
            if (broken) {
                EXPECT_TRUE(refused) << reader.name << ": " << sql;
            }
        }
}

TEST_F(SlowHostileJournals, that_are_something_else) {
    const auto other = shop_ / "other.db";
    sqlite3* database = nullptr;
    ASSERT_EQ(sqlite3_open(other.c_str(), &database), SQLITE_OK);
    EXPECT_EQ(sqlite3_exec(database, "CREATE TABLE measurement (a); INSERT INTO measurement VALUES (1)", nullptr,
                           nullptr, nullptr),
              SQLITE_OK);
    sqlite3_close(database);
    for (const auto& content : {read_file(other), read_file(shop_.model()), std::string(100000, '\0'),
                                std::string("SQLite format 3\0", 16), testing::some_text()})
        for (const auto& reader : readers_) {
            damage(content);
            EXPECT_TRUE(expect_refused_or_same(reader, "something else")) << reader.name;
            EXPECT_TRUE(read_file(damaged()) == content) << reader.name << " wrote to it";
        }
}

}  // namespace
}  // namespace cerebellum
