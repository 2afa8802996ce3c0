#include "cerebellum/journal/journal.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sqlite3.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <functional>
#include <limits>

#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"

namespace cerebellum {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;

/// While it lives, this process may do what an ordinary user may, to whom all in the folder belongs. Root may write
/// everywhere.
class WithoutRoot {
  public:
    explicit WithoutRoot(const fs::path& folder) {
        if (!was_root_) return;
        for (const auto& entry : fs::recursive_directory_iterator(folder)) give(entry.path());
        give(folder);
        EXPECT_EQ(::setresuid(nobody, nobody, 0), 0);
    }
    ~WithoutRoot() {
        if (!was_root_) return;
        EXPECT_EQ(::setresuid(0, 0, 0), 0);
    }
    WithoutRoot(const WithoutRoot&) = delete;
    WithoutRoot& operator=(const WithoutRoot&) = delete;

  private:
    static constexpr uid_t nobody = 65534;
    static void give(const fs::path& path) { EXPECT_EQ(::chown(path.c_str(), nobody, static_cast<gid_t>(-1)), 0); }
    bool was_root_ = ::geteuid() == 0;
};

class JournalTest : public testing::Test {
  protected:
    void SetUp() override {
        std::string name = (fs::temp_directory_path() / "cerebellum-journal-XXXXXX").string();
        ASSERT_NE(::mkdtemp(name.data()), nullptr);
        folder_ = name;
        path_ = folder_ / "journal.db";
    }
    void TearDown() override {
        fs::permissions(folder_, fs::perms::owner_all, fs::perm_options::add);
        fs::remove_all(folder_);
    }

    fs::path folder_, path_;
    JournalIdentity identity_{{{"model", "abc"}, {"ctx", "512"}}};
};

std::string message_of(const std::function<void()>& action) {
    try {
        action();
    } catch (const Error& error) {
        return error.what();
    }
    return "no error";
}

Measurement sample(int number) {
    Measurement m;
    m.tensor = fmt::format("blk.{}.ffn_down.weight", number);
    m.type = "q4_K";
    m.tier = Tier::full;
    m.counts = {255.0, 255.0, static_cast<double>(number + 1)};
    m.kld = {1e-9, 0.1, 3.0};
    m.delta_nll = {-1e-9, 0.0, -0.0};
    m.top1_agree = {250.0, 251.0, 1.0};
    m.wall_s = 0.25;
    return m;
}

/// What SQLite itself says about the file.
std::string integrity(const fs::path& path) {
    sqlite3* database = nullptr;
    sqlite3_open(path.c_str(), &database);
    std::string verdict = "none";
    sqlite3_exec(
        database, "PRAGMA integrity_check",
        [](void* out, int, char** values, char**) {
            *static_cast<std::string*>(out) = values[0];
            return 0;
        },
        &verdict, nullptr);
    sqlite3_close(database);
    return verdict;
}

void execute(const fs::path& path, const std::string& sql) {
    sqlite3* database = nullptr;
    ASSERT_EQ(sqlite3_open(path.c_str(), &database), SQLITE_OK);
    EXPECT_EQ(sqlite3_exec(database, sql.c_str(), nullptr, nullptr, nullptr), SQLITE_OK) << sqlite3_errmsg(database);
    sqlite3_close(database);
}

TEST_F(JournalTest, gives_back_what_was_recorded) {
    auto journal = Journal::open(path_, identity_);
    const Measurement full = sample(3);
    Measurement fast;
    fast.tensor = full.tensor;
    fast.type = full.type;
    fast.tier = Tier::fast;
    fast.local_energy = {1e-300, std::numeric_limits<double>::denorm_min(), std::numeric_limits<double>::max()};
    fast.local_counts = {1.0, 2.0, 3.0};
    journal.record(full);
    journal.record(fast);
    journal.record(sample(1));
    EXPECT_EQ(journal.measurements(), (std::vector<Measurement>{sample(1), fast, full}));
    EXPECT_TRUE(journal.has(full.tensor, "q4_K", Tier::fast));
    EXPECT_FALSE(journal.has(full.tensor, "q5_K", Tier::fast));
    EXPECT_FALSE(journal.has("blk.1.ffn_down.weight", "q4_K", Tier::fast));
    EXPECT_TRUE(std::signbit(journal.measurements()[2].delta_nll[2]));
}

TEST_F(JournalTest, a_second_measurement_takes_the_place_of_the_first) {
    auto journal = Journal::open(path_, identity_);
    Measurement m = sample(1);
    journal.record(m);
    m.kld = {1.0, 2.0, 3.0};
    journal.record(m);
    EXPECT_EQ(journal.measurements(), std::vector<Measurement>{m});
}

TEST_F(JournalTest, is_resumed_with_everything_in_it) {
    const std::string bytes("to\0kens\xff", 8);
    {
        auto journal = Journal::open(path_, identity_);
        journal.record(sample(1));
        journal.put_artifact("tokens", bytes);
        journal.put_artifact("empty", "");
        journal.put_meta("host", "here");
        journal.put_meta("host", "there");
    }
    auto journal = Journal::open(path_, identity_);
    journal.record(sample(2));
    EXPECT_EQ(journal.identity(), identity_);
    EXPECT_EQ(journal.measurements().size(), 2u);
    EXPECT_EQ(journal.get_artifact("tokens"), bytes);
    EXPECT_EQ(journal.get_artifact("empty"), "");
    EXPECT_EQ(journal.get_artifact("none"), std::nullopt);
    EXPECT_EQ(journal.get_meta("host"), "there");
    EXPECT_EQ(journal.get_meta("none"), std::nullopt);
}

TEST_F(JournalTest, one_file_is_left_when_it_is_closed) {
    {
        auto journal = Journal::open(path_, identity_);
        journal.record(sample(1));
        Journal moved = std::move(journal);
        moved.record(sample(2));
    }
    EXPECT_EQ(Journal::open_existing(path_).measurements().size(), 2u);
    EXPECT_EQ(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()), 1);
}

TEST_F(JournalTest, names_what_differs_from_its_identity) {
    { Journal::open(path_, identity_); }
    JournalIdentity other = identity_;
    other.fields["ctx"] = "1024";
    EXPECT_THAT(
        message_of([&] { Journal::open(path_, other); }),
        AllOf(HasSubstr(path_.string()), HasSubstr("ctx = \"512\""), HasSubstr("\"1024\""), HasSubstr("--journal")));
    other = identity_;
    other.fields["seed"] = "7";
    EXPECT_THAT(message_of([&] { Journal::open(path_, other); }), HasSubstr("seed = nothing, this run has \"7\""));
    other = identity_;
    other.fields.erase("model");
    EXPECT_THAT(message_of([&] { Journal::open(path_, other); }), HasSubstr("model = \"abc\", this run has nothing"));
    EXPECT_NO_THROW(Journal::open(path_, identity_));
}

TEST_F(JournalTest, refuses_what_is_no_journal) {
    const std::string text =
        "this is a letter, not a database; it is long enough to have a header of its own, and more"
        "than that, because a hundred bytes are what SQLite looks at";
    write_file_atomically(path_, text);
    EXPECT_THAT(message_of([&] { Journal::open(path_, identity_); }), HasSubstr("not a Cerebellum journal"));
    EXPECT_THAT(message_of([&] { Journal::open_existing(path_); }), HasSubstr("not a Cerebellum journal"));
    EXPECT_EQ(read_file(path_), text);

    const fs::path foreign = folder_ / "foreign.db";
    execute(foreign, "CREATE TABLE bookmarks (url TEXT)");
    const std::string before = read_file(foreign);
    EXPECT_THAT(message_of([&] { Journal::open(foreign, identity_); }), HasSubstr("another program"));
    EXPECT_THAT(message_of([&] { Journal::open_existing(foreign); }), HasSubstr("another program"));
    EXPECT_EQ(read_file(foreign), before);
    EXPECT_THAT(message_of([&] { Journal::open(folder_, identity_); }), HasSubstr("directory"));
    EXPECT_THAT(message_of([&] { Journal::open_existing(folder_ / "none.db"); }), HasSubstr("no such file"));
    EXPECT_FALSE(fs::exists(folder_ / "none.db"));
    write_file_atomically(folder_ / "empty.db", "");
    EXPECT_THAT(message_of([&] { Journal::open_existing(folder_ / "empty.db"); }),
                HasSubstr("not a Cerebellum journal"));
}

TEST_F(JournalTest, refuses_a_newer_format) {
    { Journal::open(path_, identity_); }
    execute(path_, "PRAGMA user_version = 99");
    EXPECT_THAT(message_of([&] { Journal::open(path_, identity_); }), AllOf(HasSubstr("99"), HasSubstr("update")));
    EXPECT_THAT(message_of([&] { Journal::open_existing(path_); }), HasSubstr("99"));
}

TEST_F(JournalTest, says_that_a_file_is_damaged) {
    {
        auto journal = Journal::open(path_, identity_);
        for (int i = 0; i < 500; ++i) journal.record(sample(i));
    }
    std::string content = read_file(path_);
    std::string broken = content;
    for (std::size_t i = 4096 * 3; i < broken.size(); ++i) broken[i] = static_cast<char>(i * 7919 >> 3);
    write_file_atomically(path_, broken);
    EXPECT_THAT(message_of([&] { Journal::open(path_, identity_); }), HasSubstr("damaged"));
    write_file_atomically(path_, content.substr(0, content.size() / 2));
    EXPECT_THAT(message_of([&] { Journal::open_existing(path_); }), HasSubstr("damaged"));
}

TEST_F(JournalTest, never_crashes_on_flipped_bytes) {
    {
        auto journal = Journal::open(path_, identity_);
        for (int i = 0; i < 50; ++i) journal.record(sample(i));
    }
    const std::string content = read_file(path_);
    for (std::size_t i = 0; i < 200; ++i) {
        std::string broken = content;
        const std::size_t at = i < 100 ? i : (i * 7919) % content.size();
        broken[at] = static_cast<char>(broken[at] ^ (1 << (i % 8)));
        write_file_atomically(path_, broken);
        try {
            Journal::open_existing(path_).measurements();
        } catch (const Error&) {
        }
    }
}

TEST_F(JournalTest, one_writer_at_a_time_and_any_readers) {
    auto journal = Journal::open(path_, identity_);
    journal.record(sample(1));
    EXPECT_THAT(message_of([&] { Journal::open(path_, identity_); }),
                AllOf(HasSubstr(path_.string()), HasSubstr(fmt::format("process {} is writing", ::getpid()))));
    auto reader = Journal::open_existing(path_);
    EXPECT_EQ(reader.measurements().size(), 1u);
    journal.record(sample(2));
    EXPECT_EQ(reader.measurements().size(), 2u);
    EXPECT_EQ(reader.identity(), identity_);
    EXPECT_THROW(reader.record(sample(3)), Error);
    EXPECT_THROW(reader.put_meta("a", "b"), Error);
    EXPECT_THROW(reader.put_artifact("a", "b"), Error);
}

TEST_F(JournalTest, folders_that_cannot_be_written_are_named) {
    EXPECT_THAT(message_of([&] { Journal::open(folder_ / "none" / "journal.db", identity_); }), HasSubstr("no folder"));
    fs::permissions(folder_, fs::perms::owner_read | fs::perms::owner_exec);
    const WithoutRoot ordinary(folder_);
    EXPECT_THAT(message_of([&] { Journal::open(path_, identity_); }), HasSubstr("permission"));
}

MixMeasurement sample_mix() {
    MixMeasurement m;
    m.types = {{"a=b.weight", GGML_TYPE_Q4_K},
               {"c.weight", GGML_TYPE_IQ2_XXS},
               {"d.weight", {GGML_TYPE_Q2_K, Rounding::feedback}}};
    m.part = "measured";
    m.kind = "recipe";
    m.counts = {255.0, 254.0};
    m.kld = {0.25, 1e-12};
    m.nll = {3.0, 4.0};
    m.reference_nll = {2.5, 4.5};
    m.top1_agree = {200.0, 254.0};
    m.wall_s = 1.5;
    return m;
}

TEST_F(JournalTest, refuses_figures_that_do_not_belong_together) {
    MixMeasurement mix;
    mix.part = "measured";
    mix.kind = "recipe";
    mix.types = {{"t", Encoding(GGML_TYPE_Q4_K)}};
    mix.counts = mix.kld = mix.nll = mix.reference_nll = mix.top1_agree = {2.0, 3.0};
    const auto read = [&] {
        const auto journal = Journal::open_existing(path_);
        journal.measurements();
        journal.not_numbers();
        journal.unusable();
        journal.mixes();
    };
    // Little-endian doubles: −3, 100, infinity.
    const std::string negative = "00000000000008c0", hundred = "0000000000005940", infinite = "000000000000f07f";
    for (const std::string& sql : std::vector<std::string>{
             "UPDATE measurement SET kld = zeroblob(16)",
             "UPDATE measurement SET delta_nll = zeroblob(16)",
             "UPDATE measurement SET top1_agree = zeroblob(16)",
             "UPDATE measurement SET local_energy = zeroblob(16)",
             "UPDATE measurement SET counts = zeroblob(7)",
             "UPDATE measurement SET type = 'q4_Z'",
             "UPDATE measurement SET counts = x'" + negative + negative + negative + "'",
             "UPDATE measurement SET top1_agree = x'" + hundred + hundred + hundred + "'",
             "UPDATE mix SET kld = zeroblob(8)",
             "UPDATE mix SET nll = x'" + infinite + infinite + "'",
             "UPDATE mix SET types = 'no sign of equality'",
             "UPDATE mix SET top1_agree = x'" + hundred + hundred + "'",
         }) {
        fs::remove(path_);
        {
            auto journal = Journal::open(path_, identity_);
            journal.record(sample(0));
            journal.record(mix);
        }
        EXPECT_NO_THROW(read());
        execute(path_, sql);
        EXPECT_THAT(message_of(read), AllOf(HasSubstr(path_.string()), HasSubstr("is not what was written"))) << sql;
        execute(path_, "PRAGMA user_version = 1");  // by somebody whose digests are right, or who has none
        EXPECT_THAT(message_of(read), AllOf(HasSubstr(path_.string()), HasSubstr("damaged"))) << sql;
    }
}

TEST_F(JournalTest, refuses_a_row_that_became_another_one) {
    const auto read = [&] { Journal::open_existing(path_).get_artifact("a"); };
    for (const std::string& sql : std::vector<std::string>{
             "UPDATE identity SET value = '511' WHERE field = 'ctx'",
             "UPDATE measurement SET kld = x'000000000000f03f' || substr(kld, 9)",
             "UPDATE measurement SET tensor = 'blk.1.ffn_down.weight'",
             "UPDATE measurement SET wall_s = 1e9",
             "UPDATE measurement SET digest = NULL",
             "UPDATE meta SET value = 'sometimes'",
             "UPDATE meta SET key = 'whem'",
             "UPDATE unusable SET reason = 'no reason'",
             "UPDATE mix SET kind = 'trial'",
             "UPDATE artifact SET bytes = 'x'",
             "DROP TABLE mix",
             "ALTER TABLE mix RENAME TO mux",
         }) {
        fs::remove(path_);
        {
            auto journal = Journal::open(path_, identity_);
            journal.record(sample(0));
            journal.record(sample_mix());
            journal.record({"t", "q4_K", Tier::fast, "a reason"});
            journal.put_meta("when", "always");
            journal.put_artifact("a", "bytes");
        }
        EXPECT_NO_THROW(read());
        execute(path_, sql);
        EXPECT_THAT(message_of(read), AllOf(HasSubstr(path_.string()), HasSubstr("damaged"))) << sql;
    }
}

TEST_F(JournalTest, one_from_before_rows_had_digests_is_read_and_gets_them_when_it_is_opened_for_writing) {
    {
        auto journal = Journal::open(path_, identity_);
        journal.record(sample(0));
        journal.put_artifact("a", "bytes");
    }
    std::string old = "PRAGMA user_version = 1;";
    for (const auto* table : {"identity", "measurement", "artifact", "meta", "mix", "unusable"})
        old += fmt::format("ALTER TABLE {} DROP COLUMN digest;", table);
    execute(path_, old);
    EXPECT_EQ(Journal::open_existing(path_).measurements(), std::vector{sample(0)});
    EXPECT_EQ(Journal::open_existing(path_).get_artifact("a"), "bytes");
    Journal::open(path_, identity_).record(sample(1));
    EXPECT_EQ(Journal::open_existing(path_).measurements(), (std::vector{sample(0), sample(1)}));
    execute(path_, "UPDATE artifact SET bytes = 'x'");
    EXPECT_THAT(message_of([&] { Journal::open_existing(path_).get_artifact("a"); }), HasSubstr("damaged"));
    EXPECT_EQ(integrity(path_), "ok");
}

TEST_F(JournalTest, runs_nothing_that_a_file_brings_along) {
    { Journal::open(path_, identity_).record(sample(0)); }
    execute(path_,
            "CREATE TRIGGER trap AFTER INSERT ON measurement BEGIN DELETE FROM identity; DELETE FROM measurement; END");
    {
        auto journal = Journal::open(path_, identity_);
        journal.record(sample(1));
        EXPECT_EQ(journal.measurements().size(), 2u);
    }
    EXPECT_EQ(Journal::open_existing(path_).identity(), identity_);
}

TEST_F(JournalTest, keeps_mixes_by_part_and_types) {
    const auto first = sample_mix();
    auto elsewhere = first, other = first;
    elsewhere.part = "test";
    other.types["c.weight"] = GGML_TYPE_Q6_K;
    {
        auto journal = Journal::open(path_, identity_);
        EXPECT_EQ(journal.find_mix("measured", first.types), std::nullopt);
        for (const auto& mix : {first, elsewhere, other}) journal.record(mix);
        auto again = first;
        again.kld = {0.5, 0.5};
        journal.record(again);
        journal.record(first);
    }
    const auto journal = Journal::open_existing(path_);
    EXPECT_EQ(journal.find_mix("measured", first.types), first);
    EXPECT_EQ(journal.find_mix("test", first.types), elsewhere);
    EXPECT_EQ(journal.find_mix("selection", first.types), std::nullopt);
    EXPECT_EQ(journal.mixes("measured"), (std::vector{other, first}));
    EXPECT_THROW(Journal::open_existing(path_).record(first), Error);
}

TEST_F(JournalTest, one_from_before_mixes_were_kept_gets_their_table_when_it_is_opened_for_writing) {
    Journal::open(path_, identity_).record(sample(1));
    sqlite3* database = nullptr;
    ASSERT_EQ(sqlite3_open(path_.c_str(), &database), SQLITE_OK);
    ASSERT_EQ(sqlite3_exec(database, "DROP TABLE mix; PRAGMA user_version = 1", nullptr, nullptr, nullptr), SQLITE_OK);
    sqlite3_close(database);
    EXPECT_TRUE(Journal::open_existing(path_).mixes("measured").empty());
    Journal::open(path_, identity_).record(sample_mix());
    EXPECT_EQ(Journal::open_existing(path_).mixes("measured").size(), 1U);
    EXPECT_EQ(Journal::open_existing(path_).measurements().size(), 1U);
}

TEST_F(JournalTest, is_readable_in_a_folder_that_is_not_writable) {
    {
        auto journal = Journal::open(path_, identity_);
        journal.record(sample(1));
    }
    fs::permissions(folder_, fs::perms::owner_read | fs::perms::owner_exec);
    const WithoutRoot ordinary(folder_);
    EXPECT_EQ(Journal::open_existing(path_).measurements().size(), 1u);
}

TEST_F(JournalTest, a_killed_writer_loses_nothing_it_reported) {
    int reported = 0;
    for (int round = 0; round < 8; ++round) {
        int ends[2];
        ASSERT_EQ(::pipe(ends), 0);
        const pid_t child = ::fork();
        ASSERT_GE(child, 0);
        if (child == 0) {
            // Records for ever, and reports each row once record() is back.
            try {
                auto journal = Journal::open(path_, identity_);
                for (int number = reported;; ++number) {
                    journal.record(sample(number));
                    if (::write(ends[1], &number, sizeof number) != sizeof number) break;
                }
            } catch (...) {
            }
            ::_exit(1);
        }
        ::close(ends[1]);
        const int goal = reported + 5 + 15 * round;
        int number = -1;
        while (number < goal && ::read(ends[0], &number, sizeof number) == sizeof number) reported = number + 1;
        ::kill(child, SIGKILL);
        while (::read(ends[0], &number, sizeof number) == sizeof number) reported = number + 1;
        ::close(ends[0]);
        int status = 0;
        ::waitpid(child, &status, 0);
        ASSERT_TRUE(WIFSIGNALED(status));

        {
            const auto reader = Journal::open_existing(path_);
            for (int i = 0; i < reported; ++i) ASSERT_TRUE(reader.has(sample(i).tensor, "q4_K", Tier::full)) << i;
        }
        const auto journal = Journal::open(path_, identity_);
        const auto rows = journal.measurements();
        // One more may have been recorded without being reported.
        ASSERT_GE(rows.size(), static_cast<std::size_t>(reported));
        ASSERT_LE(rows.size(), static_cast<std::size_t>(reported) + 1);
        for (const Measurement& row : rows) ASSERT_EQ(row, sample(static_cast<int>(row.counts[2]) - 1));
        ASSERT_EQ(integrity(path_), "ok");
    }
    EXPECT_GT(reported, 400);
}

TEST_F(JournalTest, unusable_figures_are_kept_with_their_reason_and_leave_their_pair_out) {
    const UnusableFigure fast = {sample(0).tensor, "q4_K", Tier::fast, "is not a finite number"};
    const UnusableFigure other = {"another.weight", "iq3_s", Tier::full, "its weights overflow"};
    {
        auto journal = Journal::open(path_, identity_);
        journal.record(sample(0));
        journal.record(sample(1));
        EXPECT_FALSE(journal.find_unusable(fast.tensor, fast.type));
        journal.record(fast);
        journal.record(other);
    }
    const auto journal = Journal::open_existing(path_);
    EXPECT_EQ(journal.unusable(), (std::vector{other, fast}));
    EXPECT_EQ(journal.find_unusable(fast.tensor, fast.type), fast);
    EXPECT_FALSE(journal.find_unusable(fast.tensor, "q8_0"));
    EXPECT_EQ(journal.measurements(), std::vector{sample(1)});
}

TEST_F(JournalTest, what_is_no_number_is_not_stored_and_where_it_was_is_missing) {
    auto bad = sample(1);
    bad.kld[1] = std::numeric_limits<double>::quiet_NaN();
    {
        auto journal = Journal::open(path_, identity_);
        journal.record(sample(0));
        journal.record(sample(1));
        EXPECT_THROW(journal.record(bad), Error);
    }
    // As an early version stored it.
    sqlite3* database = nullptr;
    ASSERT_EQ(sqlite3_open(path_.c_str(), &database), SQLITE_OK);
    const auto sql = "UPDATE measurement SET kld = x'" + std::string(sample(1).kld.size() * 16 - 16, '0') +
                     "000000000000f87f' WHERE tensor = '" + sample(1).tensor + "'";
    EXPECT_EQ(sqlite3_exec(database, sql.c_str(), nullptr, nullptr, nullptr), SQLITE_OK);
    EXPECT_EQ(sqlite3_changes(database), 1);
    sqlite3_close(database);
    execute(path_, "PRAGMA user_version = 1");
    const auto journal = Journal::open(path_, identity_);
    EXPECT_EQ(journal.measurements(), std::vector{sample(0)});
    EXPECT_FALSE(journal.find(sample(1).tensor, sample(1).type, sample(1).tier));
    ASSERT_EQ(journal.not_numbers().size(), 1U);
    EXPECT_EQ(journal.not_numbers().front().tensor, sample(1).tensor);
}

}  // namespace
}  // namespace cerebellum
