#include "cerebellum/replay/weight_store.h"

#include <span>

#include "cerebellum/core/mapped_memory.h"

namespace cerebellum {

struct WeightStore::Entry {
    const ggml_tensor* key = nullptr;
    std::size_t size_bytes = 0;
    std::span<const std::byte> mapped;  // pages to drop in the end
    GgmlContext context;
    GgmlBuffer buffer;
    ggml_tensor* tensor = nullptr;

    Entry() = default;
    Entry(const Entry&) = delete;
    Entry& operator=(const Entry&) = delete;
    ~Entry() { drop_pages(mapped); }
};

PlacedWeight WeightStore::place(const RecordedTensor& weight, bool on_host) {
    auto* original = weight.weight;
    on_host |= device_->is_host();
    if (on_host && limit_bytes_ == unlimited) return {std::shared_ptr<void>(), original};

    if (const auto found = known_.find(original); found != known_.end()) {
        used_.splice(used_.begin(), used_, found->second);
        const auto& entry = *found->second;
        return {entry, entry->tensor};
    }
    auto entry = std::make_shared<Entry>();
    entry->key = original;
    entry->size_bytes = ggml_nbytes(original);
    make_room(entry->size_bytes);
    const std::span bytes(static_cast<const std::byte*>(original->data), entry->size_bytes);
    if (on_host) {
        entry->tensor = original;
        entry->mapped = bytes;
    } else {
        entry->context = make_tensor_context(1);
        entry->tensor = ggml_new_tensor(entry->context.get(), original->type, GGML_MAX_DIMS, original->ne);
        ggml_set_name(entry->tensor, original->name);
        entry->buffer = device_->allocate(entry->context.get());
        ggml_backend_buffer_set_usage(entry->buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        ggml_backend_tensor_set(entry->tensor, bytes.data(), 0, bytes.size());
        drop_pages(bytes);
    }
    placed_bytes_ += entry->size_bytes;
    loaded_bytes_ += entry->size_bytes;
    used_.push_front(entry);
    known_[original] = used_.begin();
    return {entry, entry->tensor};
}

void WeightStore::make_room(std::size_t size_bytes) {
    for (auto at = used_.end(); at != used_.begin() && placed_bytes_ + size_bytes > limit_bytes_;) {
        --at;
        if (at->use_count() > 1) continue;
        device_->wait();  // it may still be read
        placed_bytes_ -= (*at)->size_bytes;
        known_.erase((*at)->key);
        at = used_.erase(at);
    }
}

}  // namespace cerebellum
