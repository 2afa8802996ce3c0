#pragma once

#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "cerebellum/core/child_process.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/leftovers.h"
#include "cerebellum/core/progress.h"
#include "cerebellum/llama/model.h"

namespace cerebellum {

struct LlamaServerSettings {
    std::filesystem::path executable;  // empty: llama-server beside this program, else on the PATH
    int slots = 4;
    int context_per_slot = 4096;
    std::string cache_type = "f16";
    int threads = 1;
    RunPlace place;
    bool thinking = false;
    int start_timeout_s = 600;  // for loading the file
};

/// A port of this machine that nothing listens on at the moment. Throws Error where there is none.
int free_port();

/// A llama-server process of our own on a free port of this machine, with Jinja templates; it ends with this object,
/// and with this program however that ends.
class LlamaServer {
  public:
    /// Starts it and waits until it is ready. Throws Error with its last words where it does not get there.
    LlamaServer(const std::filesystem::path& model, const LlamaServerSettings& settings, Progress& progress);
    ~LlamaServer();
    LlamaServer(const LlamaServer&) = delete;
    LlamaServer& operator=(const LlamaServer&) = delete;

    std::string url() const;
    bool running();
    /// Most resident memory it has had, in bytes; 0 where the system does not say.
    std::uint64_t peak_resident_bytes() const;
    pid_t process() const { return process_->process(); }

  private:
    void wait_until_ready(int timeout_s, Progress& progress);
    std::string last_words() const;

    std::filesystem::path executable_;
    ScratchFile log_;
    Leftover leftover_;
    int port_ = 0;
    std::optional<ChildProcess> process_;
};

}  // namespace cerebellum
