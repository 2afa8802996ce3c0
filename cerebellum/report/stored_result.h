#pragma once

#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace cerebellum {

/// A value of a stored result, and where it stands. Only StoredResult makes one, so that what is printed of it can be
/// looked up. Keeps the result alive.
class Stored {
  public:
    /// "model.results.json#/files/3/kld/mean"
    std::string link() const { return *link_ + "#" + pointer_; }
    /// The same as a link that a browser follows.
    std::string url() const;
    const std::string& pointer() const { return pointer_; }
    /// Throws Error where it is no number.
    double number() const;
    /// Throws Error where it is no string.
    std::string text() const;

  private:
    friend class StoredResult;
    Stored(std::shared_ptr<const nlohmann::json> whole, std::shared_ptr<const std::string> link, std::string pointer);

    std::shared_ptr<const nlohmann::json> whole_;
    std::shared_ptr<const std::string> link_;
    std::string pointer_;
    const nlohmann::json* value_;
};

/// A JSON file of results. Pointers are those of RFC 6901.
class StoredResult {
  public:
    /// `link`: how a text beside the file refers to it. Throws Error where there is no JSON object.
    static StoredResult read(const std::filesystem::path& path, std::string link);

    const std::string& link() const { return *link_; }
    std::string url() const;
    /// Throws Error naming file and pointer where there is no such value.
    Stored at(const std::string& pointer) const;
    /// Empty where there is no such value, or null.
    std::optional<Stored> find(const std::string& pointer) const;
    bool has(const std::string& pointer) const { return find(pointer).has_value(); }
    /// Entries of an array; 0 where there is none.
    std::size_t size(const std::string& pointer) const;
    /// Keys of an object; none where there is none.
    std::vector<std::string> keys(const std::string& pointer) const;
    /// Whether a string stands there that is this one.
    bool is(const std::string& pointer, const std::string& text) const;

  private:
    std::shared_ptr<const nlohmann::json> whole_;
    std::shared_ptr<const std::string> link_;
};

/// A key as a part of a pointer: "/" and "~" escaped.
std::string pointer_part(const std::string& key);

}  // namespace cerebellum
