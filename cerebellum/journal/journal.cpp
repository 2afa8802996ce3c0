#include "cerebellum/journal/journal.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sqlite3.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cassert>
#include <cerrno>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <set>
#include <span>
#include <system_error>
#include <utility>

#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/hash.h"
#include "cerebellum/core/leftovers.h"
#include "cerebellum/core/lfs_pointer.h"
#include "cerebellum/core/quant_type.h"

namespace cerebellum {
namespace {

namespace fs = std::filesystem;

constexpr int application_id = 0x43424c4d;  // "CBLM": marks an SQLite file as a journal
constexpr int schema_version = 2;
constexpr int first_with_digests = 2;

constexpr const char* schema = R"sql(
CREATE TABLE identity (field TEXT PRIMARY KEY, value TEXT NOT NULL, digest TEXT) WITHOUT ROWID;
CREATE TABLE measurement (
    tensor TEXT NOT NULL, type TEXT NOT NULL, tier TEXT NOT NULL CHECK (tier IN ('fast', 'full')),
    counts BLOB NOT NULL, kld BLOB NOT NULL, delta_nll BLOB NOT NULL, top1_agree BLOB NOT NULL,
    local_energy BLOB NOT NULL, local_counts BLOB NOT NULL, wall_s REAL NOT NULL, digest TEXT,
    PRIMARY KEY (tensor, type, tier));
CREATE TABLE artifact (name TEXT PRIMARY KEY, bytes BLOB NOT NULL, digest TEXT);
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL, digest TEXT) WITHOUT ROWID;
)sql";

/// Came later than the others: journals without it get it when they are opened for writing. Programs that do not know
/// it are not disturbed by it.
constexpr const char* mix_schema = R"sql(
CREATE TABLE IF NOT EXISTS mix (
    id INTEGER PRIMARY KEY, part TEXT NOT NULL, types TEXT NOT NULL, kind TEXT NOT NULL,
    counts BLOB NOT NULL, kld BLOB NOT NULL, nll BLOB NOT NULL, reference_nll BLOB NOT NULL, top1_agree BLOB NOT NULL,
    wall_s REAL NOT NULL, digest TEXT, UNIQUE (part, types));
)sql";
/// Likewise.
constexpr const char* unusable_schema = R"sql(
CREATE TABLE IF NOT EXISTS unusable (
    tensor TEXT NOT NULL, type TEXT NOT NULL, tier TEXT NOT NULL CHECK (tier IN ('fast', 'full')),
    reason TEXT NOT NULL, digest TEXT, PRIMARY KEY (tensor, type, tier)) WITHOUT ROWID;
)sql";
constexpr std::string_view measurement_columns =
    "tensor, type, tier, counts, kld, delta_nll, top1_agree, local_energy, local_counts, wall_s";
constexpr std::string_view mix_columns = "part, types, kind, counts, kld, nll, reference_nll, top1_agree, wall_s";
constexpr std::string_view unusable_columns = "tensor, type, tier, reason";

/// Every row holds a digest of its table's name and its columns: SQLite notices a page that is no page any more, but
/// not a figure that has become another one on the way.
struct Table {
    std::string_view name, columns;
    int n_columns;
};
constexpr Table identity_table{"identity", "field, value", 2};
constexpr Table measurement_table{"measurement", measurement_columns, 10};
constexpr Table artifact_table{"artifact", "name, bytes", 2};
constexpr Table meta_table{"meta", "key, value", 2};
constexpr Table mix_table{"mix", mix_columns, 9};
constexpr Table unusable_table{"unusable", unusable_columns, 4};
constexpr Table all_tables[] = {identity_table, measurement_table, artifact_table,
                                meta_table,     mix_table,         unusable_table};

std::string row_digest_of(const Table& table) {
    return fmt::format("row_digest('{}', {})", table.name, table.columns);
}

/// Parameters are the columns in their order.
std::string insertion_into(const Table& table) {
    std::string parameters;
    for (int i = 1; i <= table.n_columns; ++i) parameters += fmt::format("?{}, ", i);
    return fmt::format("INSERT OR REPLACE INTO {} ({}, digest) VALUES ({}row_digest('{}', {}))", table.name,
                       table.columns, parameters, table.name, parameters.substr(0, parameters.size() - 2));
}

struct CloseDatabase {
    void operator()(sqlite3* database) const { sqlite3_close_v2(database); }
};
struct FinalizeStatement {
    void operator()(sqlite3_stmt* statement) const { sqlite3_finalize(statement); }
};
using Database = std::unique_ptr<sqlite3, CloseDatabase>;
using Statement = std::unique_ptr<sqlite3_stmt, FinalizeStatement>;

/// An SQLite failure as a person's problem.
[[noreturn]] void fail(const fs::path& path, int code, std::string_view detail) {
    std::string advice;
    switch (code & 0xff) {
        case SQLITE_NOTADB:
            advice = "it is not a Cerebellum journal; pass another --journal or remove it";
            break;
        case SQLITE_CORRUPT:
            advice = "the file is damaged; restore a copy, or remove it to measure again";
            break;
        case SQLITE_FULL:
            advice = "no space is left; free some and run again, what was recorded is kept";
            break;
        case SQLITE_BUSY:
        case SQLITE_LOCKED:
            advice = "another program holds it locked; close that one first";
            break;
        case SQLITE_READONLY:
        case SQLITE_PERM:
        case SQLITE_CANTOPEN:
            advice =
                "check that the file and its folder exist and are readable and writable, or pass another --journal";
            break;
        case SQLITE_TOOBIG:
            advice = "one entry may take 1 GB at most";
            break;
        default:
            advice = "check the disk and the file, or pass another --journal";
            break;
    }
    throw Error(fmt::format("journal {}: {} ({})", path.string(), advice, detail));
}

/// One use of a prepared statement; resets it in the end, so that no read transaction stays open.
class Query {
  public:
    Query(const fs::path& path, sqlite3* database, sqlite3_stmt* statement)
        : path_(path), database_(database), statement_(statement) {}
    ~Query() {
        sqlite3_reset(statement_);
        sqlite3_clear_bindings(statement_);
    }
    Query(const Query&) = delete;
    Query& operator=(const Query&) = delete;

    Query& text(std::string_view value) {
        return check(sqlite3_bind_text64(statement_, ++bound_, value.data() ? value.data() : "", value.size(),
                                         SQLITE_TRANSIENT, SQLITE_UTF8));
    }
    /// The bytes must outlive the query.
    Query& blob(std::string_view value) {
        return check(
            sqlite3_bind_blob64(statement_, ++bound_, value.data() ? value.data() : "", value.size(), SQLITE_STATIC));
    }
    Query& real(double value) { return check(sqlite3_bind_double(statement_, ++bound_, value)); }

    /// True where there is a (further) row.
    bool step() {
        const int code = sqlite3_step(statement_);
        if (code == SQLITE_ROW) return true;
        if (code == SQLITE_DONE) return false;
        fail(path_, code, sqlite3_errmsg(database_));
    }
    std::string bytes(int column) const {
        const void* data = sqlite3_column_blob(statement_, column);
        const auto size = static_cast<std::size_t>(sqlite3_column_bytes(statement_, column));
        return data ? std::string(static_cast<const char*>(data), size) : std::string();
    }
    int integer(int column) const { return sqlite3_column_int(statement_, column); }
    double number(int column) const { return sqlite3_column_double(statement_, column); }

  private:
    Query& check(int code) {
        if (code != SQLITE_OK) fail(path_, code, sqlite3_errstr(code));
        return *this;
    }

    const fs::path& path_;
    sqlite3* database_;
    sqlite3_stmt* statement_;
    int bound_ = 0;
};

/// Little-endian IEEE doubles, whatever machine this is.
std::string to_blob(std::span<const double> values) {
    std::string bytes;
    bytes.reserve(values.size() * 8);
    for (const double value : values) {
        const auto bits = std::bit_cast<std::uint64_t>(value);
        for (int i = 0; i < 8; ++i) bytes.push_back(static_cast<char>((bits >> (8 * i)) & 0xff));
    }
    return bytes;
}

/// SQL: row_digest(table, column, ...), half of a SHA-256 in hexadecimal digits. A number may be stored as an integer.
void row_digest(sqlite3_context* context, int n, sqlite3_value** values) {
    try {
        Sha256 hash;
        for (sqlite3_value* value : std::span(values, static_cast<std::size_t>(n))) {
            const int type = sqlite3_value_type(value);
            if (type == SQLITE_INTEGER || type == SQLITE_FLOAT) {
                const double number = sqlite3_value_double(value);
                hash.update("number " + to_blob({&number, 1}));
                continue;
            }
            const void* bytes = sqlite3_value_blob(value);
            const auto size = static_cast<std::size_t>(sqlite3_value_bytes(value));
            hash.update(fmt::format("bytes {} ", size));
            if (size > 0) hash.update(std::string_view(static_cast<const char*>(bytes), size));
        }
        const auto digest = hash.finish();
        sqlite3_result_text(context, digest.data(), static_cast<int>(digest.size() / 2), SQLITE_TRANSIENT);
    } catch (const std::exception& problem) {
        sqlite3_result_error(context, problem.what(), -1);
    }
}

std::vector<double> from_blob(const fs::path& path, const std::string& bytes) {
    if (bytes.size() % 8 != 0) fail(path, SQLITE_CORRUPT, "a measurement has a broken list of numbers");
    std::vector<double> values(bytes.size() / 8);
    for (std::size_t i = 0; i < values.size(); ++i) {
        std::uint64_t bits = 0;
        for (std::size_t b = 8; b-- > 0;) bits = bits << 8 | static_cast<unsigned char>(bytes[8 * i + b]);
        values[i] = std::bit_cast<double>(bits);
    }
    return values;
}

Tier read_tier(const fs::path& path, const std::string& name) {
    if (name != tier_name(Tier::fast) && name != tier_name(Tier::full))
        fail(path, SQLITE_CORRUPT, "a measurement is of an unknown tier");
    return name == tier_name(Tier::fast) ? Tier::fast : Tier::full;
}

/// A journal may come from anywhere, and code that reads these lists goes by the number of the counts. Figures that are
/// no numbers are another matter: see is_finite().
void check_sums(const fs::path& path, const std::vector<double>& counts,
                std::initializer_list<const std::vector<double>*> sums, bool may_be_empty) {
    constexpr double most = 1e9;  // positions in a window
    if (!std::ranges::all_of(counts, [](double count) { return count >= 0.0 && count <= most; }))
        fail(path, SQLITE_CORRUPT, "a measurement has windows of an impossible number of positions");
    for (const auto* list : sums)
        if (list->size() != counts.size() && !(may_be_empty && list->empty()))
            fail(path, SQLITE_CORRUPT, "a measurement has lists of different lengths");
}

/// How many positions agree, of those that there are. Sums of floats may be a little off.
void check_shares(const fs::path& path, const std::vector<double>& counts, const std::vector<double>& agree) {
    constexpr double slack = 1e-6;
    for (std::size_t w = 0; w < agree.size(); ++w)
        if (agree[w] < -slack || agree[w] > counts[w] * (1.0 + slack))
            fail(path, SQLITE_CORRUPT, "a measurement has more positions that agree than it has positions");
}

Measurement read_measurement(const fs::path& path, const Query& row) {
    Measurement m;
    m.tensor = row.bytes(0);
    m.type = row.bytes(1);
    m.tier = read_tier(path, row.bytes(2));
    m.counts = from_blob(path, row.bytes(3));
    m.kld = from_blob(path, row.bytes(4));
    m.delta_nll = from_blob(path, row.bytes(5));
    m.top1_agree = from_blob(path, row.bytes(6));
    m.local_energy = from_blob(path, row.bytes(7));
    m.local_counts = from_blob(path, row.bytes(8));
    m.wall_s = row.number(9);
    check_sums(path, m.counts, {&m.kld, &m.delta_nll, &m.top1_agree}, true);
    check_sums(path, m.local_counts, {&m.local_energy}, true);
    check_shares(path, m.counts, m.top1_agree);
    if (!parse_encoding(m.type)) fail(path, SQLITE_CORRUPT, "a measurement is of an unknown type");
    return m;
}

UnusableFigure read_unusable(const fs::path& path, const Query& row) {
    return {row.bytes(0), row.bytes(1), read_tier(path, row.bytes(2)), row.bytes(3)};
}

/// One "name=type" per line, sorted by name.
std::string to_text(const TypeMap& types) {
    std::string text;
    for (const auto& [name, type] : types) text += fmt::format("{}={}\n", name, type_name(type));
    return text;
}

TypeMap types_from_text(const fs::path& path, const std::string& text) {
    TypeMap types;
    for (std::size_t begin = 0; begin < text.size();) {
        const auto end = std::min(text.find('\n', begin), text.size());
        const auto equals = text.rfind('=', end);
        const auto type =
            equals > begin && equals < end ? parse_encoding(text.substr(equals + 1, end - equals - 1)) : std::nullopt;
        if (!type) fail(path, SQLITE_CORRUPT, "a mix names an unknown type");
        types[text.substr(begin, equals - begin)] = *type;
        begin = end + 1;
    }
    return types;
}

MixMeasurement read_mix(const fs::path& path, const Query& row) {
    MixMeasurement m;
    m.part = row.bytes(0);
    m.types = types_from_text(path, row.bytes(1));
    m.kind = row.bytes(2);
    m.counts = from_blob(path, row.bytes(3));
    m.kld = from_blob(path, row.bytes(4));
    m.nll = from_blob(path, row.bytes(5));
    m.reference_nll = from_blob(path, row.bytes(6));
    m.top1_agree = from_blob(path, row.bytes(7));
    m.wall_s = row.number(8);
    check_sums(path, m.counts, {&m.kld, &m.nll, &m.reference_nll, &m.top1_agree}, false);
    check_shares(path, m.counts, m.top1_agree);
    for (const auto* sums : {&m.kld, &m.nll, &m.reference_nll, &m.top1_agree})
        if (!std::ranges::all_of(*sums, [](double sum) { return std::isfinite(sum); }))
            fail(path, SQLITE_CORRUPT, "a mix has figures that are no numbers");
    return m;
}

/// The right to write, as a lock on a file beside the journal. It is not a lock on the journal itself: readers may look
/// in while a sweep is running, and closing any other descriptor of a database drops the locks SQLite holds on it.
class WriterLock {
  public:
    explicit WriterLock(const fs::path& journal) : path_(journal) {
        path_ += ".lock";
        // Whoever lets go removes the file, so what was locked may no longer be what the name stands for: look again.
        while (true) {
            descriptor_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
            if (descriptor_ < 0)
                throw Error(
                    fmt::format("journal {}: cannot create {}: {}; choose another folder or mend its permissions",
                                journal.string(), path_.string(), std::strerror(errno)));
            if (::flock(descriptor_, LOCK_EX | LOCK_NB) != 0) {
                const int reason = errno;
                const std::string owner = read_owner();
                ::close(descriptor_);
                if (reason != EWOULDBLOCK)
                    throw Error(fmt::format("journal {}: cannot lock {}: {}; choose a folder on another file system",
                                            journal.string(), path_.string(), std::strerror(reason)));
                throw Error(fmt::format("journal {}: {} is writing to it; wait for it to end or pass another --journal",
                                        journal.string(), owner.empty() ? "another process" : "process " + owner));
            }
            struct stat mine {
            }, named{};
            if (::fstat(descriptor_, &mine) == 0 && ::stat(path_.c_str(), &named) == 0 && mine.st_ino == named.st_ino &&
                mine.st_dev == named.st_dev)
                break;
            ::close(descriptor_);
        }
        // Only a courtesy for the message above, so failing to write it is no failure.
        const std::string owner = fmt::format("{}\n", ::getpid());
        if (::ftruncate(descriptor_, 0) != 0 || ::pwrite(descriptor_, owner.data(), owner.size(), 0) < 0) errno = 0;
        remember_leftover(path_);
    }
    ~WriterLock() {
        forget_leftover(path_);
        ::unlink(path_.c_str());
        ::close(descriptor_);
    }
    WriterLock(const WriterLock&) = delete;
    WriterLock& operator=(const WriterLock&) = delete;

  private:
    std::string read_owner() const {
        char text[24];
        const auto size = ::pread(descriptor_, text, sizeof text, 0);
        std::string owner;
        for (long i = 0; i < size && text[i] >= '0' && text[i] <= '9'; ++i) owner.push_back(text[i]);
        return owner;
    }

    fs::path path_;
    int descriptor_ = -1;
};

}  // namespace

std::string_view tier_name(Tier tier) {
    return tier == Tier::fast ? "fast" : "full";
}

std::optional<IdentityDifference> difference(const JournalIdentity& first, const JournalIdentity& second) {
    const auto value = [](const JournalIdentity& of, const std::string& field) {
        const auto found = of.fields.find(field);
        return found == of.fields.end() ? std::string("nothing") : fmt::format("\"{}\"", found->second);
    };
    for (const auto* of : {&second, &first})
        for (const auto& [field, ignored] : of->fields)
            if (const auto a = value(first, field), b = value(second, field); a != b)
                return IdentityDifference{field, a, b};
    return std::nullopt;
}

bool is_finite(const Measurement& m) {
    for (const auto* figures : {&m.counts, &m.kld, &m.delta_nll, &m.top1_agree, &m.local_energy, &m.local_counts})
        if (!std::ranges::all_of(*figures, [](double figure) { return std::isfinite(figure); })) return false;
    return true;
}

void extend(Measurement& measurement, const Measurement& by) {
    assert(measurement.tensor == by.tensor && measurement.type == by.type && measurement.tier == by.tier);
    for (const auto sums : {&Measurement::counts, &Measurement::kld, &Measurement::delta_nll, &Measurement::top1_agree,
                            &Measurement::local_energy, &Measurement::local_counts})
        (measurement.*sums).insert((measurement.*sums).end(), (by.*sums).begin(), (by.*sums).end());
    measurement.wall_s += by.wall_s;
}

void extend(MixMeasurement& mix, const MixMeasurement& by) {
    assert(mix.types == by.types);
    for (const auto sums : {&MixMeasurement::counts, &MixMeasurement::kld, &MixMeasurement::nll,
                            &MixMeasurement::reference_nll, &MixMeasurement::top1_agree})
        (mix.*sums).insert((mix.*sums).end(), (by.*sums).begin(), (by.*sums).end());
    mix.wall_s += by.wall_s;
}

struct Journal::State {
    fs::path path;
    bool writable = false;
    int version = schema_version;
    JournalIdentity identity;
    std::function<void()> check;
    // Members go in reverse order: statements before their database, the lock last.
    std::unique_ptr<WriterLock> lock;
    Database database;
    Statement record, one, all, put_artifact, get_artifact, artifact_names, put_meta, get_meta, all_meta;
    // But for the first ones, empty in an old journal only read.
    Statement record_mix, find_mix, part_mixes, all_mixes;
    Statement record_unusable, find_unusable, all_unusable;

    Statement prepare(std::string_view sql) const {
        sqlite3_stmt* statement = nullptr;
        const int code = sqlite3_prepare_v3(database.get(), sql.data(), static_cast<int>(sql.size()),
                                            SQLITE_PREPARE_PERSISTENT, &statement, nullptr);
        if (code != SQLITE_OK) fail(path, code, sqlite3_errmsg(database.get()));
        return Statement(statement);
    }
    Query query(const Statement& statement) const { return {path, database.get(), statement.get()}; }
    void execute(const char* sql) const {
        const int code = sqlite3_exec(database.get(), sql, nullptr, nullptr, nullptr);
        if (code != SQLITE_OK) fail(path, code, sqlite3_errmsg(database.get()));
    }
    void execute(const std::string& sql) const { execute(sql.c_str()); }
    int integer(std::string_view sql) const {
        const Statement statement = prepare(sql);
        Query row = query(statement);
        return row.step() ? row.integer(0) : 0;
    }
    std::string text(std::string_view sql) const {
        const Statement statement = prepare(sql);
        Query row = query(statement);
        return row.step() ? row.bytes(0) : std::string();
    }
    std::optional<std::string> look_up(const Statement& statement, std::string_view key) const {
        Query row = query(statement);
        if (!row.text(key).step()) return std::nullopt;
        return row.bytes(0);
    }
    void expect_writable() const {
        if (!writable)
            throw Error(fmt::format(
                "journal {}: it was opened for reading only; open it for a measurement to write to it", path.string()));
    }

    void open_database(const std::string& name, int flags) {
        check_regular(path);
        check_no_lfs_pointer(path);
        sqlite3* handle = nullptr;
        const int code = sqlite3_open_v2(name.c_str(), &handle, flags | SQLITE_OPEN_NOMUTEX, nullptr);
        database.reset(handle);
        if (code != SQLITE_OK) fail(path, code, handle ? sqlite3_errmsg(handle) : "out of memory");
        sqlite3_extended_result_codes(handle, 1);
        // The file may come from anybody: what it brings of triggers, views and functions is not run.
        for (const auto& [option, value] :
             {std::pair{SQLITE_DBCONFIG_DEFENSIVE, 1}, std::pair{SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0},
              std::pair{SQLITE_DBCONFIG_ENABLE_TRIGGER, 0}, std::pair{SQLITE_DBCONFIG_ENABLE_VIEW, 0}})
            sqlite3_db_config(handle, option, value, nullptr);
        sqlite3_create_function_v2(handle, "row_digest", -1, SQLITE_UTF8 | SQLITE_DETERMINISTIC | SQLITE_DIRECTONLY,
                                   nullptr, row_digest, nullptr, nullptr, nullptr);
        // Readers and the writer meet only for moments (a checkpoint, the recovery after a crash).
        sqlite3_busy_timeout(handle, 5000);
    }

    /// False for a file that is still empty.
    bool is_journal() {
        const int id = integer("PRAGMA application_id");
        if (id == 0 && integer("SELECT count(*) FROM sqlite_master") == 0) return false;
        if (id != application_id) fail(path, SQLITE_NOTADB, "an SQLite database of another program");
        version = integer("PRAGMA user_version");
        if (version > schema_version)
            throw Error(
                fmt::format("journal {}: it has format {}, this Cerebellum knows {}; update Cerebellum or pass another "
                            "--journal",
                            path.string(), version, schema_version));
        return true;
    }

    void create(const JournalIdentity& wanted) {
        // One transaction: a journal exists with its identity or not at all.
        execute("BEGIN IMMEDIATE");
        execute(schema);
        execute(fmt::format("PRAGMA application_id = {}; PRAGMA user_version = {}", application_id, schema_version));
        version = schema_version;
        execute(mix_schema);
        execute(unusable_schema);
        const Statement insert = prepare(insertion_into(identity_table));
        for (const auto& [field, value] : wanted.fields) query(insert).text(field).text(value).step();
        execute("COMMIT");
    }

    bool has_table(std::string_view name) const {
        return integer(fmt::format("SELECT count(*) FROM sqlite_master WHERE name = '{}'", name)) > 0;
    }

    /// One from before rows had digests gets them, and the tables that came later.
    void add_digests() {
        if (version >= first_with_digests) return;
        execute("BEGIN IMMEDIATE");
        execute(mix_schema);
        execute(unusable_schema);
        for (const auto& table : all_tables) {
            if (integer(
                    fmt::format("SELECT count(*) FROM pragma_table_info('{}') WHERE name = 'digest'", table.name)) == 0)
                execute(fmt::format("ALTER TABLE {} ADD COLUMN digest TEXT", table.name));
            execute(fmt::format("UPDATE {} SET digest = {}", table.name, row_digest_of(table)));
        }
        execute(fmt::format("PRAGMA user_version = {}", schema_version));
        execute("COMMIT");
        version = schema_version;
    }

    /// Whether what is there is what was written. Artifacts may be large: each is looked at when it is asked for, here
    /// only whether the index has the names that the table has.
    void check_rows() const {
        if (version < first_with_digests) {
            if (const std::string verdict = text("PRAGMA quick_check('measurement')"); verdict != "ok")
                fail(path, SQLITE_CORRUPT, verdict);
            return;
        }
        for (const auto& table : all_tables) {
            if (!has_table(table.name)) fail(path, SQLITE_CORRUPT, fmt::format("it has no table {}", table.name));
            if (table.name == artifact_table.name) continue;
            if (const auto verdict = text(fmt::format("PRAGMA integrity_check('{}')", table.name)); verdict != "ok")
                fail(path, SQLITE_CORRUPT, verdict);
            if (integer(fmt::format("SELECT count(*) FROM {} NOT INDEXED WHERE digest IS NOT {}", table.name,
                                    row_digest_of(table))) > 0)
                fail(path, SQLITE_CORRUPT, fmt::format("a row of {} is not what was written", table.name));
        }
        constexpr auto lost =
            "SELECT count(*) + ((SELECT count(*) FROM artifact) <> (SELECT count(*) FROM artifact NOT INDEXED)) FROM "
            "artifact AS a NOT INDEXED WHERE NOT EXISTS "
            "(SELECT 1 FROM artifact AS b INDEXED BY sqlite_autoindex_artifact_1 WHERE b.name = a.name AND b.rowid = "
            "a.rowid)";
        if (integer(lost) > 0) fail(path, SQLITE_CORRUPT, "an artifact has lost its name");
    }

    /// Checks what is there and prepares everything.
    void load() {
        check_rows();
        const Statement fields = prepare("SELECT field, value FROM identity");
        for (Query row = query(fields); row.step();) identity.fields.emplace(row.bytes(0), row.bytes(1));
        const auto columns = fmt::format("SELECT {} FROM measurement ", measurement_columns);
        one = prepare(columns + "WHERE tensor = ? AND type = ? AND tier = ?");
        all = prepare(columns + "ORDER BY tensor, type, tier");
        get_artifact =
            prepare(fmt::format("SELECT bytes, {} FROM artifact WHERE name = ?",
                                version < first_with_digests ? "1" : "digest IS " + row_digest_of(artifact_table)));
        artifact_names = prepare("SELECT name FROM artifact ORDER BY name");
        get_meta = prepare("SELECT value FROM meta WHERE key = ?");
        all_meta = prepare("SELECT key, value FROM meta");
        if (has_table("mix")) {
            find_mix = prepare(fmt::format("SELECT {} FROM mix WHERE part = ? AND types = ?", mix_columns));
            part_mixes = prepare(fmt::format("SELECT {} FROM mix WHERE part = ? ORDER BY id", mix_columns));
            all_mixes = prepare(fmt::format("SELECT {} FROM mix ORDER BY id", mix_columns));
        }
        if (has_table("unusable")) {
            const auto reasons = fmt::format("SELECT {} FROM unusable ", unusable_columns);
            find_unusable = prepare(reasons + "WHERE tensor = ? AND type = ? ORDER BY tier");
            all_unusable = prepare(reasons + "ORDER BY tensor, type, tier");
        }
        if (!writable) return;
        record_unusable = prepare(insertion_into(unusable_table));
        record_mix = prepare(insertion_into(mix_table));
        record = prepare(insertion_into(measurement_table));
        put_artifact = prepare(insertion_into(artifact_table));
        put_meta = prepare(insertion_into(meta_table));
    }

    void expect_identity(const JournalIdentity& wanted) const {
        if (const auto differs = difference(identity, wanted))
            throw Error(
                fmt::format("journal {}: it was measured with {} = {}, this run has {}; pass another --journal or "
                            "remove it to measure again",
                            path.string(), differs->field, differs->first, differs->second));
    }
};

Journal::Journal(std::unique_ptr<State> state) : state_(std::move(state)) {}
Journal::Journal(Journal&&) noexcept = default;
Journal& Journal::operator=(Journal&&) noexcept = default;
Journal::~Journal() = default;

Journal Journal::open(const fs::path& path, const JournalIdentity& identity) {
    auto state = std::make_unique<State>();
    state->path = path;
    state->writable = true;
    std::error_code code;
    if (fs::is_directory(path, code)) fail(path, SQLITE_CANTOPEN, "it is a directory");
    const fs::path folder = path.has_parent_path() ? path.parent_path() : fs::path(".");
    if (!fs::is_directory(folder, code))
        throw Error(fmt::format("journal {}: there is no folder {}; create it first", path.string(), folder.string()));
    state->lock = std::make_unique<WriterLock>(path);
    state->open_database(path.string(), SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE);
    const bool existed = state->is_journal();
    if (const std::string mode = state->text("PRAGMA journal_mode = WAL"); mode != "wal")
        throw Error(
            fmt::format("journal {}: its file system has no shared memory for a write-ahead log; choose a local folder",
                        path.string()));
    // NORMAL would survive a killed process too, but not a power cut.
    state->execute("PRAGMA synchronous = FULL");
    if (!existed) state->create(identity);
    state->add_digests();
    state->load();
    state->expect_identity(identity);
    return Journal(std::move(state));
}

Journal Journal::open_existing(const fs::path& path) {
    auto state = std::make_unique<State>();
    state->path = path;
    std::error_code code;
    if (!fs::exists(path, code))
        throw Error(fmt::format("journal {}: there is no such file; measure first, or pass the right --journal",
                                path.string()));
    if (fs::is_directory(path, code)) fail(path, SQLITE_CANTOPEN, "it is a directory");
    const fs::path folder = path.has_parent_path() ? path.parent_path() : fs::path(".");
    // Where we may write, the connection may too, though no statement of ours does: whoever leaves last then folds the
    // log into the file and removes it, which a read-only connection could not.
    const bool tidy = ::access(path.c_str(), W_OK) == 0 && ::access(folder.c_str(), W_OK) == 0;
    try {
        state->open_database(path.string(), tidy ? SQLITE_OPEN_READWRITE : SQLITE_OPEN_READONLY);
        state->execute("PRAGMA query_only = ON");
        if (!state->is_journal()) fail(path, SQLITE_NOTADB, "an empty file");
    } catch (const Error&) {
        // A write-ahead log wants files beside it. Where the folder is not ours to write and nobody is writing, the
        // file is complete as it is and can be read as such.
        fs::path log = path;
        log += "-wal";
        if (tidy || fs::exists(log, code)) throw;
        std::string uri = "file:";
        for (const char c : fs::absolute(path).string())
            uri += c == '%' || c == '?' || c == '#' ? fmt::format("%{:02x}", static_cast<int>(c)) : std::string(1, c);
        state->open_database(uri + "?immutable=1", SQLITE_OPEN_READONLY | SQLITE_OPEN_URI);
        if (!state->is_journal()) fail(path, SQLITE_NOTADB, "an empty file");
    }
    state->load();
    return Journal(std::move(state));
}

const fs::path& Journal::path() const {
    return state_->path;
}
const JournalIdentity& Journal::identity() const {
    return state_->identity;
}

void Journal::check_before_recording(std::function<void()> check) {
    state_->check = std::move(check);
}

void Journal::record(const Measurement& m) {
    state_->expect_writable();
    if (state_->check) state_->check();
    for ([[maybe_unused]] const auto* sums : {&m.kld, &m.delta_nll, &m.top1_agree})
        assert(sums->empty() || sums->size() == m.counts.size());
    assert(m.local_energy.empty() || m.local_energy.size() == m.local_counts.size());
    if (!is_finite(m))
        throw Error(fmt::format("the damage of {} as {} is not a finite number on this text", m.tensor, m.type));
    const std::string blobs[] = {to_blob(m.counts),     to_blob(m.kld),          to_blob(m.delta_nll),
                                 to_blob(m.top1_agree), to_blob(m.local_energy), to_blob(m.local_counts)};
    Query query = state_->query(state_->record);
    query.text(m.tensor).text(m.type).text(tier_name(m.tier));
    for (const std::string& blob : blobs) query.blob(blob);
    query.real(m.wall_s).step();
}

std::optional<Measurement> Journal::find(std::string_view tensor, std::string_view type, Tier tier) const {
    Query row = state_->query(state_->one);
    if (!row.text(tensor).text(type).text(tier_name(tier)).step()) return std::nullopt;
    auto found = read_measurement(state_->path, row);
    return is_finite(found) ? std::optional(std::move(found)) : std::nullopt;
}

std::vector<Measurement> Journal::measurements() const {
    std::set<std::pair<std::string, std::string>> left_out;
    for (const auto& figure : unusable()) left_out.emplace(figure.tensor, figure.type);
    std::vector<Measurement> all;
    for (Query row = state_->query(state_->all); row.step();) {
        auto found = read_measurement(state_->path, row);
        if (is_finite(found) && !left_out.contains({found.tensor, found.type})) all.push_back(std::move(found));
    }
    return all;
}

void Journal::record(const UnusableFigure& figure) {
    state_->expect_writable();
    if (state_->check) state_->check();
    state_->query(state_->record_unusable)
        .text(figure.tensor)
        .text(figure.type)
        .text(tier_name(figure.tier))
        .text(figure.reason)
        .step();
}

std::optional<UnusableFigure> Journal::find_unusable(std::string_view tensor, std::string_view type) const {
    if (!state_->find_unusable) return std::nullopt;
    Query row = state_->query(state_->find_unusable);
    if (!row.text(tensor).text(type).step()) return std::nullopt;
    return read_unusable(state_->path, row);
}

std::vector<UnusableFigure> Journal::unusable() const {
    std::vector<UnusableFigure> all;
    if (!state_->all_unusable) return all;
    for (Query row = state_->query(state_->all_unusable); row.step();) all.push_back(read_unusable(state_->path, row));
    return all;
}

std::vector<UnusableFigure> Journal::not_numbers() const {
    std::vector<UnusableFigure> all;
    for (Query row = state_->query(state_->all); row.step();)
        if (const auto found = read_measurement(state_->path, row);
            !is_finite(found) && !find_unusable(found.tensor, found.type))
            all.push_back({found.tensor, found.type, found.tier, "it is no number"});
    return all;
}

void Journal::in_one_step(const std::function<void()>& writes) {
    state_->expect_writable();
    state_->execute("BEGIN IMMEDIATE");
    try {
        writes();
        state_->execute("COMMIT");
    } catch (...) {
        // A full disk may have rolled back by itself already; either way nothing of it stays.
        if (sqlite3_get_autocommit(state_->database.get()) == 0)
            sqlite3_exec(state_->database.get(), "ROLLBACK", nullptr, nullptr, nullptr);
        throw;
    }
}

void Journal::record(const MixMeasurement& m) {
    state_->expect_writable();
    if (state_->check) state_->check();
    for ([[maybe_unused]] const auto* sums : {&m.kld, &m.nll, &m.reference_nll, &m.top1_agree})
        assert(sums->size() == m.counts.size());
    const std::string blobs[] = {to_blob(m.counts), to_blob(m.kld), to_blob(m.nll), to_blob(m.reference_nll),
                                 to_blob(m.top1_agree)};
    if (!std::ranges::all_of(m.kld, [](double kld) { return std::isfinite(kld); }))
        throw Error("the damage of a whole mix is not a finite number on this text");
    const std::string types = to_text(m.types);
    Query query = state_->query(state_->record_mix);
    query.text(m.part).text(types).text(m.kind);
    for (const std::string& blob : blobs) query.blob(blob);
    query.real(m.wall_s).step();
}

std::optional<MixMeasurement> Journal::find_mix(std::string_view part, const TypeMap& types) const {
    if (!state_->find_mix) return std::nullopt;
    Query row = state_->query(state_->find_mix);
    if (!row.text(part).text(to_text(types)).step()) return std::nullopt;
    return read_mix(state_->path, row);
}

std::vector<MixMeasurement> Journal::mixes(std::string_view part) const {
    std::vector<MixMeasurement> all;
    if (!state_->part_mixes) return all;
    Query row = state_->query(state_->part_mixes);
    for (row.text(part); row.step();) all.push_back(read_mix(state_->path, row));
    return all;
}

std::vector<MixMeasurement> Journal::mixes() const {
    std::vector<MixMeasurement> all;
    if (!state_->all_mixes) return all;
    for (Query row = state_->query(state_->all_mixes); row.step();) all.push_back(read_mix(state_->path, row));
    return all;
}

void Journal::put_artifact(std::string_view name, std::string_view bytes) {
    state_->expect_writable();
    state_->query(state_->put_artifact).text(name).blob(bytes).step();
}

std::optional<std::string> Journal::get_artifact(std::string_view name) const {
    Query row = state_->query(state_->get_artifact);
    if (!row.text(name).step()) return std::nullopt;
    if (row.integer(1) != 1) fail(state_->path, SQLITE_CORRUPT, "an artifact is not what was written");
    return row.bytes(0);
}

std::vector<std::string> Journal::artifact_names() const {
    std::vector<std::string> names;
    for (Query row = state_->query(state_->artifact_names); row.step();) names.push_back(row.bytes(0));
    return names;
}

void Journal::put_meta(std::string_view key, std::string_view value) {
    state_->expect_writable();
    state_->query(state_->put_meta).text(key).text(value).step();
}

std::optional<std::string> Journal::get_meta(std::string_view key) const {
    return state_->look_up(state_->get_meta, key);
}

std::map<std::string, std::string> Journal::meta() const {
    std::map<std::string, std::string> all;
    for (Query row = state_->query(state_->all_meta); row.step();) all.emplace(row.bytes(0), row.bytes(1));
    return all;
}

}  // namespace cerebellum
