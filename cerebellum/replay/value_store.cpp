#include "cerebellum/replay/value_store.h"

#include <fmt/format.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <cstring>
#include <map>

#include "cerebellum/core/error.h"
#include "cerebellum/core/spill_file.h"

namespace cerebellum {

namespace {

/// A tensor's memory as plain bytes, for copies between tensors of different shapes.
ggml_tensor as_bytes(ggml_backend_buffer* buffer, void* data, std::size_t size_bytes) {
    ggml_tensor tensor{};
    tensor.type = GGML_TYPE_I8;
    tensor.ne[0] = static_cast<std::int64_t>(size_bytes);
    tensor.ne[1] = tensor.ne[2] = tensor.ne[3] = 1;
    tensor.nb[0] = 1;
    tensor.nb[1] = tensor.nb[2] = tensor.nb[3] = size_bytes;
    tensor.buffer = buffer;
    tensor.data = data;
    return tensor;
}

ggml_tensor as_bytes(const ggml_tensor* tensor) {
    auto* buffer = tensor->view_src != nullptr ? tensor->view_src->buffer : tensor->buffer;
    return as_bytes(buffer, tensor->data, ggml_nbytes(tensor));
}

/// Copies between the memories of two backends, or where null of none, each in the order of what it computes.
void copy(const ggml_tensor& from, ggml_backend* from_backend, ggml_tensor& into, ggml_backend* into_backend) {
    if (from_backend != nullptr && into_backend != nullptr) {
        ggml_backend_tensor_copy_async(from_backend, into_backend, &from, &into);
        return;
    }
    for (auto* backend : {from_backend, into_backend})
        if (backend != nullptr) ggml_backend_synchronize(backend);
    ggml_backend_tensor_copy(&from, &into);
}

}  // namespace

/// What the store and its values share. Blocks that values gave back are kept by size: replays ask for the same few
/// sizes again and again, and devices are slow to give memory out.
struct ValueStore::Memory {
    ggml_backend_buffer_type_t kind = nullptr;
    ggml_backend* backend = nullptr;  // null: nothing to wait for
    Limits limits;
    Usage used;
    std::multimap<std::size_t, GgmlBuffer> free_device;
    std::multimap<std::size_t, std::vector<std::byte>> free_host;
    std::multimap<std::size_t, std::uint64_t> free_scratch;
    std::unique_ptr<SpillFile> scratch;

    std::unique_ptr<StoredValue> place(std::size_t size_bytes, const std::shared_ptr<Memory>& self);

    void wait() const {
        if (backend != nullptr) ggml_backend_synchronize(backend);
    }
};

class StoredValue {
  public:
    StoredValue(std::shared_ptr<ValueStore::Memory> memory, std::size_t size_bytes)
        : memory_(std::move(memory)), size_bytes_(size_bytes) {}
    StoredValue(const StoredValue&) = delete;
    StoredValue& operator=(const StoredValue&) = delete;
    ~StoredValue() {
        if (device_) memory_->free_device.emplace(size_bytes_, std::move(device_));
        if (!host_.empty()) memory_->free_host.emplace(size_bytes_, std::move(host_));
        if (in_scratch_) memory_->free_scratch.emplace(size_bytes_, scratch_offset_);
    }

  private:
    friend struct ValueStore::Memory;
    friend class ValueStore;
    friend std::size_t size_bytes(const StoredValue& value);
    friend void load(const StoredValue& value, ggml_tensor* tensor, ggml_backend* reader);
    friend std::vector<std::byte> read(const StoredValue& value);

    std::shared_ptr<ValueStore::Memory> memory_;
    std::size_t size_bytes_;
    // Exactly one of the three, unless the value is empty.
    GgmlBuffer device_;
    std::vector<std::byte> host_;
    bool in_scratch_ = false;
    std::uint64_t scratch_offset_ = 0;

    ggml_tensor device_bytes() const {
        return as_bytes(device_.get(), ggml_backend_buffer_get_base(device_.get()), size_bytes_);
    }
};

std::unique_ptr<StoredValue> ValueStore::Memory::place(std::size_t size_bytes, const std::shared_ptr<Memory>& self) {
    auto value = std::make_unique<StoredValue>(self, size_bytes);
    if (size_bytes == 0) return value;
    const auto reuse = [size_bytes](auto& free, auto& into) {
        const auto found = free.find(size_bytes);
        if (found == free.end()) return false;
        into = std::move(found->second);
        free.erase(found);
        return true;
    };
    // Blocks of other sizes make way.
    const auto has_room = [this, size_bytes](auto& free, std::size_t& used_bytes, std::size_t limit_bytes) {
        while (used_bytes + size_bytes > limit_bytes && !free.empty()) {
            wait();  // it may still be read
            used_bytes -= free.begin()->first;
            free.erase(free.begin());
        }
        return used_bytes + size_bytes <= limit_bytes;
    };
    if (reuse(free_device, value->device_)) return value;
    if (has_room(free_device, used.device_bytes, limits.device_bytes)) {
        value->device_.reset(ggml_backend_buft_alloc_buffer(kind, size_bytes));
        if (value->device_) {
            used.device_bytes += size_bytes;
            return value;
        }
    }
    if (reuse(free_host, value->host_)) return value;
    if (has_room(free_host, used.host_bytes, limits.host_bytes)) {
        value->host_.resize(size_bytes);
        used.host_bytes += size_bytes;
        return value;
    }
    value->in_scratch_ = true;
    if (reuse(free_scratch, value->scratch_offset_)) return value;
    if (!scratch) scratch = std::make_unique<SpillFile>(limits.scratch_folder);
    value->scratch_offset_ = used.scratch_bytes;
    used.scratch_bytes += size_bytes;
    return value;
}

ValueStore::ValueStore(ggml_backend_buffer_type_t memory) : memory_(std::make_shared<Memory>()) {
    memory_->kind = memory;
}

ValueStore::ValueStore(ggml_backend* backend) : ValueStore(ggml_backend_get_default_buffer_type(backend)) {
    memory_->backend = backend;
}

ValueStore::~ValueStore() {
    memory_->wait();
    memory_->backend = nullptr;  // values may go on without it
}

void ValueStore::set_limits(const Limits& limits) {
    memory_->limits = limits;
    // Where the device computes in host memory there is but one limit.
    if (ggml_backend_buft_is_host(memory_->kind)) {
        memory_->limits.device_bytes = std::min(limits.device_bytes, limits.host_bytes);
        memory_->limits.host_bytes = 0;
    }
}

Value ValueStore::keep(const ggml_tensor* tensor) {
    auto value = memory_->place(ggml_nbytes(tensor), memory_);
    if (value->device_) {
        const auto from = as_bytes(tensor);
        auto into = value->device_bytes();
        copy(from, memory_->backend, into, memory_->backend);
    } else if (!value->host_.empty()) {
        memory_->wait();
        ggml_backend_tensor_get(tensor, value->host_.data(), 0, value->size_bytes_);
    } else if (value->in_scratch_) {
        memory_->wait();
        std::vector<std::byte> bytes(value->size_bytes_);
        ggml_backend_tensor_get(tensor, bytes.data(), 0, bytes.size());
        memory_->scratch->write(bytes, value->scratch_offset_);
    }
    return value;
}

Value ValueStore::keep(std::span<const std::byte> bytes) {
    auto value = memory_->place(bytes.size(), memory_);
    if (value->device_) {
        memory_->wait();  // what had this memory before may still be read
        auto into = value->device_bytes();
        ggml_backend_tensor_set(&into, bytes.data(), 0, bytes.size());
    } else if (!value->host_.empty()) {
        std::ranges::copy(bytes, value->host_.begin());
    } else if (value->in_scratch_) {
        memory_->scratch->write(bytes, value->scratch_offset_);
    }
    return value;
}

ValueStore::Usage ValueStore::usage() const {
    return memory_->used;
}

std::size_t size_bytes(const StoredValue& value) {
    return value.size_bytes_;
}

void load(const StoredValue& value, ggml_tensor* tensor, ggml_backend* reader) {
    assert(ggml_nbytes(tensor) == value.size_bytes_);
    if (value.device_) {
        const auto from = value.device_bytes();
        auto into = as_bytes(tensor);
        copy(from, value.memory_->backend, into, reader);
    } else {
        const auto bytes = read(value);
        if (reader != nullptr) ggml_backend_synchronize(reader);
        ggml_backend_tensor_set(tensor, bytes.data(), 0, bytes.size());
    }
}

std::vector<std::byte> read(const StoredValue& value) {
    if (value.device_) {
        value.memory_->wait();
        std::vector<std::byte> bytes(value.size_bytes_);
        const auto from = value.device_bytes();
        ggml_backend_tensor_get(&from, bytes.data(), 0, bytes.size());
        return bytes;
    }
    if (!value.in_scratch_) return value.host_;
    std::vector<std::byte> bytes(value.size_bytes_);
    value.memory_->scratch->read(bytes, value.scratch_offset_);
    return bytes;
}

}  // namespace cerebellum
