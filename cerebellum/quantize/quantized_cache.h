#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "cerebellum/core/spill_file.h"

namespace cerebellum {

/// Bytes that are there for as long as somebody holds them.
using SharedBytes = std::shared_ptr<const std::vector<std::byte>>;

/// Tensors that have been quantized, so that none is quantized twice in a job. What is used again lies in memory up to
/// a limit, the ones longest unused go to a scratch file up to another, and beyond that are forgotten: then they are
/// made again. The key says all that the bytes depend on. Threads may share it.
///
/// A scratch file that cannot be written (a full disk) ends the use of the disk and nothing else; `warn` is told once.
class QuantizedCache {
  public:
    struct Limits {
        std::uint64_t memory_bytes = 0;
        std::uint64_t disk_bytes = 0;
        std::filesystem::path scratch_folder;
    };
    QuantizedCache(Limits limits, std::function<void(std::string_view)> warn);

    /// Null where it is not known.
    SharedBytes find(const std::string& key);
    SharedBytes put(const std::string& key, std::vector<std::byte> bytes);

    struct Usage {
        std::uint64_t found = 0, missed = 0;  // by find()
        std::uint64_t memory_bytes = 0, disk_bytes = 0;
    };
    Usage usage() const;

  private:
    struct Entry {
        SharedBytes bytes;                      // null: on disk
        std::list<std::string>::iterator used;  // where it stands in the order, if in memory
        bool on_disk = false;
        std::uint64_t offset = 0, size = 0;
    };
    void make_room();
    bool spill(Entry& entry);
    void hold(const std::string& key, Entry& entry, SharedBytes bytes);

    const Limits limits_;
    const std::function<void(std::string_view)> warn_;
    mutable std::mutex mutex_;  // of all that follows
    std::map<std::string, Entry> entries_;
    std::list<std::string> used_;  // of those in memory, the last used first
    std::unique_ptr<SpillFile> disk_;
    bool disk_failed_ = false;
    Usage usage_;
};

}  // namespace cerebellum
