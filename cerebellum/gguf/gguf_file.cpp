#include "cerebellum/gguf/gguf_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <limits>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>
#include <unordered_map>
#include <utility>

#include "cerebellum/core/error.h"
#include "cerebellum/core/hash.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/gguf/gguf_write.h"

namespace cerebellum {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

static_assert(std::endian::native == std::endian::little, "GGUF files are read as they lie in memory");

/// ggml's reader says why it refuses a file only through the log. While an object of this class lives, what this thread
/// logs is kept here; other threads' messages go where they went before.
class LogCapture {
  public:
    LogCapture() : lock_(mutex_), thread_(std::this_thread::get_id()) {
        ggml_log_get(&previous_, &previous_data_);
        ggml_log_set(&LogCapture::receive, this);
    }
    ~LogCapture() { ggml_log_set(previous_, previous_data_); }
    LogCapture(const LogCapture&) = delete;
    LogCapture& operator=(const LogCapture&) = delete;

    /// The first line, which is the most specific one, without the name of ggml's function.
    std::string reason() const {
        std::string line = text_.substr(0, text_.find('\n'));
        if (const auto colon = line.find(": "); colon != std::string::npos) line.erase(0, colon + 2);
        while (!line.empty() && line.back() == ' ') line.pop_back();
        // Names in a damaged file can hold anything; the message stays one printable line.
        for (char& c : line)
            if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
        return line.size() > 200 ? line.substr(0, 200) + "..." : line;
    }

  private:
    static void receive(ggml_log_level level, const char* text, void* self_pointer) {
        auto* self = static_cast<LogCapture*>(self_pointer);
        if (std::this_thread::get_id() == self->thread_)
            self->text_ += text;
        else if (self->previous_ != nullptr)
            self->previous_(level, text, self->previous_data_);
    }

    static inline std::mutex mutex_;
    std::lock_guard<std::mutex> lock_;
    std::thread::id thread_;
    ggml_log_callback previous_ = nullptr;
    void* previous_data_ = nullptr;
    std::string text_;
};

std::string printable(std::string text) {
    for (char& c : text)
        if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
    return text;
}

/// dump() of a string that is no UTF-8 throws; such strings exist among tokens.
json json_string(std::string_view text) {
    return json::parse(json(text).dump(-1, ' ', false, json::error_handler_t::replace));
}

template <typename T>
T load(const void* data, std::size_t index) {
    T value;
    std::memcpy(&value, static_cast<const std::byte*>(data) + index * sizeof(T), sizeof(T));
    return value;
}

json json_scalar(gguf_type type, const void* data, std::size_t index) {
    switch (type) {
        case GGUF_TYPE_UINT8:
            return load<std::uint8_t>(data, index);
        case GGUF_TYPE_INT8:
            return load<std::int8_t>(data, index);
        case GGUF_TYPE_UINT16:
            return load<std::uint16_t>(data, index);
        case GGUF_TYPE_INT16:
            return load<std::int16_t>(data, index);
        case GGUF_TYPE_UINT32:
            return load<std::uint32_t>(data, index);
        case GGUF_TYPE_INT32:
            return load<std::int32_t>(data, index);
        case GGUF_TYPE_FLOAT32:
            return load<float>(data, index);
        case GGUF_TYPE_BOOL:
            return load<std::int8_t>(data, index) != 0;
        case GGUF_TYPE_UINT64:
            return load<std::uint64_t>(data, index);
        case GGUF_TYPE_INT64:
            return load<std::int64_t>(data, index);
        case GGUF_TYPE_FLOAT64:
            return load<double>(data, index);
        default:
            return nullptr;
    }
}

constexpr std::uint64_t fixed_header_bytes = 24;  // magic, version, number of tensors, number of keys

}  // namespace

struct GgufFile::State {
    fs::path path;
    const std::byte* mapping = nullptr;
    std::uint64_t file_size = 0;
    GgufContext context;
    std::vector<TensorInfo> tensors;
    std::unordered_map<std::string_view, std::size_t> index;
    std::uint64_t n_weights = 0;
    bool has_data = true;
    std::once_flag fingerprint_once;
    std::string fingerprint;

    ~State() {
        if (mapping != nullptr) ::munmap(const_cast<std::byte*>(mapping), file_size);
    }

    [[noreturn]] void refuse(std::string_view reason) const {
        throw Error(fmt::format("cannot use {}: {}", path.string(), reason));
    }

    void map();
    void parse();
    void add_tensors(bool data_may_be_missing);
    static GgufFile open(const fs::path& path, bool data_may_be_missing);
    std::int64_t key_id(std::string_view key) const { return gguf_find_key(context.get(), std::string(key).c_str()); }
};

void GgufFile::State::map() {
    std::error_code code;
    const auto status = fs::status(path, code);
    if (status.type() == fs::file_type::not_found) refuse("there is no such file");
    if (status.type() == fs::file_type::directory) refuse("it is a directory; name the .gguf file inside it");
    if (status.type() != fs::file_type::regular)
        refuse(code ? code.message() : std::string("it is no regular file; copy the model to a disk first"));
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) refuse(fmt::format("{}; check its permissions", std::strerror(errno)));
    struct stat info {};
    if (::fstat(descriptor, &info) != 0) {
        const int reason = errno;
        ::close(descriptor);
        refuse(std::strerror(reason));
    }
    file_size = static_cast<std::uint64_t>(info.st_size);
    if (file_size == 0) {
        ::close(descriptor);
        refuse("it is empty; the download may have failed");
    }
    void* address = ::mmap(nullptr, file_size, PROT_READ, MAP_SHARED, descriptor, 0);
    const int reason = errno;
    ::close(descriptor);
    if (address == MAP_FAILED) refuse(fmt::format("it cannot be mapped into memory: {}", std::strerror(reason)));
    mapping = static_cast<const std::byte*>(address);
}

void GgufFile::State::parse() {
    const auto magic_size = std::min<std::uint64_t>(file_size, 4);
    if (std::memcmp(mapping, GGUF_MAGIC, magic_size) != 0)
        refuse(
            "it is no GGUF file (the first bytes are not \"GGUF\"); convert the model with llama.cpp's "
            "convert_hf_to_gguf.py");
    if (file_size < fixed_header_bytes) refuse("it ends inside the header; the download may be incomplete");
    const auto version = load<std::uint32_t>(mapping + 4, 0);
    if (version != 0 && (version & 0xffffu) == 0)
        refuse("it is a big-endian GGUF; convert it with llama.cpp's gguf_convert_endian.py");
    if (version < 2 || version > GGUF_VERSION)
        refuse(fmt::format("its GGUF version is {} and versions 2 to {} are supported; convert the model again",
                           version, GGUF_VERSION));
    const LogCapture log;
    // From our mapping rather than by name: what was checked is what will be used.
    context.reset(gguf_init_from_buffer(mapping, file_size, {.no_alloc = true, .ctx = nullptr}));
    if (context) return;
    const std::string reason = log.reason();
    // The reader logs nothing specific when it merely runs out of bytes.
    if (reason.starts_with("failed to read") || reason.starts_with("failed to seek") ||
        reason.find("exceeds remaining file size") != std::string::npos)
        refuse(fmt::format("it ends inside the header ({}); the download may be incomplete", reason));
    refuse(fmt::format("its header is damaged ({}); fetch or convert the model again", reason));
}

void GgufFile::State::add_tensors(bool data_may_be_missing) {
    const std::int64_t count = gguf_get_n_tensors(context.get());
    const std::uint64_t data_offset = gguf_get_data_offset(context.get());
    tensors.reserve(static_cast<std::size_t>(count));
    for (std::int64_t id = 0; id < count; ++id) {
        TensorInfo tensor;
        tensor.name = gguf_get_tensor_name(context.get(), id);
        tensor.type = gguf_get_tensor_type(context.get(), id);
        // ggml computes sizes modulo 2^64: check with arithmetic that cannot wrap before believing them.
        const std::int64_t* shape = gguf_get_tensor_ne(context.get(), id);
        std::int64_t weights = 1;
        for (std::size_t i = 0; i < tensor.shape.size(); ++i) {
            tensor.shape[i] = shape[i];
            if (shape[i] > 1) tensor.n_dims = static_cast<int>(i) + 1;
            if (shape[i] < 1 || weights > std::numeric_limits<std::int64_t>::max() / 64 / shape[i])
                refuse(fmt::format(
                    "its header is damaged (tensor {} has the impossible shape {} x {} x {} x {}); fetch or "
                    "convert the model again",
                    printable(tensor.name), shape[0], shape[1], shape[2], shape[3]));
            weights *= shape[i];
        }
        tensor.size_bytes = type_size_bytes(tensor.type, tensor.row_length(), tensor.n_rows());
        const std::uint64_t offset = gguf_get_tensor_offset(context.get(), id);
        // The reader has made sure that this is not negative, but for the padding in front of data that is missing.
        const std::uint64_t available = file_size - std::min(data_offset, file_size);
        const bool missing = offset > available || tensor.size_bytes > available - offset;
        has_data &= !missing;
        if (missing && !data_may_be_missing)
            refuse(fmt::format(
                "the data of tensor {} reaches beyond the end of the file ({} bytes are missing in it); the "
                "download may be incomplete",
                printable(tensor.name),
                offset > available ? tensor.size_bytes : tensor.size_bytes - (available - offset)));
        tensor.file_offset = data_offset + offset;
        n_weights += static_cast<std::uint64_t>(weights);
        tensors.push_back(std::move(tensor));
    }
    for (std::size_t i = 0; i < tensors.size(); ++i) index.emplace(tensors[i].name, i);
}

GgufFile::GgufFile(std::unique_ptr<State> state) : state_(std::move(state)) {}
GgufFile::GgufFile(GgufFile&&) noexcept = default;
GgufFile& GgufFile::operator=(GgufFile&&) noexcept = default;
GgufFile::~GgufFile() = default;

GgufFile GgufFile::open(const fs::path& path) {
    return State::open(path, false);
}
GgufFile GgufFile::open_header(const fs::path& path) {
    return State::open(path, true);
}
bool GgufFile::has_data() const {
    return state_->has_data;
}

GgufFile GgufFile::State::open(const fs::path& path, bool data_may_be_missing) {
    GgufFile file(std::make_unique<State>());
    State& state = *file.state_;
    state.path = path;
    state.map();
    state.parse();
    if (const auto parts = file.uint_value("split.count"); parts && *parts > 1)
        state.refuse(fmt::format(
            "it is one of {} parts of a split model; join them first with llama-gguf-split --merge", *parts));
    state.add_tensors(data_may_be_missing);
    if (state.tensors.empty()) state.refuse("it holds no tensors; it may be a vocabulary only");
    return file;
}

const fs::path& GgufFile::path() const {
    return state_->path;
}
std::uint64_t GgufFile::file_size() const {
    return state_->file_size;
}
std::uint64_t GgufFile::data_offset() const {
    return gguf_get_data_offset(context());
}
const gguf_context* GgufFile::context() const& {
    return state_->context.get();
}
const std::vector<TensorInfo>& GgufFile::tensors() const& {
    return state_->tensors;
}
std::uint64_t GgufFile::n_weights() const {
    return state_->n_weights;
}
std::string GgufFile::architecture() const {
    return string_value("general.architecture").value_or("");
}
std::uint64_t GgufFile::alignment() const {
    return gguf_get_alignment(context());
}

const TensorInfo* GgufFile::find(std::string_view name) const& {
    const auto found = state_->index.find(name);
    return found == state_->index.end() ? nullptr : &state_->tensors[found->second];
}

std::span<const std::byte> GgufFile::data(const TensorInfo& tensor) const {
    return {state_->mapping + tensor.file_offset, tensor.size_bytes};
}

std::optional<std::string> GgufFile::string_value(std::string_view key) const {
    const auto id = state_->key_id(key);
    if (id < 0 || gguf_get_kv_type(context(), id) != GGUF_TYPE_STRING) return std::nullopt;
    return gguf_get_val_str(context(), id);
}

std::optional<std::uint64_t> GgufFile::uint_value(std::string_view key) const {
    const auto id = state_->key_id(key);
    if (id < 0) return std::nullopt;
    const auto type = gguf_get_kv_type(context(), id);
    if (type == GGUF_TYPE_ARRAY || type == GGUF_TYPE_STRING) return std::nullopt;
    const json value = json_scalar(type, gguf_get_val_data(context(), id), 0);
    if (value.is_boolean()) return value.get<bool>() ? 1 : 0;
    if (value.is_number_unsigned()) return value.get<std::uint64_t>();
    if (value.is_number_integer() && value.get<std::int64_t>() >= 0) return value.get<std::uint64_t>();
    return std::nullopt;
}

std::vector<std::string> GgufFile::string_array(std::string_view key) const {
    std::vector<std::string> values;
    const auto id = state_->key_id(key);
    if (id < 0 || gguf_get_kv_type(context(), id) != GGUF_TYPE_ARRAY ||
        gguf_get_arr_type(context(), id) != GGUF_TYPE_STRING)
        return values;
    for (std::size_t i = 0; i < gguf_get_arr_n(context(), id); ++i)
        values.emplace_back(gguf_get_arr_str(context(), id, i));
    return values;
}

json GgufFile::metadata_json() const {
    constexpr std::size_t longest_array = 8;
    json all = json::object();
    for (std::int64_t id = 0; id < gguf_get_n_kv(context()); ++id) {
        const std::string key = json_string(gguf_get_key(context(), id)).get<std::string>();
        const auto type = gguf_get_kv_type(context(), id);
        if (type == GGUF_TYPE_STRING) {
            all[key] = json_string(gguf_get_val_str(context(), id));
        } else if (type == GGUF_TYPE_ARRAY) {
            const auto item_type = gguf_get_arr_type(context(), id);
            const std::size_t count = gguf_get_arr_n(context(), id);
            json items = json::array();
            for (std::size_t i = 0; i < std::min(count, longest_array); ++i)
                items.push_back(item_type == GGUF_TYPE_STRING
                                    ? json_string(gguf_get_arr_str(context(), id, i))
                                    : json_scalar(item_type, gguf_get_arr_data(context(), id), i));
            if (count > longest_array)
                all[key] = json{{"count", count}, {"first", std::move(items)}};
            else
                all[key] = std::move(items);
        } else {
            all[key] = json_scalar(type, gguf_get_val_data(context(), id), 0);
        }
    }
    return all;
}

std::string GgufFile::fingerprint() const {
    std::call_once(state_->fingerprint_once, [&] {
        constexpr std::uint64_t sample = 64 * 1024;
        Sha256 hash;
        hash.update({state_->mapping, std::min(data_offset(), file_size())});
        for (const auto& tensor : tensors()) {
            if (!has_data()) break;
            const auto bytes = data(tensor);
            hash.update(bytes.first(std::min<std::uint64_t>(sample, bytes.size())));
            hash.update(bytes.last(std::min<std::uint64_t>(sample, bytes.size())));
        }
        state_->fingerprint = hash.finish();
    });
    return state_->fingerprint;
}

}  // namespace cerebellum
