// libFuzzer target: any bytes as a model and as an importance matrix. An Error is a good answer; anything else that
// ends the program is not. Run by scripts/fuzz.sh.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <span>
#include <string>

#include "cerebellum/core/error.h"
#include "cerebellum/core/progress.h"
#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/gguf/imatrix_file.h"

namespace {

/// A file without a name that holds these bytes.
class MemoryFile {
  public:
    MemoryFile(const std::uint8_t* data, std::size_t size) : descriptor_(::memfd_create("fuzz", MFD_CLOEXEC)) {
        if (descriptor_ < 0 || ::write(descriptor_, data, size) != static_cast<ssize_t>(size)) std::abort();
    }
    ~MemoryFile() { ::close(descriptor_); }
    MemoryFile(const MemoryFile&) = delete;
    MemoryFile& operator=(const MemoryFile&) = delete;
    std::string path() const { return "/proc/self/fd/" + std::to_string(descriptor_); }

  private:
    int descriptor_;
};

void use_model(const std::string& path) {
    const auto file = cerebellum::GgufFile::open(path);
    if (file.metadata_json().dump().empty() || file.fingerprint().size() != 64) std::abort();
    std::uint64_t weights = 0;
    for (const auto& tensor : file.tensors()) {
        if (file.find(tensor.name) == nullptr) std::abort();
        weights += static_cast<std::uint64_t>(tensor.n_weights());
        const auto data = file.data(tensor);
        // Every byte that the file claims to have is there.
        std::array<std::byte, 64> some{};
        const auto part = std::span(some).first(std::min<std::size_t>(some.size(), data.size()));
        file.read(tensor, data.size() - part.size(), part);
        if (!std::ranges::equal(part, data.last(part.size()))) std::abort();
    }
    if (weights != file.n_weights()) std::abort();
    static_cast<void>(file.string_array("tokenizer.ggml.tokens"));
    static_cast<void>(file.uint_value("llama.block_count"));
    static_cast<void>(file.architecture());
}

void use_imatrix(const std::string& path) {
    for (const auto& [name, entry] : cerebellum::read_imatrix(path).entries)
        if (cerebellum::quantization_weights(entry).size() != entry.in_sum2.size()) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const MemoryFile file(data, size);
    for (auto* use : {use_model, use_imatrix}) try {
            use(file.path());
        } catch (const cerebellum::Error&) {
        }
    return 0;
}
