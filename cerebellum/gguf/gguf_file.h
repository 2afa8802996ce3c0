#pragma once

#include <ggml.h>
#include <gguf.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cerebellum/core/progress.h"

namespace cerebellum {

/// One tensor as the file describes it. A tensor is n_rows() rows of row_length() weights; tensors of experts stack
/// shape[2] matrices of shape[1] rows each.
struct TensorInfo {
    std::string name;
    ggml_type type = GGML_TYPE_F32;
    std::array<std::int64_t, 4> shape = {1, 1, 1, 1};  ///< ggml's order: shape[0] runs fastest
    int n_dims = 1;                                    ///< as ggml counts: trailing dimensions of one are dropped
    std::uint64_t file_offset = 0;                     ///< of the first byte of data, from the beginning of its file
    std::uint64_t size_bytes = 0;                      ///< of the data, without padding
    std::uint32_t part = 0;                            ///< which file of a split model holds it, from 0

    std::int64_t row_length() const { return shape[0]; }
    std::int64_t n_rows() const { return shape[1] * shape[2] * shape[3]; }
    std::int64_t n_weights() const { return row_length() * n_rows(); }
};

/// Whether a file begins as all GGUF files do, as far as it goes: an empty one does, and one that cannot be opened, of
/// which GgufFile::open says what is wrong. Throws Error where it is no regular file.
bool has_gguf_magic(const std::filesystem::path& path);

/// A GGUF file, mapped read-only and checked: every tensor's data lies inside the file, sizes do not overflow.
/// A split model (NAME-00001-of-0000N.gguf) is opened by its first file and is one object; its metadata is the first
/// file's.
///
/// Move-only; const methods may be called from several threads. Spans and pointers live as long as the object (moving
/// keeps them valid). A file that somebody else shortens while it is mapped ends the program; see core/lost_pages.h for
/// how it says so.
class GgufFile {
  public:
    /// Throws Error, one line naming the path, where the file is missing, a directory or otherwise not a regular file,
    /// unreadable, empty, no GGUF, big-endian, of an unsupported version, cut short or damaged in its header, cut short
    /// in its data, without tensors, or part of a split model whose other files are missing or do not belong to it.
    static GgufFile open(const std::filesystem::path& path);
    /// The same for a file whose tensor data may be missing, wholly or in part, as when only the beginning of a large
    /// one was fetched. Without data, data() must not be called and fingerprint() covers the header alone.
    static GgufFile open_header(const std::filesystem::path& path);
    /// Whether the data of all tensors is there.
    bool has_data() const;

    GgufFile(GgufFile&&) noexcept;
    GgufFile& operator=(GgufFile&&) noexcept;
    ~GgufFile();

    /// Of a split model, the first file's.
    const std::filesystem::path& path() const;
    /// One path, or all of a split model's in order.
    std::vector<std::filesystem::path> paths() const;
    /// Bytes of all files together.
    std::uint64_t file_size() const;
    /// Bytes before the first tensor's data: header, metadata and tensor descriptions with their padding (of the first
    /// file).
    std::uint64_t data_offset() const;
    /// ggml's view of the metadata; owned by this object.
    const gguf_context* context() const&;
    const gguf_context* context() && = delete;  // it would dangle

    /// In the order of the file.
    const std::vector<TensorInfo>& tensors() const&;
    const std::vector<TensorInfo>& tensors() && = delete;
    /// nullptr where there is no such tensor.
    const TensorInfo* find(std::string_view name) const&;
    const TensorInfo* find(std::string_view name) && = delete;
    /// The tensor's bytes; `tensor` must be one of tensors().
    std::span<const std::byte> data(const TensorInfo& tensor) const;
    /// Reads bytes of the tensor's data, from `offset` on, into memory of the caller; nothing of it stays mapped.
    /// Throws Error naming tensor and file where the disk fails or somebody has shortened the file.
    void read(const TensorInfo& tensor, std::uint64_t offset, std::span<std::byte> out) const;
    /// Lets the system begin to read bytes of the tensor that will be wanted soon.
    void read_ahead(const TensorInfo& tensor, std::uint64_t offset, std::uint64_t size) const;
    /// Weights of all tensors together.
    std::uint64_t n_weights() const;

    /// general.architecture; empty where absent (an importance matrix has none).
    std::string architecture() const;
    /// Alignment of the tensor data, in bytes.
    std::uint64_t alignment() const;
    /// A string of the metadata; empty where the key is absent or holds no string.
    std::optional<std::string> string_value(std::string_view key) const;
    /// An integer (any width) or boolean of the metadata; empty where absent, negative, or of another type.
    std::optional<std::uint64_t> uint_value(std::string_view key) const;
    /// An array of strings of the metadata; empty where the key is absent or holds something else.
    std::vector<std::string> string_array(std::string_view key) const;
    /// All metadata as one object; arrays longer than 8 become {"count": n, "first": [8 items]}. Bytes that are no
    /// UTF-8 are replaced.
    nlohmann::json metadata_json() const;

    /// What the model is: model_digest() of it, the same for one file and for the files it was split into. Computed
    /// once, and remembered between runs as long as the files stay what they are (core/digest_memory.h). Without data,
    /// a digest of the header alone.
    std::string fingerprint() const;
    /// The same, and says how far it is: the first time every byte of the model is read. Throws Interrupted.
    std::string fingerprint(Progress& progress) const;
    /// Throws Error naming the file where its content is no longer what it was when it was opened: somebody has written
    /// into it. A look at the files' states, unless these have changed.
    void check_unchanged() const;

  private:
    struct State;
    explicit GgufFile(std::unique_ptr<State> state);
    std::unique_ptr<State> state_;
};

}  // namespace cerebellum
