#include "cerebellum/quantize/quantized_cache.h"

#include <fmt/format.h>

#include <exception>
#include <utility>

#include "cerebellum/core/error.h"

namespace cerebellum {

QuantizedCache::QuantizedCache(Limits limits, std::function<void(std::string_view)> warn)
    : limits_(std::move(limits)), warn_(std::move(warn)) {}

SharedBytes QuantizedCache::find(const std::string& key) {
    const std::lock_guard lock(mutex_);
    const auto known = entries_.find(key);
    if (known == entries_.end()) {
        ++usage_.missed;
        return nullptr;
    }
    auto& entry = known->second;
    if (entry.bytes) {
        used_.splice(used_.begin(), used_, entry.used);
        ++usage_.found;
        return entry.bytes;
    }
    std::vector<std::byte> bytes(entry.size);
    try {
        disk_->read(bytes, entry.offset);
    } catch (const Error& error) {
        warn_(fmt::format("{}; what was there is quantized again", error.what()));
        entries_.erase(known);
        ++usage_.missed;
        return nullptr;
    }
    ++usage_.found;
    hold(key, entry, std::make_shared<const std::vector<std::byte>>(std::move(bytes)));
    auto result = entry.bytes;
    make_room();
    return result;
}

SharedBytes QuantizedCache::put(const std::string& key, std::vector<std::byte> bytes) {
    auto shared = std::make_shared<const std::vector<std::byte>>(std::move(bytes));
    const std::lock_guard lock(mutex_);
    auto& entry = entries_[key];
    if (!entry.bytes) hold(key, entry, shared);
    make_room();
    return shared;
}

QuantizedCache::Usage QuantizedCache::usage() const {
    const std::lock_guard lock(mutex_);
    return usage_;
}

void QuantizedCache::hold(const std::string& key, Entry& entry, SharedBytes bytes) {
    entry.bytes = std::move(bytes);
    entry.size = entry.bytes->size();
    used_.push_front(key);
    entry.used = used_.begin();
    usage_.memory_bytes += entry.size;
}

/// What is on disk already is not written again.
bool QuantizedCache::spill(Entry& entry) {
    if (entry.on_disk) return true;
    if (disk_failed_ || usage_.disk_bytes + entry.size > limits_.disk_bytes) return false;
    try {
        if (!disk_) disk_ = std::make_unique<SpillFile>(limits_.scratch_folder);
        disk_->write(*entry.bytes, usage_.disk_bytes);
    } catch (const std::exception& error) {
        disk_failed_ = true;
        warn_(fmt::format("quantized tensors are kept in memory only, and made again where that does not suffice: {}",
                          error.what()));
        return false;
    }
    entry.on_disk = true;
    entry.offset = usage_.disk_bytes;
    usage_.disk_bytes += entry.size;
    return true;
}

void QuantizedCache::make_room() {
    while (usage_.memory_bytes > limits_.memory_bytes && !used_.empty()) {
        const auto key = used_.back();
        auto& entry = entries_.at(key);
        used_.pop_back();
        usage_.memory_bytes -= entry.size;
        if (spill(entry))
            entry.bytes.reset();
        else
            entries_.erase(key);
    }
}

}  // namespace cerebellum
