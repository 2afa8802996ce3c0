#pragma once

// For tests only: temporary folders, small GGUF files, llama.cpp's tools as referees.

#include <ggml.h>
#include <gguf.h>
#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/gguf/gguf_write.h"

namespace cerebellum::testing {

namespace fs = std::filesystem;

inline fs::path small_model() {
    return fs::path(CEREBELLUM_SOURCE_DIR) / "models" / "wikicode-6.8M-f16.gguf";
}

/// A folder of its own for the running test, removed at the end.
class TemporaryFolder {
  public:
    TemporaryFolder() {
        std::string pattern = (fs::temp_directory_path() / "cerebellum-test-XXXXXX").string();
        path_ = ::mkdtemp(pattern.data());
    }
    ~TemporaryFolder() {
        std::error_code code;
        fs::remove_all(path_, code);
    }
    TemporaryFolder(const TemporaryFolder&) = delete;
    TemporaryFolder& operator=(const TemporaryFolder&) = delete;
    fs::path operator/(const std::string& name) const { return path_ / name; }
    const fs::path& path() const { return path_; }

  private:
    fs::path path_;
};

inline std::string quoted(const fs::path& path) {
    std::string text = "'";
    for (const char c : path.string()) text += c == '\'' ? std::string("'\\''") : std::string(1, c);
    return text + "'";
}

inline bool have_referees() {
    return !std::string_view(CEREBELLUM_REFEREE_BIN).empty();
}

/// Runs one of llama.cpp's tools in `folder`; its output is shown where it fails.
inline bool run_referee(const std::string& tool, const std::string& arguments, const fs::path& folder) {
    const fs::path log = folder / (tool + ".log");
    const std::string command = "cd " + quoted(folder) + " && " + quoted(fs::path(CEREBELLUM_REFEREE_BIN) / tool) +
                                " " + arguments + " >" + quoted(log) + " 2>&1 </dev/null";
    const bool good = std::system(command.c_str()) == 0;
    if (!good) ADD_FAILURE() << command << "\n" << read_file(log);
    return good;
}

struct TestTensor {
    std::string name;
    ggml_type type;
    std::array<std::int64_t, 4> shape;
};

/// A GGUF with these tensors, holding normally distributed weights, and whatever `set_metadata` adds.
template <typename SetMetadata>
void write_test_gguf(const fs::path& path, const std::vector<TestTensor>& tensors, SetMetadata&& set_metadata) {
    GgufContext context(gguf_init_empty());
    gguf_set_val_str(context.get(), "general.architecture", "llama");
    set_metadata(context.get());
    for (const auto& tensor : tensors) add_tensor(context.get(), tensor.name, tensor.type, tensor.shape);
    AtomicFile file(path);
    const auto metadata = metadata_bytes(context.get());
    file.write(metadata.data(), metadata.size());
    std::mt19937 random(7);
    std::normal_distribution<float> normal(0.0f, 0.05f);
    for (const auto& tensor : tensors) {
        const auto rows = tensor.shape[1] * tensor.shape[2] * tensor.shape[3];
        std::vector<float> floats(static_cast<std::size_t>(tensor.shape[0] * rows));
        for (float& value : floats) value = normal(random);
        std::vector<std::byte> bytes(padded_bytes(type_size_bytes(tensor.type, tensor.shape[0], rows)));
        ggml_quantize_chunk(tensor.type, floats.data(), bytes.data(), 0, rows, tensor.shape[0], nullptr);
        file.write(bytes.data(), bytes.size());
    }
    file.commit();
}

/// The message of the Error that `body` throws; empty (and a failure) where it throws none.
template <typename Body>
std::string error_of(Body&& body) {
    try {
        body();
    } catch (const Error& problem) {
        std::string text = problem.what();
        EXPECT_EQ(text.find('\n'), std::string::npos) << text;
        return text;
    }
    ADD_FAILURE() << "no Error was thrown";
    return "";
}

}  // namespace cerebellum::testing
