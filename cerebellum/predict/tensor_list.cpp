#include "cerebellum/predict/tensor_list.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <limits>
#include <optional>
#include <sstream>

#include "cerebellum/core/compressed_file.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/list_lines.h"
#include "cerebellum/core/name_pattern.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/gguf/gguf_write.h"

namespace cerebellum {

namespace {

std::vector<std::string> split(const std::string& text, char separator) {
    std::vector<std::string> parts;
    std::istringstream stream(text);
    for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
    return parts;
}

/// The whole text as a whole number.
template <typename Number>
std::optional<Number> parse_number(std::string_view text) {
    Number value = 0;
    const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
    return status == std::errc{} && end == text.data() + text.size() ? std::optional(value) : std::nullopt;
}

/// The value of a field "name=value", empty where the field is another.
std::string_view field(const std::string& text, std::string_view name) {
    const std::string_view view = text;
    return view.starts_with(name) ? view.substr(name.size()) : std::string_view();
}

/// A line's tensor. Throws Error with the reason alone.
TensorInfo parse_map_line(const std::string& line) {
    const auto fields = split(line, ':');
    if (fields.size() < 7) throw Error("it is no 'file:hash:tensor:shape=:dtype=:elements=:bytes='");
    TensorInfo tensor;
    tensor.name = fields[2];
    auto shape = field(fields[3], "shape=(");
    const auto type = parse_type(field(fields[4], "dtype="));
    const auto elements = parse_number<std::int64_t>(field(fields[5], "elements="));
    const auto bytes = parse_number<std::uint64_t>(field(fields[6], "bytes="));
    if (tensor.name.empty() || !shape.ends_with(')') || !elements || !bytes)
        throw Error("it is no 'file:hash:tensor:shape=:dtype=:elements=:bytes='");
    if (!type) throw Error(fmt::format("ggml has no type '{}'", field(fields[4], "dtype=")));
    tensor.type = *type;
    std::string numbers(shape.substr(0, shape.size() - 1));
    std::erase(numbers, ' ');
    std::vector<std::int64_t> lengths;
    for (const auto& number : split(numbers, ',')) lengths.push_back(parse_number<std::int64_t>(number).value_or(0));
    if (!set_shape(tensor, lengths)) throw Error(fmt::format("its shape ({}) is impossible", numbers));
    if (tensor.n_weights() != *elements)
        throw Error(fmt::format("its shape ({}) has {} weights, not {}", numbers, tensor.n_weights(), *elements));
    if (type_fits_row(tensor.type, tensor.row_length()))
        tensor.size_bytes = type_size_bytes(tensor.type, tensor.row_length(), tensor.n_rows());
    // Some were counted with the padding behind them.
    if (tensor.size_bytes == 0 || (*bytes != tensor.size_bytes && *bytes != padded_bytes(tensor.size_bytes)))
        throw Error(fmt::format("{} weights of shape ({}) in {} do not take {} bytes", *elements, numbers,
                                type_name(tensor.type), *bytes));
    return tensor;
}

TensorList read_tensor_map(const std::filesystem::path& path) {
    TensorList list;
    list.origin = path.string();
    std::vector<std::string> names;
    for (const auto& [number, line] : list_lines(read_unpacked(path))) {
        try {
            list.tensors.push_back(parse_map_line(line));
        } catch (const Error& reason) {
            throw Error(fmt::format("cannot use the tensor map {}: line {}: {}", path.string(), number, reason.what()));
        }
        names.push_back(list.tensors.back().name);
    }
    if (list.tensors.empty())
        throw Error(fmt::format("cannot use the tensor map {}: it lists no tensor", path.string()));
    std::ranges::sort(names);
    if (const auto twice = std::ranges::adjacent_find(names); twice != names.end())
        throw Error(fmt::format("cannot use the tensor map {}: {} is there twice", path.string(), *twice));
    return list;
}

std::uint64_t total_bytes(const TensorList& list) {
    std::uint64_t sum = 0;
    for (const auto& tensor : list.tensors) sum += tensor.size_bytes;
    return sum;
}

}  // namespace

bool set_shape(TensorInfo& tensor, std::span<const std::int64_t> shape) {
    if (shape.empty() || shape.size() > tensor.shape.size()) return false;
    std::int64_t weights = 1;
    for (const auto length : shape) {
        if (length < 1 || weights > std::numeric_limits<std::int64_t>::max() / 64 / length) return false;
        weights *= length;
    }
    tensor.shape.fill(1);
    tensor.n_dims = 1;
    for (std::size_t i = 0; i < shape.size(); ++i) {
        tensor.shape[i] = shape[i];
        if (shape[i] > 1) tensor.n_dims = static_cast<int>(i) + 1;
    }
    return true;
}

const TensorInfo* TensorList::find(std::string_view name) const {
    const auto found = std::ranges::find(tensors, name, &TensorInfo::name);
    return found == tensors.end() ? nullptr : &*found;
}

TensorList tensor_list(const GgufFile& file) {
    TensorList list{file.path().string(), file.tensors()};
    for (auto& tensor : list.tensors) tensor.file_offset = 0;
    return list;
}

TensorList read_tensor_maps(std::span<const std::filesystem::path> paths) {
    std::vector<TensorList> maps;
    for (const auto& path : paths) maps.push_back(read_tensor_map(path));
    if (maps.empty()) throw Error("there is no tensor map to read; name one");
    auto largest = std::ranges::max_element(maps, {}, total_bytes);
    const auto compare = [](const TensorList& map, const TensorList& other) {
        for (const auto& tensor : map.tensors) {
            const auto* known = other.find(tensor.name);
            if (known == nullptr || known->shape != tensor.shape)
                throw Error(fmt::format("the tensor maps {} and {} contradict each other: {} {}", map.origin,
                                        other.origin, tensor.name,
                                        known == nullptr ? "is in one only" : "has two shapes"));
        }
    };
    for (const auto& map : maps) {
        compare(map, *largest);
        compare(*largest, map);
    }
    return std::move(*largest);
}

NameList NameList::read(const std::filesystem::path& path) {
    NameList list;
    list.origin_ = path.string();
    for (const auto& [number, line] : list_lines(read_unpacked(path))) {
        const auto equals = line.find('=');
        if (equals == std::string::npos || equals == 0)
            throw Error(fmt::format("cannot use the tensor list {}: line {} is no NAME=TYPE", path.string(), number));
        const std::string pattern = line.substr(0, equals);
        std::string name = pattern;
        if (name.starts_with('^') && name.ends_with('$')) name = name.substr(1, name.size() - 2);
        for (std::size_t at; (at = name.find("\\.")) != std::string::npos;) name.erase(at, 1);
        if (name.find_first_of("^$\\*+?()[]{}|") == std::string::npos) {
            list.names_.push_back(name);
            continue;
        }
        try {
            list.patterns_.push_back(name_pattern(pattern));
        } catch (const Error& error) {
            throw Error(fmt::format("cannot use the tensor list {}: line {}: {}", path.string(), number, error.what()));
        }
    }
    if (list.names_.empty() && list.patterns_.empty())
        throw Error(fmt::format("cannot use the tensor list {}: it names no tensor", path.string()));
    std::ranges::sort(list.names_);
    return list;
}

bool NameList::contains(std::string_view name) const {
    return std::ranges::binary_search(names_, name) || std::ranges::any_of(patterns_, [&](const std::regex& pattern) {
               return std::regex_search(name.begin(), name.end(), pattern);
           });
}

}  // namespace cerebellum
