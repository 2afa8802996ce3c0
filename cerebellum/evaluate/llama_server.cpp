#include "cerebellum/evaluate/llama_server.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <thread>
#include <vector>

#include "cerebellum/core/error.h"
#include "cerebellum/core/proc_files.h"
#include "cerebellum/evaluate/http_client.h"
#include "cerebellum/version.h"

namespace cerebellum {

namespace fs = std::filesystem;

namespace {

fs::path find_executable(const fs::path& wanted) {
    if (!wanted.empty()) {
        if (access(wanted.c_str(), X_OK) != 0)
            throw Error(fmt::format("{} cannot be run as llama-server: {}", wanted.string(), std::strerror(errno)));
        return fs::absolute(wanted);
    }
    std::error_code error;
    auto own = fs::read_symlink("/proc/self/exe", error).parent_path() / "llama-server";
    if (!error && access(own.c_str(), X_OK) == 0) return own;
    std::istringstream folders(std::getenv("PATH") != nullptr ? std::getenv("PATH") : "");
    for (std::string folder; std::getline(folders, folder, ':');)
        if (auto path = fs::path(folder) / "llama-server"; access(path.c_str(), X_OK) == 0) return path;
    throw Error(
        fmt::format("there is no llama-server beside this program or on the PATH; name one of llama.cpp {} by "
                    "--llama-server, or a running one by --server",
                    CEREBELLUM_LLAMA_VERSION));
}

/// RPC servers have names of their own there, in the order in which they are given.
void add_devices(const std::vector<std::string>& devices, std::vector<std::string>& arguments) {
    std::vector<std::string> names, servers;
    for (const auto& device : devices) {
        const bool is_server = device.find(':') != std::string::npos;
        names.push_back(is_server ? fmt::format("RPC{}", servers.size()) : device);
        if (is_server) servers.push_back(device);
    }
    if (!servers.empty()) arguments.insert(arguments.end(), {"--rpc", fmt::format("{}", fmt::join(servers, ","))});
    arguments.insert(arguments.end(), {"--device", fmt::format("{}", fmt::join(names, ","))});
}

std::vector<std::string> arguments_of(const fs::path& executable, const fs::path& model,
                                      const LlamaServerSettings& settings, int port) {
    std::vector<std::string> arguments = {executable.string(),
                                          "--model",
                                          model.string(),
                                          "--host",
                                          "127.0.0.1",
                                          "--port",
                                          std::to_string(port),
                                          "--parallel",
                                          std::to_string(settings.slots),
                                          "--ctx-size",
                                          std::to_string(settings.slots * settings.context_per_slot),
                                          "--cache-type-k",
                                          settings.cache_type,
                                          "--cache-type-v",
                                          settings.cache_type,
                                          "--threads",
                                          std::to_string(settings.threads),
                                          "--gpu-layers",
                                          std::to_string(settings.place.gpu_layers),
                                          "--jinja"};
    if (settings.place.gpu_layers == 0)
        arguments.insert(arguments.end(), {"--device", "none"});
    else if (!settings.place.devices.empty())
        add_devices(settings.place.devices, arguments);
    if (!settings.place.repack) arguments.emplace_back("--no-repack");
    if (!settings.thinking) arguments.insert(arguments.end(), {"--reasoning", "off"});
    return arguments;
}

}  // namespace

int free_port() {
    const int socket_descriptor = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    const bool good = socket_descriptor >= 0 &&
                      bind(socket_descriptor, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0 &&
                      getsockname(socket_descriptor, reinterpret_cast<sockaddr*>(&address), &size) == 0;
    const int problem = errno;
    if (socket_descriptor >= 0) close(socket_descriptor);
    if (!good) throw Error(fmt::format("no port is free for llama-server: {}", std::strerror(problem)));
    return ntohs(address.sin_port);
}

LlamaServer::LlamaServer(const fs::path& model, const LlamaServerSettings& settings, Progress& progress)
    : executable_(find_executable(settings.executable)),
      log_(fs::temp_directory_path() / fmt::format("cerebellum-llama-server-{}-{}.log", getpid(), free_port())),
      leftover_(log_.path()),
      port_(free_port()) {
    const Descriptor log(open(log_.path().c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    if (log.number() < 0) throw Error(fmt::format("cannot write {}: {}", log_.path().string(), std::strerror(errno)));
    ChildCommand command;
    command.arguments = arguments_of(executable_, model, settings, port_);
    command.output = log.number();
    process_.emplace(command);
    wait_until_ready(settings.start_timeout_s, progress);
}

void LlamaServer::wait_until_ready(int timeout_s, Progress& progress) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(timeout_s);
    const auto address = parse_url(url(), "the server");
    HttpLimits limits;
    limits.seconds = 5.0;
    limits.connect_seconds = 1.0;
    while (std::chrono::steady_clock::now() < deadline) {
        progress.check();
        if (!running()) throw Error(fmt::format("{} could not serve the file: {}", executable_.string(), last_words()));
        const auto reply = http_exchange(address, "/health", "", "", limits);
        if (reply.end == HttpReply::End::answered && reply.status == 200) return;
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
    throw Error(fmt::format("{} was not ready after {} s", executable_.string(), timeout_s));
}

LlamaServer::~LlamaServer() {
    if (process_) process_->end(std::chrono::seconds(5));
}

std::string LlamaServer::url() const {
    return fmt::format("http://127.0.0.1:{}", port_);
}

bool LlamaServer::running() {
    return !process_->ended();
}

std::uint64_t LlamaServer::peak_resident_bytes() const {
    return status_bytes(proc_text(fmt::format("/proc/{}/status", process())), "VmHWM");
}

/// The last line of its log that speaks of an error; else the last one.
std::string LlamaServer::last_words() const {
    std::istringstream log(read_file(log_.path()));
    std::string last, error;
    for (std::string line; std::getline(log, line);) {
        if (line.empty()) continue;
        last = line;
        if (line.find("error") != std::string::npos || line.find("failed") != std::string::npos) error = line;
    }
    return error.empty() ? last : error;
}

}  // namespace cerebellum
