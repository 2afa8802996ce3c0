#include "cerebellum/pipeline/member.h"

#include <fmt/format.h>
#include <unistd.h>
#include <cstdlib>

#include <algorithm>
#include <thread>

#include "cerebellum/core/error.h"
#include "cerebellum/core/leftovers.h"
#include "cerebellum/core/parallel.h"

namespace cerebellum {

namespace {

/// A folder for one process, gone with it.
class OwnFolder {
  public:
    explicit OwnFolder(const std::filesystem::path& parent) {
        auto name = (parent / "cerebellum-rank-XXXXXX").string();
        if (::mkdtemp(name.data()) == nullptr)
            throw Error(fmt::format("cannot make a folder in {}; name another one with --scratch", parent.string()));
        path_ = name;
        remember_leftover(path_);
    }
    ~OwnFolder() {
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
        forget_leftover(path_);
    }
    OwnFolder(const OwnFolder&) = delete;
    OwnFolder& operator=(const OwnFolder&) = delete;
    const std::filesystem::path& path() const { return path_; }

  private:
    std::filesystem::path path_;
};

/// Whether mpirun has bound this process to some of the machine's processors. Then they are its share already.
bool is_bound() {
    return static_cast<long>(std::thread::hardware_concurrency()) < ::sysconf(_SC_NPROCESSORS_ONLN);
}

}  // namespace

RunOptions options_of_rank(RunOptions options, const Group& group) {
    std::vector<std::string> devices;
    for (std::size_t begin = 0; begin <= options.device.size();) {
        const auto end = std::min(options.device.find(',', begin), options.device.size());
        devices.push_back(options.device.substr(begin, end - begin));
        begin = end + 1;
    }
    if (devices.size() > 1 && group.size() == 1)
        throw UsageError(fmt::format("--device {}: several devices are for several processes; start them with mpirun",
                                     options.device));
    if (!options.rpc.empty() && group.size() > 1)
        throw UsageError("--rpc: a server works for one process at a time; leave mpirun out");
    options.device = devices[static_cast<std::size_t>(group.local_rank()) % devices.size()];
    if (options.threads <= 0 && group.size() > 1)
        options.threads = is_bound() ? physical_cores() : std::max(1, physical_cores() / group.local_size());
    return options;
}

bool take_part(Group& group, RunOptions options, Progress& progress) {
    try {
        const OwnFolder folder(options.limits.scratch_folder.empty() ? std::filesystem::temp_directory_path()
                                                                     : options.limits.scratch_folder);
        options.journal = folder.path() / "journal.db";
        Session session(std::move(options), progress);
        session.take_part(group);
        return true;
    } catch (const Interrupted&) {
        return true;
    } catch (const std::exception& error) {
        give_up(group, error.what());
        return false;
    }
}

}  // namespace cerebellum
