#pragma once

#include <ggml-backend.h>
#include <ggml.h>

#include <cstddef>
#include <filesystem>
#include <limits>
#include <memory>
#include <span>
#include <vector>

namespace cerebellum {

struct GgmlBufferFree {
    void operator()(ggml_backend_buffer* buffer) const { ggml_backend_buffer_free(buffer); }
};
using GgmlBuffer = std::unique_ptr<ggml_backend_buffer, GgmlBufferFree>;

/// The content of a tensor between replays: in the device's memory, in host memory or in a scratch file. Immutable.
class StoredValue;
using Value = std::shared_ptr<const StoredValue>;

/// Keeps values where there is room for them: in the device's memory first, then in host memory, then in a scratch file
/// that has no name and goes with the store. Memory of released values is used again. Not thread-safe; values may
/// outlive the store.
///
/// Where a backend computes by itself while the host goes on, copies within its memory are queued behind what it was
/// asked to compute before; everything else waits until it has done that.
class ValueStore {
  public:
    struct Limits {
        std::size_t device_bytes = std::numeric_limits<std::size_t>::max();
        std::size_t host_bytes = std::numeric_limits<std::size_t>::max();
        std::filesystem::path scratch_folder;  // empty: the system's folder for temporary files
    };

    /// `memory` is the kind of memory that the values' tensors lie in, and nothing computes by itself.
    explicit ValueStore(ggml_backend_buffer_type_t memory);
    /// `backend` is what computes the tensors that are kept. It must outlive the store.
    explicit ValueStore(ggml_backend* backend);
    ~ValueStore();

    void set_limits(const Limits& limits);

    /// A copy of a tensor's content. Throws Error where the scratch file cannot take it.
    Value keep(const ggml_tensor* tensor);
    Value keep(std::span<const std::byte> bytes);

    /// Bytes held in the device's memory, in host memory and in the scratch file, memory ready for reuse included.
    struct Usage {
        std::size_t device_bytes = 0;
        std::size_t host_bytes = 0;
        std::size_t scratch_bytes = 0;
    };
    Usage usage() const;

    struct Memory;

  private:
    std::shared_ptr<Memory> memory_;
};

std::size_t size_bytes(const StoredValue& value);
/// Fills a tensor of the same size, before what `reader` is asked to compute next and after all it was asked before.
void load(const StoredValue& value, ggml_tensor* tensor, ggml_backend* reader = nullptr);
std::vector<std::byte> read(const StoredValue& value);

}  // namespace cerebellum
