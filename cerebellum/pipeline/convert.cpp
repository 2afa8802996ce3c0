#include "cerebellum/pipeline/convert.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <map>
#include <optional>
#include <string_view>

#include "cerebellum/core/child_process.h"
#include "cerebellum/core/data_folder.h"
#include "cerebellum/core/digest_memory.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/hash.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/core/lfs_pointer.h"
#include "cerebellum/core/temporary_name.h"
#include "cerebellum/gguf/gguf_file.h"

namespace cerebellum {

namespace fs = std::filesystem;

namespace {

constexpr const char* script = "convert_hf_to_gguf.py";
constexpr const char* requirements = "requirements.txt";

/// Exclusive among the processes of this machine while it exists.
class FolderLock {
  public:
    FolderLock(const fs::path& path, Progress& progress) {
        descriptor_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0666);
        if (descriptor_ < 0) throw Error(fmt::format("cannot write {}: {}", path.string(), std::strerror(errno)));
        if (::flock(descriptor_, LOCK_EX | LOCK_NB) == 0) return;
        progress.info("Another process is installing the converter's packages; waiting for it.");
        while (::flock(descriptor_, LOCK_EX | LOCK_NB) != 0) {
            progress.check();
            ::usleep(100'000);
        }
    }
    ~FolderLock() { ::close(descriptor_); }
    FolderLock(const FolderLock&) = delete;
    FolderLock& operator=(const FolderLock&) = delete;

  private:
    int descriptor_ = -1;
};

/// Python with nothing of the user's in it, and without a model hub.
std::vector<std::string> python_environment() {
    return {"PYTHONPATH",
            "PYTHONHOME",
            "PYTHONNOUSERSITE=1",
            "PYTHONUNBUFFERED=1",
            "PYTHONUTF8=1",
            "PYTHONDONTWRITEBYTECODE=1",
            "HF_HUB_OFFLINE=1",
            "TRANSFORMERS_OFFLINE=1",
            "CUDA_VISIBLE_DEVICES=",
            "TOKENIZERS_PARALLELISM=false"};
}

/// Of a progress bar, "Writing:  37%|███▋      | 1.2G/3.2G […".
std::optional<double> percentage_of(std::string_view line) {
    const auto percent = line.find("%|");
    if (!line.starts_with("Writing:") || percent == std::string_view::npos) return std::nullopt;
    const auto begin = line.find_first_not_of(' ', std::strlen("Writing:"));
    int value = 0;
    if (std::from_chars(line.data() + begin, line.data() + percent, value).ec != std::errc()) return std::nullopt;
    return value;
}

/// Turns what the converter says into progress, and remembers its complaint.
class ConverterLog {
  public:
    explicit ConverterLog(Progress& progress) : progress_(progress) { progress_.begin("reading the model", 0); }

    void take(std::string_view line) {
        if (const auto percent = percentage_of(line)) {
            if (!writing_) {
                progress_.end();
                progress_.begin("writing the model", 100);
                writing_ = true;
            }
            progress_.advance(*percent, "");
            return;
        }
        progress_.detail(line);
        // Python's logging: LEVEL:logger:message. Any other text that is not indented may be the end of a traceback.
        const auto logger = line.find(':');
        const auto text = logger == std::string_view::npos ? std::string_view::npos : line.find(':', logger + 1);
        const auto level = line.substr(0, logger);
        const bool logged = text != std::string_view::npos &&
                            (level == "INFO" || level == "WARNING" || level == "ERROR" || level == "CRITICAL");
        const auto message = logged ? line.substr(text + 1) : line;
        if (logged && level == "INFO") {
            if (!writing_) progress_.advance(static_cast<double>(++tensors_), message.substr(0, message.find(',')));
        } else if (logged && level == "WARNING") {
            if (message.find_first_not_of("* ") != std::string_view::npos)
                progress_.warn(fmt::format("converter: {}", message));
        } else if (logged || (!line.empty() && line.front() != ' ' && line != "Traceback (most recent call last):")) {
            complaint_ = message;
        }
    }
    void end() { progress_.end(); }
    /// The last error, one line.
    const std::string& complaint() const { return complaint_; }

  private:
    Progress& progress_;
    bool writing_ = false;
    int tensors_ = 0;
    std::string complaint_;
};

void check_folder(const fs::path& folder) {
    std::error_code code;
    if (!fs::is_directory(folder, code))
        throw UsageError(fmt::format("{} is not a folder; name the folder of a Hugging Face model", folder.string()));
    if (!is_hugging_face_folder(folder))
        throw UsageError(
            fmt::format("{} has no config.json, so it is not the folder of a Hugging Face model", folder.string()));
    bool has_weights = false;
    for (const auto& entry : fs::directory_iterator(folder)) {
        // Any shard may be a pointer, and so may the tokenizer's files.
        check_no_lfs_pointer(entry.path());
        const auto ending = entry.path().extension();
        has_weights |= ending == ".safetensors" || ending == ".bin" || ending == ".pt" || ending == ".pth";
    }
    if (!has_weights)
        throw Error(
            fmt::format("{} has no weights (*.safetensors or *.bin) in it; download the whole model", folder.string()));
}

/// What the converter may read: names and contents of the folder's files, links followed. What lies in folders in it is
/// no part of the model.
std::string folder_digest(const fs::path& folder, Progress& progress) {
    std::map<std::string, fs::path> files;
    for (const auto& entry : fs::directory_iterator(folder))
        if (entry.is_regular_file()) files[entry.path().filename().string()] = entry.path();
    Sha256 hash;
    for (const auto& [name, path] : files) {
        hash.update(fmt::format("{}:{} ", name.size(), name));
        hash.update(content_sha256(path, progress));
    }
    return hash.finish();
}

/// Beside a converted file: what it was made of and what it was then, so that neither its name nor its time is
/// believed.
class ConversionRecord {
  public:
    explicit ConversionRecord(const fs::path& gguf) : gguf_(gguf), path_(gguf) { path_ += ".converted.json"; }

    bool speaks_of(const std::string& folder, Progress& progress) const {
        std::error_code code;
        if (!fs::exists(gguf_, code) || !fs::exists(path_, code)) return false;
        const auto record = try_parse_json(read_file(path_));
        return record && text_field(*record, "folder_sha256") == folder &&
               text_field(*record, "fingerprint") == GgufFile::open(gguf_).fingerprint(progress);
    }
    void write(const std::string& folder, Progress& progress) const {
        const nlohmann::json record = {{"folder_sha256", folder},
                                       {"fingerprint", GgufFile::open(gguf_).fingerprint(progress)}};
        write_file_atomically(path_, json_to_text(record, 2) + "\n");
    }

  private:
    fs::path gguf_, path_;
};

}  // namespace

bool is_hugging_face_folder(const fs::path& path) {
    std::error_code code;
    return fs::is_directory(path, code) &&
           (fs::exists(path / "config.json", code) || fs::exists(path / "params.json", code));
}

fs::path converter_python(const fs::path& converter, Progress& progress) {
    const auto list = converter / requirements;
    const auto cache = cache_folder();
    std::error_code code;
    fs::create_directories(cache, code);
    const auto environment = cache / ("converter-" + sha256(read_file(list)).substr(0, 12));
    auto python = environment / "bin" / "python";
    const auto complete = environment / "complete";
    if (fs::exists(complete, code)) return python;
    const FolderLock lock(cache / "converter.lock", progress);
    if (fs::exists(complete, code)) return python;
    fs::remove_all(environment, code);  // what an interrupted run has left
    progress.info(fmt::format("Installing the converter's packages in {} (once; PyTorch is among them: several GB)",
                              environment.string()));
    progress.begin("installing the converter's packages", 0);
    std::string last;
    int lines = 0;
    const auto run = [&](const std::vector<std::string>& arguments) {
        return run_child(
            {arguments, python_environment()},
            [&](std::string_view line) {
                progress.detail(line);
                progress.advance(++lines, line.substr(0, line.find(" (")));
                if (line.find_first_not_of(' ') == 0 && !line.starts_with("[notice]")) last = line;
            },
            progress);
    };
    if (run({"python3", "-m", "venv", environment.string()}) != 0)
        throw Error(
            fmt::format("cannot make a virtual environment in {}: {}; on Debian and Ubuntu install "
                        "python3-venv, or name an interpreter that has the converter's packages (--python)",
                        environment.string(), last));
    if (run({python.string(), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--require-hashes",
             "--only-binary", ":all:", "--progress-bar", "off", "-r", list.string()}) != 0)
        throw Error(
            fmt::format("cannot install the converter's packages: {}; mend the network and run the same command "
                        "again, or name an interpreter that has them (--python)",
                        last));
    write_file_atomically(complete, "");
    progress.end();
    return python;
}

std::uint64_t convert_model(const ConvertOptions& options, Progress& progress) {
    check_folder(options.folder);
    check_output_path(options.output, 0, options.overwrite);
    const auto converter = data_folder("converter");
    const auto python = options.python.empty() ? converter_python(converter, progress) : options.python;
    AtomicFile file(options.output);
    const auto temporary = temporary_name(options.output);
    // The converter takes braces in a name for a template.
    std::string output;
    for (const char letter : fs::absolute(temporary).string())
        output.append(letter == '{' || letter == '}' ? 2 : 1, letter);
    ConverterLog log(progress);
    const int status = run_child(
        {{python.string(), (converter / script).string(), fs::absolute(options.folder).string(), "--outfile", output,
          "--outtype", options.type},
         python_environment()},
        [&](std::string_view line) { log.take(line); }, progress);
    if (status != 0)
        throw Error(fmt::format(
            "llama.cpp's converter cannot convert {}: {}; --verbose shows all that it says", options.folder.string(),
            log.complaint().empty() ? fmt::format("it ended with code {}", status) : log.complaint()));
    log.end();
    const auto bytes = GgufFile::open(temporary).file_size();
    file.commit();
    return bytes;
}

fs::path gguf_of(const fs::path& model, const fs::path& folder, Progress& progress) {
    if (!is_hugging_face_folder(model)) return model;
    check_folder(model);
    const auto digest = folder_digest(model, progress);
    // Models in folders of the same name are other files. ("model/" and "." have no file name.)
    constexpr std::size_t shown = 12;
    const auto file =
        folder / fmt::format("{}-{}.gguf", fs::canonical(model).filename().string(), digest.substr(0, shown));
    const ConversionRecord record(file);
    if (record.speaks_of(digest, progress)) {
        progress.info(fmt::format("Using {}, which was converted before.", file.string()));
        return file;
    }
    ConvertOptions options;
    options.folder = model;
    options.output = file;
    // Nobody else gives a file this name: it is what an interrupted conversion left, or was changed since.
    options.overwrite = true;
    convert_model(options, progress);
    record.write(digest, progress);
    return file;
}

}  // namespace cerebellum
