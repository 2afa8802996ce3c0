#include "cerebellum/gguf/model_digest.h"

#include <fmt/format.h>

#include <algorithm>
#include <mutex>
#include <thread>
#include <vector>

#include "cerebellum/core/hash.h"
#include "cerebellum/core/parallel.h"
#include "cerebellum/gguf/header_check.h"

namespace cerebellum {

namespace {

/// A field of unknown length: its length goes first, so that no two lists of fields look the same.
void add_field(Sha256& hash, std::string_view text) {
    hash.update(fmt::format("{}:", text.size()));
    hash.update(text);
}

std::string_view raw(const void* data, std::size_t size) {
    return {static_cast<const char*>(data), size};
}

void add_value(Sha256& hash, const gguf_context* context, std::int64_t id) {
    const auto type = gguf_get_kv_type(context, id);
    hash.update(fmt::format("{} ", static_cast<int>(type)));
    if (type == GGUF_TYPE_STRING) return add_field(hash, gguf_get_val_str(context, id));
    if (type != GGUF_TYPE_ARRAY) return add_field(hash, raw(gguf_get_val_data(context, id), gguf_value_bytes(type)));
    const auto items = gguf_get_arr_type(context, id);
    const auto count = gguf_get_arr_n(context, id);
    hash.update(fmt::format("{} {} ", static_cast<int>(items), count));
    if (items == GGUF_TYPE_STRING)
        for (std::size_t i = 0; i < count; ++i) add_field(hash, gguf_get_arr_str(context, id, i));
    else if (count > 0)
        add_field(hash, raw(gguf_get_arr_data(context, id), count * gguf_value_bytes(items)));
}

void add_metadata(Sha256& hash, const GgufFile& file) {
    const auto* context = file.context();
    std::vector<std::pair<std::string_view, std::int64_t>> keys;
    for (std::int64_t id = 0; id < gguf_get_n_kv(context); ++id)
        if (const std::string_view key = gguf_get_key(context, id); !key.starts_with("split."))
            keys.emplace_back(key, id);
    std::ranges::sort(keys);
    hash.update(fmt::format("{} keys\n", keys.size()));
    for (const auto& [key, id] : keys) {
        add_field(hash, key);
        add_value(hash, context, id);
    }
}

std::vector<const TensorInfo*> by_name(const GgufFile& file) {
    std::vector<const TensorInfo*> tensors;
    for (const auto& tensor : file.tensors()) tensors.push_back(&tensor);
    std::ranges::sort(tensors, {}, &TensorInfo::name);
    return tensors;
}

/// Digests of the tensors' data may be left out.
std::string digest_of(const GgufFile& file, std::span<const TensorInfo* const> tensors,
                      std::span<const std::string> data) {
    Sha256 hash;
    add_metadata(hash, file);
    hash.update(fmt::format("{} tensors\n", tensors.size()));
    for (std::size_t i = 0; i < tensors.size(); ++i) {
        const auto& tensor = *tensors[i];
        add_field(hash, tensor.name);
        hash.update(fmt::format("{} {} {} {} {} ", static_cast<int>(tensor.type), tensor.shape[0], tensor.shape[1],
                                tensor.shape[2], tensor.shape[3]));
        add_field(hash, data.empty() ? std::string_view() : std::string_view(data[i]));
    }
    return hash.finish();
}

}  // namespace

std::string model_digest(const GgufFile& file, const std::function<void(std::uint64_t done)>& read) {
    constexpr std::uint64_t piece_bytes = std::uint64_t{4} << 20;
    constexpr unsigned most_threads = 8;  // disks do not give more
    const auto tensors = by_name(file);
    std::vector<std::string> digests(tensors.size());
    std::mutex reading;
    std::uint64_t done = 0;
    const auto digest = [&](const TensorInfo& tensor) {
        std::vector<std::byte> piece(std::min(piece_bytes, tensor.size_bytes));
        Sha256 hash;
        for (std::uint64_t at = 0; at < tensor.size_bytes; at += piece.size()) {
            const auto part = std::span(piece).first(std::min<std::uint64_t>(piece.size(), tensor.size_bytes - at));
            file.read(tensor, at, part);
            hash.update(part);
            const std::lock_guard lock(reading);
            read(done += part.size());
        }
        return hash.finish();
    };
    // The largest first, so that none is left over at the end for one thread.
    std::vector<std::size_t> order(tensors.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::ranges::stable_sort(order, std::greater<>{}, [&](std::size_t i) { return tensors[i]->size_bytes; });
    const auto threads = static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1U, most_threads));
    parallel_chunks(static_cast<std::int64_t>(order.size()), 1, threads, [&](std::int64_t begin, std::int64_t end) {
        for (auto i = begin; i < end; ++i) {
            const auto at = order[static_cast<std::size_t>(i)];
            digests[at] = digest(*tensors[at]);
        }
    });
    return digest_of(file, tensors, digests);
}

std::string header_digest(const GgufFile& file) {
    return digest_of(file, by_name(file), {});
}

}  // namespace cerebellum
