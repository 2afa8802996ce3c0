#pragma once

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace cerebellum {

/// What one file answered to one benchmark, as a file of JSON lines: the first says what is being done (the header),
/// each further one is about a question (a record, with its "id"). Appended to as answers come in, so that a run that
/// was killed goes on where it stopped. One writer at a time. Not thread-safe.
class AuditLog {
  public:
    /// Opens or begins the log. A last line that was cut off by a kill is dropped. Throws Error where the file is no
    /// such log, or one with another header, naming the first field that differs.
    AuditLog(std::filesystem::path path, const nlohmann::json& header);
    ~AuditLog();
    AuditLog(const AuditLog&) = delete;
    AuditLog& operator=(const AuditLog&) = delete;

    const std::filesystem::path& path() const { return path_; }
    bool has(const std::string& id) const { return records_.contains(id); }
    const std::map<std::string, nlohmann::json>& records() const { return records_; }
    /// Throws Error where it cannot be written.
    void append(const nlohmann::json& record);

  private:
    std::filesystem::path path_;
    int descriptor_ = -1;
    std::map<std::string, nlohmann::json> records_;
};

/// A log read back.
struct AuditFile {
    nlohmann::json header;
    std::vector<nlohmann::json> records;  // in the order of the file, one an id
};

/// Throws Error naming the file and line where it is no log.
AuditFile read_audit_log(const std::filesystem::path& path);
/// Replaces the log at once.
void write_audit_log(const std::filesystem::path& path, const AuditFile& log);

}  // namespace cerebellum
