#include "cerebellum/gguf/imatrix_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <span>
#include <string_view>
#include <utility>

#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/listing.h"
#include "cerebellum/gguf/gguf_write.h"

namespace cerebellum {

namespace {

constexpr std::string_view sums_suffix = ".in_sum2";
constexpr std::string_view counts_suffix = ".counts";

void check_value(float value, const std::filesystem::path& path, std::string_view name) {
    if (!std::isfinite(value) || value < 0.0f)
        throw Error(fmt::format("cannot use {} as an importance matrix: {} holds the value {}; compute it again",
                                path.string(), name, value));
}

/// Takes a .dat file apart (common/imatrix-loader.cpp, common_imatrix_load_legacy), without believing its lengths.
class LegacyReader {
  public:
    explicit LegacyReader(const std::filesystem::path& path) : path_(path), bytes_(read_file(path)) {}

    bool at_end() const { return position_ == bytes_.size(); }
    std::int32_t integer() {
        std::int32_t value = 0;
        std::memcpy(&value, take(sizeof value).data(), sizeof value);
        return value;
    }
    /// A number of things that take at least `bytes_each` bytes in the rest of the file.
    std::size_t count(std::size_t bytes_each) {
        const auto value = integer();
        if (value < 0 || static_cast<std::size_t>(value) > (bytes_.size() - position_) / bytes_each) refuse();
        return static_cast<std::size_t>(value);
    }
    std::string text() { return std::string(take(count(1))); }
    std::vector<float> floats() {
        std::vector<float> values(count(sizeof(float)));
        if (values.empty()) refuse();
        std::memcpy(values.data(), take(values.size() * sizeof(float)).data(), values.size() * sizeof(float));
        return values;
    }
    [[noreturn]] void refuse() const {
        throw Error(
            fmt::format("cannot use {} as an importance matrix: it is neither a GGUF file nor a complete one of the "
                        "older .dat format; compute it again",
                        path_.string()));
    }

  private:
    std::string_view take(std::size_t size) {
        if (size > bytes_.size() - position_) refuse();
        const auto part = std::string_view(bytes_).substr(position_, size);
        position_ += size;
        return part;
    }

    std::filesystem::path path_;
    std::string bytes_;
    std::size_t position_ = 0;
};

Imatrix read_legacy_imatrix(const std::filesystem::path& path) {
    LegacyReader reader(path);
    Imatrix imatrix;
    constexpr std::size_t smallest_entry = 4 * sizeof(std::int32_t);
    const auto n_entries = reader.count(smallest_entry);
    for (std::size_t i = 0; i < n_entries; ++i) {
        const std::string name = reader.text();
        const auto n_calls = reader.integer();
        ImatrixEntry entry;
        entry.in_sum2 = reader.floats();
        // llama-quantize takes the values of an entry without calls as they are.
        entry.counts = {static_cast<float>(std::max(1, n_calls))};
        entry.n_cols = static_cast<std::int64_t>(entry.in_sum2.size());
        for (const float value : entry.in_sum2) check_value(value, path, name);
        imatrix.entries[name] = std::move(entry);
    }
    if (imatrix.entries.empty()) reader.refuse();
    if (!reader.at_end()) {
        imatrix.chunk_count = static_cast<std::uint32_t>(std::max(0, reader.integer()));
        if (!reader.at_end())
            if (auto dataset = reader.text(); !dataset.empty()) imatrix.datasets.push_back(std::move(dataset));
    }
    return imatrix;
}

std::vector<float> read_floats(const GgufFile& file, const TensorInfo& tensor) {
    if (tensor.type != GGML_TYPE_F32)
        throw Error(
            fmt::format("cannot use {} as an importance matrix: {} is not F32", file.path().string(), tensor.name));
    std::vector<float> values(static_cast<std::size_t>(tensor.n_weights()));
    const auto bytes = file.data(tensor);
    std::memcpy(values.data(), bytes.data(), bytes.size());
    for (const float value : values) check_value(value, file.path(), tensor.name);
    return values;
}

}  // namespace

Imatrix read_imatrix(const std::filesystem::path& path) {
    if (!has_gguf_magic(path)) return read_legacy_imatrix(path);
    const GgufFile file = GgufFile::open(path);
    const auto refuse = [&](std::string_view reason) {
        throw Error(fmt::format("cannot use {} as an importance matrix: {}", path.string(), reason));
    };
    const auto chunk_count = file.uint_value("imatrix.chunk_count");
    const auto chunk_size = file.uint_value("imatrix.chunk_size");
    const bool has_datasets = gguf_find_key(file.context(), "imatrix.datasets") >= 0;
    if (!chunk_count || !chunk_size || !has_datasets)
        refuse("it lacks the keys imatrix.datasets, imatrix.chunk_count and imatrix.chunk_size; it may be a model");
    Imatrix imatrix;
    imatrix.datasets = file.string_array("imatrix.datasets");
    imatrix.chunk_count = static_cast<std::uint32_t>(*chunk_count);
    imatrix.chunk_size = static_cast<std::uint32_t>(*chunk_size);
    for (const auto& tensor : file.tensors()) {
        const std::string_view name = tensor.name;
        if (name.ends_with(sums_suffix))
            imatrix.entries[std::string(name.substr(0, name.size() - sums_suffix.size()))].in_sum2 =
                read_floats(file, tensor);
        else if (name.ends_with(counts_suffix))
            imatrix.entries[std::string(name.substr(0, name.size() - counts_suffix.size()))].counts =
                read_floats(file, tensor);
    }
    if (imatrix.entries.empty()) refuse("it holds no sums of activations");
    for (auto& [name, entry] : imatrix.entries) {
        if (entry.in_sum2.empty() || entry.counts.empty() || entry.in_sum2.size() % entry.counts.size() != 0)
            refuse(fmt::format("sums and counts of {} do not match ({} and {} values)", name, entry.in_sum2.size(),
                               entry.counts.size()));
        entry.n_cols = static_cast<std::int64_t>(entry.in_sum2.size() / entry.counts.size());
    }
    return imatrix;
}

void write_imatrix(const std::filesystem::path& path, const Imatrix& imatrix) {
    GgufContext context(gguf_init_empty());
    std::vector<const char*> datasets;
    for (const auto& dataset : imatrix.datasets) datasets.push_back(dataset.c_str());
    gguf_set_val_str(context.get(), "general.type", "imatrix");
    gguf_set_arr_str(context.get(), "imatrix.datasets", datasets.data(), datasets.size());
    gguf_set_val_u32(context.get(), "imatrix.chunk_count", imatrix.chunk_count);
    gguf_set_val_u32(context.get(), "imatrix.chunk_size", imatrix.chunk_size);
    for (const auto& [name, entry] : imatrix.entries) {
        const auto n_mat = static_cast<std::int64_t>(entry.counts.size());
        if (n_mat == 0 || entry.n_cols <= 0 || entry.in_sum2.size() != static_cast<std::size_t>(entry.n_cols * n_mat))
            throw Error(
                fmt::format("cannot write {}: importance matrix entry {} has {} sums for {} columns and {} counts",
                            path.string(), name, entry.in_sum2.size(), entry.n_cols, n_mat));
        add_tensor(context.get(), name + std::string(sums_suffix), GGML_TYPE_F32, {entry.n_cols, n_mat, 1, 1});
        add_tensor(context.get(), name + std::string(counts_suffix), GGML_TYPE_F32, {1, n_mat, 1, 1});
    }
    AtomicFile file(path);
    const auto metadata = metadata_bytes(context.get());
    file.write(metadata.data(), metadata.size());
    const auto write_padded = [&](const std::vector<float>& values) {
        const std::uint64_t size = values.size() * sizeof(float);
        file.write(values.data(), size);
        file.write_zeros(padded_bytes(size) - size);
    };
    for (const auto& [name, entry] : imatrix.entries) {
        write_padded(entry.in_sum2);
        write_padded(entry.counts);
    }
    file.commit();
}

void write_legacy_imatrix(const std::filesystem::path& path, const Imatrix& imatrix) {
    std::string bytes;
    const auto put = [&](const auto& value) { bytes.append(reinterpret_cast<const char*>(&value), sizeof value); };
    const auto put_text = [&](const std::string& text) {
        put(static_cast<std::int32_t>(text.size()));
        bytes += text;
    };
    const auto chunk_size = std::max(1.0f, static_cast<float>(imatrix.chunk_size));
    std::int32_t n_entries = 0;
    for (const auto& [name, entry] : imatrix.entries) {
        const float most = entry.counts.empty() ? 0.0f : *std::ranges::max_element(entry.counts);
        if (most == 0.0f) continue;
        ++n_entries;
        put_text(name);
        const auto n_calls = static_cast<std::int32_t>(std::ceil(most / chunk_size));
        put(n_calls);
        put(static_cast<std::int32_t>(entry.in_sum2.size()));
        for (std::size_t i = 0; i < entry.in_sum2.size(); ++i) {
            const float count = entry.counts[i / static_cast<std::size_t>(entry.n_cols)];
            put((count == 0.0f ? 1.0f : entry.in_sum2[i] / count) * static_cast<float>(n_calls));
        }
    }
    put(static_cast<std::int32_t>(imatrix.chunk_count));
    put_text(imatrix.datasets.empty() ? "" : imatrix.datasets.back());
    std::string header(sizeof n_entries, '\0');
    std::memcpy(header.data(), &n_entries, sizeof n_entries);
    write_file_atomically(path, header + bytes);
}

std::vector<std::string> fill_gaps(Imatrix& imatrix) {
    constexpr std::size_t group = 16;
    constexpr float share = 1e-3f;
    std::vector<std::string> names;
    for (auto& [name, entry] : imatrix.entries) {
        const auto n_cols = static_cast<std::size_t>(entry.n_cols);
        bool filled = false;
        for (std::size_t matrix = 0; matrix < entry.counts.size(); ++matrix) {
            if (std::lround(entry.counts[matrix]) <= 0) continue;  // equal weights already
            const auto row = std::span(entry.in_sum2).subspan(matrix * n_cols, n_cols);
            const double sum = std::accumulate(row.begin(), row.end(), 0.0);
            const auto mean = static_cast<float>(sum / static_cast<double>(n_cols));
            const float least =
                mean > 0.0f ? std::max(share * mean, std::numeric_limits<float>::min()) : entry.counts[matrix];
            for (std::size_t begin = 0; begin < n_cols; begin += group) {
                const auto part = row.subspan(begin, std::min(group, n_cols - begin));
                if (std::ranges::any_of(part, [](float value) { return value > 0.0f; })) continue;
                std::ranges::fill(part, least);
                filled = true;
            }
        }
        if (filled) names.push_back(name);
    }
    return names;
}

std::string describe_gaps(const std::vector<std::string>& names) {
    if (names.empty()) return "";
    return fmt::format(
        "the importance matrix is zero over whole blocks of columns of {}: weights would be rounded to 0 there, so "
        "equal "
        "importance is used",
        first_few(names));
}

std::vector<float> quantization_weights(const ImatrixEntry& entry) {
    std::vector<float> weights(entry.in_sum2.size());
    const auto n_cols = static_cast<std::size_t>(entry.n_cols);
    for (std::size_t matrix = 0; matrix < entry.counts.size(); ++matrix) {
        const auto count = static_cast<float>(std::lround(entry.counts[matrix]));
        for (std::size_t i = matrix * n_cols; i < (matrix + 1) * n_cols; ++i)
            weights[i] = count > 0.0f ? entry.in_sum2[i] / count : 1.0f;
    }
    return weights;
}

std::vector<float> quantization_weights(const Imatrix* imatrix, const TensorInfo& tensor) {
    if (imatrix == nullptr) return {};
    const auto found = imatrix->entries.find(tensor.name);
    if (found == imatrix->entries.end()) return {};
    if (found->second.in_sum2.size() == static_cast<std::size_t>(tensor.row_length() * tensor.shape[2]))
        return quantization_weights(found->second);
    if (tensor.name == "token_embd.weight" || tensor.name == "per_layer_token_embd.weight") return {};
    throw Error(
        fmt::format("the importance matrix does not belong to this model: {} has {} columns in it and {} in the "
                    "model; compute it from the model itself",
                    tensor.name, found->second.in_sum2.size(), tensor.row_length() * tensor.shape[2]));
}

}  // namespace cerebellum
