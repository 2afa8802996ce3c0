#include "cerebellum/gguf/gguf_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cassert>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <limits>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>
#include <unordered_map>
#include <utility>

#include "cerebellum/core/digest_memory.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/core/lfs_pointer.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/gguf/gguf_write.h"
#include "cerebellum/gguf/header_check.h"
#include "cerebellum/gguf/model_digest.h"
#include "cerebellum/gguf/split_name.h"

namespace cerebellum {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

bool begins_with_magic(const void* bytes, std::uint64_t size) {
    return std::memcmp(bytes, GGUF_MAGIC, std::min<std::uint64_t>(size, std::string_view(GGUF_MAGIC).size())) == 0;
}

static_assert(std::endian::native == std::endian::little, "GGUF files are read as they lie in memory");

/// ggml's reader says why it refuses a file only through the log. While an object of this class lives, what this thread
/// logs is kept here; other threads' messages go where they went before.
class LogCapture {
  public:
    LogCapture() : lock_(one_at_a_time), thread_(std::this_thread::get_id()) {
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

    static inline std::mutex one_at_a_time;
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
    return parse_json(json_to_text(json(text)), "a string", {.bytes = std::numeric_limits<std::size_t>::max()});
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

/// One file on the disk, open and mapped: a model, or one file of a split model.
class Part {
  public:
    explicit Part(fs::path path) : path_(std::move(path)) {
        map();
        parse();
    }
    ~Part() {
        if (mapping_ != nullptr) ::munmap(const_cast<std::byte*>(mapping_), size_);
        if (descriptor_ >= 0) ::close(descriptor_);
    }
    Part(const Part&) = delete;
    Part& operator=(const Part&) = delete;

    [[noreturn]] void refuse(std::string_view reason) const {
        throw Error(fmt::format("cannot use {}: {}", path_.string(), reason));
    }
    const fs::path& path() const { return path_; }
    int descriptor() const { return descriptor_; }
    const std::byte* mapping() const { return mapping_; }
    std::uint64_t size() const { return size_; }
    const FileState& opened() const { return opened_; }
    /// Of the file that is open, whatever its name stands for by now.
    FileState current() const {
        struct stat info {};
        if (::fstat(descriptor_, &info) != 0) refuse(std::strerror(errno));
        return file_state(info);
    }
    const gguf_context* context() const { return context_.get(); }
    std::uint64_t data_offset() const { return gguf_get_data_offset(context()); }
    std::optional<std::uint64_t> uint_value(const char* key) const { return uint_of(context(), key); }
    /// Appends what the file describes. Returns whether the data of all of it is there.
    bool add_tensors(std::vector<TensorInfo>& tensors, std::uint32_t part, bool data_may_be_missing) const;

    static std::optional<std::uint64_t> uint_of(const gguf_context* context, const char* key);

  private:
    void map();
    void parse();

    fs::path path_;
    int descriptor_ = -1;
    const std::byte* mapping_ = nullptr;
    std::uint64_t size_ = 0;
    FileState opened_;
    GgufContext context_;
};

std::optional<std::uint64_t> Part::uint_of(const gguf_context* context, const char* key) {
    const auto id = gguf_find_key(context, key);
    if (id < 0) return std::nullopt;
    const auto type = gguf_get_kv_type(context, id);
    if (type == GGUF_TYPE_ARRAY || type == GGUF_TYPE_STRING) return std::nullopt;
    const json value = json_scalar(type, gguf_get_val_data(context, id), 0);
    if (value.is_boolean()) return value.get<bool>() ? 1 : 0;
    if (value.is_number_unsigned()) return value.get<std::uint64_t>();
    if (value.is_number_integer() && value.get<std::int64_t>() >= 0) return value.get<std::uint64_t>();
    return std::nullopt;
}

void Part::map() {
    std::error_code code;
    const auto status = fs::status(path_, code);
    if (status.type() == fs::file_type::not_found) refuse("there is no such file");
    if (status.type() == fs::file_type::directory) refuse("it is a directory; name the .gguf file inside it");
    if (status.type() != fs::file_type::regular)
        refuse(code ? code.message() : std::string("it is no regular file; copy the model to a disk first"));
    descriptor_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor_ < 0) refuse(fmt::format("{}; check its permissions", std::strerror(errno)));
    struct stat info {};
    if (::fstat(descriptor_, &info) != 0) refuse(std::strerror(errno));
    size_ = static_cast<std::uint64_t>(info.st_size);
    opened_ = file_state(info);
    if (size_ == 0) refuse("it is empty; the download may have failed");
    void* address = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, descriptor_, 0);
    if (address == MAP_FAILED) refuse(fmt::format("it cannot be mapped into memory: {}", std::strerror(errno)));
    mapping_ = static_cast<const std::byte*>(address);
}

void Part::parse() {
    check_no_lfs_pointer(path_, {reinterpret_cast<const char*>(mapping_), size_});
    if (!begins_with_magic(mapping_, size_))
        refuse(
            "it is no GGUF file (the first bytes are not \"GGUF\"); convert the model with llama.cpp's "
            "convert_hf_to_gguf.py");
    if (size_ < fixed_header_bytes) refuse("it ends inside the header; the download may be incomplete");
    const auto version = load<std::uint32_t>(mapping_ + 4, 0);
    if (version != 0 && (version & 0xffffu) == 0)
        refuse("it is a big-endian GGUF; convert it with llama.cpp's gguf_convert_endian.py");
    if (version < 2 || version > GGUF_VERSION)
        refuse(fmt::format("its GGUF version is {} and versions 2 to {} are supported; convert the model again",
                           version, GGUF_VERSION));
    if (const auto problem = check_header({mapping_, size_})) {
        if (problem->cut_short)
            refuse(fmt::format("it ends inside the header ({}); the download may be incomplete", problem->reason));
        if (problem->foreign) refuse(problem->reason);
        refuse(fmt::format("its header is damaged ({}); fetch or convert the model again", problem->reason));
    }
    const LogCapture log;
    // From our mapping rather than by name: what was checked is what will be used.
    context_.reset(gguf_init_from_buffer(mapping_, size_, {.no_alloc = true, .ctx = nullptr}));
    if (context_) return;
    refuse(fmt::format("ggml refuses its header ({}); fetch or convert the model again", log.reason()));
}

bool Part::add_tensors(std::vector<TensorInfo>& tensors, std::uint32_t part, bool data_may_be_missing) const {
    bool complete = true;
    const std::int64_t count = gguf_get_n_tensors(context());
    tensors.reserve(tensors.size() + static_cast<std::size_t>(count));
    for (std::int64_t id = 0; id < count; ++id) {
        TensorInfo tensor;
        tensor.name = gguf_get_tensor_name(context(), id);
        tensor.type = gguf_get_tensor_type(context(), id);
        tensor.part = part;
        // Their product cannot overflow: check_header has made sure of that.
        const std::int64_t* shape = gguf_get_tensor_ne(context(), id);
        for (std::size_t i = 0; i < tensor.shape.size(); ++i) {
            tensor.shape[i] = shape[i];
            if (shape[i] > 1) tensor.n_dims = static_cast<int>(i) + 1;
        }
        tensor.size_bytes = type_size_bytes(tensor.type, tensor.row_length(), tensor.n_rows());
        const std::uint64_t offset = gguf_get_tensor_offset(context(), id);
        const std::uint64_t available = size_ - data_offset();  // the reader has made sure that this is not negative
        const bool missing = offset > available || tensor.size_bytes > available - offset;
        complete &= !missing;
        if (missing && !data_may_be_missing)
            refuse(fmt::format(
                "the data of tensor {} reaches beyond the end of the file ({} bytes are missing in it); the "
                "download may be incomplete",
                printable(tensor.name),
                offset > available ? tensor.size_bytes : tensor.size_bytes - (available - offset)));
        tensor.file_offset = data_offset() + offset;
        tensors.push_back(std::move(tensor));
    }
    return complete;
}

}  // namespace

struct GgufFile::State {
    std::vector<std::unique_ptr<Part>> parts;  // at least one
    std::vector<TensorInfo> tensors;
    std::unordered_map<std::string_view, std::size_t> index;
    std::uint64_t file_size = 0;
    std::uint64_t n_weights = 0;
    bool has_data = true;
    std::once_flag fingerprint_once;
    std::string fingerprint;

    const Part& first() const { return *parts.front(); }
    std::int64_t key_id(std::string_view key) const {
        return gguf_find_key(first().context(), std::string(key).c_str());
    }
    void open_parts();
    void add_tensors(bool data_may_be_missing);
    static GgufFile open(const fs::path& path, bool data_may_be_missing);
};

/// Opens the other files of a split model, of which the first is open already.
void GgufFile::State::open_parts() {
    const Part& first = *parts.front();
    const auto count = first.uint_value("split.count").value_or(1);
    if (count <= 1) return;
    const auto number = first.uint_value("split.no").value_or(0) + 1;
    const auto name = parse_split_name(first.path());
    if (!name || static_cast<std::uint64_t>(name->count) != count || static_cast<std::uint64_t>(name->number) != number)
        first.refuse(
            fmt::format("it is number {} of {} files of a split model, which its name does not say; give all of them "
                        "their names back (NAME-00001-of-{:05}.gguf)",
                        number, count, count));
    if (number != 1)
        first.refuse(fmt::format("it is number {} of {} files of a split model; name the first one, {}", number, count,
                                 split_path(name->prefix, 1, name->count).string()));
    for (int i = 2; i <= name->count; ++i) {
        const auto path = split_path(name->prefix, i, name->count);
        if (std::error_code code; !fs::exists(path, code))
            first.refuse(fmt::format("it is one of {} files of a split model, and {} is not there; fetch it as well",
                                     count, path.filename().string()));
        const Part& part = *parts.emplace_back(std::make_unique<Part>(path));
        if (part.uint_value("split.count") != count || part.uint_value("split.no") != static_cast<std::uint64_t>(i) - 1)
            part.refuse(fmt::format(
                "it does not say that it is number {} of {} files, as its name does; fetch it again", i, count));
    }
}

void GgufFile::State::add_tensors(bool data_may_be_missing) {
    for (std::size_t i = 0; i < parts.size(); ++i) {
        has_data &= parts[i]->add_tensors(tensors, static_cast<std::uint32_t>(i), data_may_be_missing);
        file_size += parts[i]->size();
    }
    for (std::size_t i = 0; i < tensors.size(); ++i) {
        n_weights += static_cast<std::uint64_t>(tensors[i].n_weights());
        if (!index.emplace(tensors[i].name, i).second)
            parts[tensors[i].part]->refuse(
                fmt::format("tensor {} is in another file of the model as well; fetch all files again",
                            printable(tensors[i].name)));
    }
    if (tensors.empty()) first().refuse("it holds no tensors; it may be a vocabulary only");
    if (const auto expected = first().uint_value("split.tensors.count"); parts.size() > 1 && expected != tensors.size())
        first().refuse(fmt::format("it announces {} tensors and its {} files hold {}; fetch all of them again",
                                   expected.value_or(0), parts.size(), tensors.size()));
}

GgufFile::GgufFile(std::unique_ptr<State> state) : state_(std::move(state)) {}
GgufFile::GgufFile(GgufFile&&) noexcept = default;
GgufFile& GgufFile::operator=(GgufFile&&) noexcept = default;
GgufFile::~GgufFile() = default;

bool has_gguf_magic(const fs::path& path) {
    check_regular(path);
    std::ifstream stream(path, std::ios::binary);
    std::array<char, std::string_view(GGUF_MAGIC).size()> magic{};
    stream.read(magic.data(), magic.size());
    return begins_with_magic(magic.data(), static_cast<std::uint64_t>(stream.gcount()));
}

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
    state.parts.push_back(std::make_unique<Part>(path));
    state.open_parts();
    state.add_tensors(data_may_be_missing);
    return file;
}

const fs::path& GgufFile::path() const {
    return state_->first().path();
}
std::vector<fs::path> GgufFile::paths() const {
    std::vector<fs::path> paths;
    for (const auto& part : state_->parts) paths.push_back(part->path());
    return paths;
}
std::uint64_t GgufFile::file_size() const {
    return state_->file_size;
}
std::uint64_t GgufFile::data_offset() const {
    return state_->first().data_offset();
}
const gguf_context* GgufFile::context() const& {
    return state_->first().context();
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
    return {state_->parts[tensor.part]->mapping() + tensor.file_offset, tensor.size_bytes};
}

void GgufFile::read(const TensorInfo& tensor, std::uint64_t offset, std::span<std::byte> out) const {
    assert(offset <= tensor.size_bytes && out.size() <= tensor.size_bytes - offset);
    const Part& part = *state_->parts[tensor.part];
    while (!out.empty()) {
        const auto count =
            ::pread(part.descriptor(), out.data(), out.size(), static_cast<off_t>(tensor.file_offset + offset));
        if (count < 0 && errno == EINTR) continue;
        if (count < 0)
            throw Error(fmt::format("cannot read {} in {}: {}; check the disk it lies on", printable(tensor.name),
                                    part.path().string(), std::strerror(errno)));
        if (count == 0)
            throw Error(fmt::format("cannot read {} in {}: the file has become shorter; let nobody write to it",
                                    printable(tensor.name), part.path().string()));
        offset += static_cast<std::uint64_t>(count);
        out = out.subspan(static_cast<std::size_t>(count));
    }
}

void GgufFile::read_ahead(const TensorInfo& tensor, std::uint64_t offset, std::uint64_t size) const {
#ifdef POSIX_FADV_WILLNEED
    ::posix_fadvise(state_->parts[tensor.part]->descriptor(), static_cast<off_t>(tensor.file_offset + offset),
                    static_cast<off_t>(size), POSIX_FADV_WILLNEED);
#else
    static_cast<void>(tensor), static_cast<void>(offset), static_cast<void>(size);
#endif
}

std::optional<std::string> GgufFile::string_value(std::string_view key) const {
    const auto id = state_->key_id(key);
    if (id < 0 || gguf_get_kv_type(context(), id) != GGUF_TYPE_STRING) return std::nullopt;
    return gguf_get_val_str(context(), id);
}

std::optional<std::uint64_t> GgufFile::uint_value(std::string_view key) const {
    return Part::uint_of(context(), std::string(key).c_str());
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
    NoProgress progress;
    return fingerprint(progress);
}

std::string GgufFile::fingerprint(Progress& progress) const {
    std::call_once(state_->fingerprint_once, [&] {
        if (!has_data()) {
            state_->fingerprint = header_digest(*this);
            return;
        }
        std::vector<FileState> states;
        for (const auto& part : state_->parts) states.push_back(part->opened());
        state_->fingerprint = remembered_digest(model_digest_kind, states, [&] {
            LateStage stage(progress, "reading the model for its digest", static_cast<double>(file_size()));
            return model_digest(*this, [&](std::uint64_t done) { stage.advance(static_cast<double>(done), ""); });
        });
    });
    return state_->fingerprint;
}

void GgufFile::check_unchanged() const {
    for (const auto& part : state_->parts) {
        const auto now = part->current();
        if (now == part->opened()) continue;
        const bool cut = now.size_bytes < part->opened().size_bytes;
        if (!cut && has_data() && model_digest(*this, [](std::uint64_t) {}) == fingerprint()) continue;
        throw Error(fmt::format(
            "{} was {} while it was read, so nothing made of it can be relied on; let nobody write to it and start "
            "again",
            part->path().string(), cut ? "cut short" : "changed"));
    }
}

}  // namespace cerebellum
