#include "cerebellum/gguf/header_check.h"

#include <fmt/format.h>
#include <ggml.h>
#include <gguf.h>

#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string_view>
#include <unordered_set>
#include <utility>

#include "cerebellum/core/visible_text.h"

namespace cerebellum {

namespace {

// ggml compares every name with every other one and needs a few hundred bytes for each, so that more names than any
// model has would take hours and gigabytes.
constexpr std::uint64_t most_keys = 65536;
constexpr std::uint64_t most_tensors = 65536;
constexpr std::uint64_t longest_key = 65535;  // of the format's definition
constexpr std::uint64_t largest_alignment = 1u << 20;
/// Beyond the file's own size, what a reader may allocate.
constexpr std::uint64_t spare_bytes = 64u << 20;
/// A length beyond this is damage; a smaller one that the file does not hold may mean that its end is missing.
constexpr std::uint64_t plausible_bytes = 1ull << 32;

std::string printable(std::string_view text) {
    constexpr std::size_t longest = 80;
    std::string result(text.substr(0, longest));
    for (char& c : result)
        if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
    return text.size() > longest ? result + "..." : result;
}

class Walk {
  public:
    explicit Walk(std::span<const std::byte> file) : file_(file) {}

    void header() {
        constexpr std::uint64_t magic_and_version = 8;
        take(magic_and_version, "the header");
        n_tensors_ = number<std::uint64_t>("the number of tensors");
        n_keys_ = number<std::uint64_t>("the number of keys");
        if (n_tensors_ > most_tensors)
            damaged(fmt::format("it announces {} tensors; {} are the most", n_tensors_, most_tensors));
        if (n_keys_ > most_keys) damaged(fmt::format("it announces {} keys; {} are the most", n_keys_, most_keys));
        std::unordered_set<std::string_view> keys;
        for (std::uint64_t i = 0; i < n_keys_; ++i) key(i, keys);
        std::unordered_set<std::string_view> names;
        std::uint64_t expected = 0;
        for (std::uint64_t i = 0; i < n_tensors_; ++i) tensor(i, names, expected);
        const std::uint64_t begin = padded(position_);
        if (n_tensors_ > 0 && begin > file_.size()) cut_short("the padding in front of the tensor data");
    }

  private:
    [[noreturn]] static void damaged(std::string reason) { throw HeaderProblem{false, false, std::move(reason)}; }
    [[noreturn]] static void cut_short(std::string_view what) {
        throw HeaderProblem{true, false, fmt::format("in {}", what)};
    }

    std::uint64_t remaining() const { return file_.size() - position_; }
    std::uint64_t padded(std::uint64_t size) const { return (size + alignment_ - 1) / alignment_ * alignment_; }

    std::string_view take(std::uint64_t size, std::string_view what) {
        if (size > remaining()) {
            if (size > plausible_bytes) damaged(fmt::format("{} has the length {}", what, size));
            cut_short(what);
        }
        const auto* begin = reinterpret_cast<const char*>(file_.data()) + position_;
        position_ += size;
        return {begin, static_cast<std::size_t>(size)};
    }

    template <typename T>
    T number(std::string_view what) {
        T value;
        std::memcpy(&value, take(sizeof value, what).data(), sizeof value);
        return value;
    }

    std::string_view string(std::string_view what) { return take(number<std::uint64_t>(what), what); }

    /// A name that others will compare up to its first zero byte.
    std::string_view name(const std::string& what, std::uint64_t longest, std::unordered_set<std::string_view>& known) {
        const auto length = number<std::uint64_t>(what);
        if (length > longest)
            damaged(fmt::format("the name of {} has {} bytes; {} are the most", what, length, longest));
        const auto text = take(length, what);
        if (text.empty()) damaged(fmt::format("{} has an empty name", what));
        if (text.find('\0') != std::string_view::npos)
            damaged(fmt::format("the name of {} ({}) holds a zero byte", what, printable(text)));
        if (!known.insert(text).second)
            damaged(fmt::format("{} has a name that is there already: {}", what, printable(text)));
        return text;
    }

    std::int32_t value_type(const std::string& what) {
        const auto type = number<std::int32_t>(what);
        if (type < 0 || type >= GGUF_TYPE_COUNT) damaged(fmt::format("{} has the unknown type {}", what, type));
        return type;
    }

    void key(std::uint64_t index, std::unordered_set<std::string_view>& known) {
        const auto text = name(fmt::format("key {}", index), longest_key, known);
        const std::string what = fmt::format("key {}", printable(text));
        const auto type = value_type(what);
        if (text == GGUF_KEY_GENERAL_ALIGNMENT) {
            if (type != GGUF_TYPE_UINT32) damaged(fmt::format("{} is no 32-bit number", what));
            alignment_ = number<std::uint32_t>(what);
            if (!std::has_single_bit(alignment_) || alignment_ > largest_alignment)
                damaged(fmt::format("the alignment {} is no power of two up to {}", alignment_, largest_alignment));
        } else if (type == GGUF_TYPE_STRING) {
            string(what);
        } else if (type == GGUF_TYPE_ARRAY) {
            array(what);
        } else {
            take(gguf_value_bytes(static_cast<gguf_type>(type)), what);
        }
    }

    void array(const std::string& what) {
        const auto type = value_type(what);
        if (type == GGUF_TYPE_ARRAY) damaged(fmt::format("{} is an array of arrays, which no model has", what));
        const auto count = number<std::uint64_t>(what);
        const std::uint64_t least =
            type == GGUF_TYPE_STRING ? sizeof(std::uint64_t) : gguf_value_bytes(static_cast<gguf_type>(type));
        if (count > remaining() / least) {
            if (count > plausible_bytes / least) damaged(fmt::format("{} has {} items", what, count));
            cut_short(what);
        }
        if (type != GGUF_TYPE_STRING) {
            take(count * least, what);
            return;
        }
        if (count * sizeof(std::string) > file_.size() + spare_bytes)
            damaged(fmt::format("{} has {} strings with next to nothing in them", what, count));
        for (std::uint64_t i = 0; i < count; ++i) string(what);
    }

    void tensor(std::uint64_t index, std::unordered_set<std::string_view>& known, std::uint64_t& expected) {
        const auto text = name(fmt::format("tensor {}", index), GGML_MAX_NAME - 1, known);
        const std::string what = fmt::format("tensor {}", printable(text));
        // Journals and recipes know tensors by their names, and are JSON.
        if (!is_utf8(text)) damaged(fmt::format("the name of tensor {} ({}) is no UTF-8", index, visible(text)));
        const auto n_dims = number<std::uint32_t>(what);
        if (n_dims > GGML_MAX_DIMS)
            damaged(fmt::format("{} has {} dimensions; {} are the most", what, n_dims, GGML_MAX_DIMS));
        std::array<std::int64_t, GGML_MAX_DIMS> shape = {1, 1, 1, 1};
        for (std::uint32_t i = 0; i < n_dims; ++i) shape[i] = number<std::int64_t>(what);
        const auto type = number<std::int32_t>(what);
        check_type(what, type);
        const std::uint64_t size = size_bytes(what, shape, static_cast<ggml_type>(type));
        const auto offset = number<std::uint64_t>(what);
        if (offset % alignment_ != 0)
            damaged(fmt::format("the offset {} of {} is no multiple of the alignment {}", offset, what, alignment_));
        if (offset < expected) damaged(fmt::format("{} overlaps the tensor in front of it", what));
        if (offset > expected)
            damaged(fmt::format("{} begins at {} and not at {}, where the tensor in front of it ends", what, offset,
                                expected));
        if (size > std::numeric_limits<std::int64_t>::max() - expected - 2 * largest_alignment)
            damaged(fmt::format("the tensors up to {} have an impossible size together", what));
        expected += padded(size);
    }

    static void check_type(const std::string& what, std::int32_t type) {
        constexpr std::int32_t beyond_all_forks = 4096;
        if (type < 0 || type >= beyond_all_forks)
            damaged(fmt::format("{} has the type {}, which ggml does not know", what, type));
        if (type >= GGML_TYPE_COUNT)
            throw HeaderProblem{
                false, true,
                fmt::format(
                    "{} has the type number {}, which llama.cpp does not know; ik_llama.cpp and other forks write "
                    "such types: use a file made for llama.cpp",
                    what, type)};
        if (ggml_blck_size(static_cast<ggml_type>(type)) <= 0)
            throw HeaderProblem{false, true,
                                fmt::format("{} has the type number {}, which llama.cpp has given up; convert the "
                                            "model again, or use a newer file of it",
                                            what, type)};
    }

    static std::uint64_t size_bytes(const std::string& what, const std::array<std::int64_t, GGML_MAX_DIMS>& shape,
                                    ggml_type type) {
        // So many that neither the weights nor their bytes overflow: no type has more than 64 bytes for a weight.
        constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max() / 64;
        std::int64_t weights = 1;
        for (const auto length : shape) {
            if (length < 1 || weights > most / length)
                damaged(fmt::format("{} has the impossible shape {} x {} x {} x {}", what, shape[0], shape[1], shape[2],
                                    shape[3]));
            weights *= length;
        }
        if (shape[0] % ggml_blck_size(type) != 0)
            damaged(fmt::format("{} of type {} has rows of {} weights, no multiple of {}", what, ggml_type_name(type),
                                shape[0], ggml_blck_size(type)));
        return static_cast<std::uint64_t>(weights / ggml_blck_size(type)) * ggml_type_size(type);
    }

    std::span<const std::byte> file_;
    std::uint64_t position_ = 0;
    std::uint64_t n_tensors_ = 0, n_keys_ = 0;
    std::uint64_t alignment_ = GGUF_DEFAULT_ALIGNMENT;
};

}  // namespace

std::uint64_t gguf_value_bytes(gguf_type type) {
    static constexpr std::array<std::uint64_t, GGUF_TYPE_COUNT> sizes = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return sizes[static_cast<std::size_t>(type)];
}

std::optional<HeaderProblem> check_header(std::span<const std::byte> file) {
    try {
        Walk(file).header();
        return std::nullopt;
    } catch (const HeaderProblem& problem) {
        return problem;
    }
}

}  // namespace cerebellum
