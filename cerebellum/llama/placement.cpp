#include "cerebellum/llama/placement.h"

#include <algorithm>
#include <limits>

#include "cerebellum/core/ggml_device.h"

namespace cerebellum {

namespace {

constexpr std::size_t mebibyte = std::size_t{1} << 20;
/// What a driver and its libraries take once models run.
constexpr std::size_t driver_bytes = 256 * mebibyte;
constexpr std::size_t no_limit = std::numeric_limits<std::size_t>::max();

int layers_of(const GgufFile& file) {
    return static_cast<int>(file.uint_value(file.architecture() + ".block_count").value_or(0));
}

}  // namespace

std::size_t device_capacity(const RunPlace& place) {
    std::size_t sum = 0;
    for (const auto& name : place.devices) {
        std::size_t free = 0, total = 0;
        ggml_backend_dev_memory(find_device(name), &free, &total);
        if (total == 0) free = no_limit;
        if (place.device_bytes > 0) free = std::min(free, place.device_bytes);
        if (free == no_limit) return no_limit;
        sum += free > driver_bytes ? free - driver_bytes : 0;
    }
    return place.devices.empty() ? no_limit : sum;
}

std::size_t working_bytes(const GgufFile& model, int n_rows, int cache_tokens) {
    const auto value = [&](const char* key, std::uint64_t otherwise) {
        return model.uint_value(model.architecture() + key).value_or(otherwise);
    };
    const auto heads = value(".attention.head_count", 1);
    const auto per_head =
        value(".attention.key_length", value(".embedding_length", 0) / std::max<std::uint64_t>(1, heads));
    const auto cached = value(".attention.head_count_kv", heads) * per_head * value(".block_count", 0);
    const auto* embedding = model.find("token_embd.weight");
    const auto n_vocab = embedding != nullptr ? static_cast<std::size_t>(embedding->n_rows()) : 0;
    return 2 * sizeof(float) * static_cast<std::size_t>(n_rows) * n_vocab +
           2 * sizeof(ggml_fp16_t) * static_cast<std::size_t>(cache_tokens) * cached + 256 * mebibyte;
}

std::vector<SideBySide> plan_side_by_side(std::size_t source_bytes, std::span<const std::size_t> file_bytes,
                                          int n_layers, std::size_t working, std::size_t capacity) {
    std::vector<SideBySide> groups;
    for (std::size_t first = 0; first < file_bytes.size();) {
        SideBySide group{first, first + 1, -1};
        auto sum = source_bytes + working + file_bytes[first] + working;
        while (group.last < file_bytes.size() && sum <= capacity && file_bytes[group.last] + working <= capacity - sum)
            sum += file_bytes[group.last++] + working;
        if (sum > capacity) {
            const auto for_contexts = 2 * working;
            const auto for_weights = capacity > for_contexts ? capacity - for_contexts : 0;
            const auto share = static_cast<double>(for_weights) / static_cast<double>(sum - for_contexts);
            group.gpu_layers = static_cast<int>(share * (n_layers + 1));  // the head is a layer, too
        }
        groups.push_back(group);
        first = group.last;
    }
    return groups;
}

std::vector<SideBySide> plan_side_by_side(const std::filesystem::path& source,
                                          std::span<const std::filesystem::path> files, std::size_t working,
                                          const RunPlace& place) {
    if (place.gpu_layers >= 0) return {{0, files.size(), place.gpu_layers}};
    const auto opened = GgufFile::open(source);
    std::vector<std::size_t> bytes;
    for (const auto& file : files) bytes.push_back(GgufFile::open(file).file_size());
    return plan_side_by_side(opened.file_size(), bytes, layers_of(opened), working, device_capacity(place));
}

RunPlace fitted(const RunPlace& place, const std::filesystem::path& model, std::size_t working) {
    if (place.gpu_layers >= 0) return place;
    const auto file = GgufFile::open(model);
    const std::size_t nothing[] = {0};
    auto result = place;
    // Nobody beside it: a file of no bytes, whose context's share is part of the capacity.
    const auto capacity = device_capacity(place);
    const auto with_nothing = capacity > no_limit - working ? capacity : capacity + working;
    result.gpu_layers =
        plan_side_by_side(file.file_size(), nothing, layers_of(file), working, with_nothing).front().gpu_layers;
    return result;
}

}  // namespace cerebellum
