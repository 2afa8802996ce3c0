#include "cerebellum/core/lfs_pointer.h"

#include <fmt/format.h>

#include <cstdint>
#include <system_error>

#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"

namespace cerebellum {

namespace fs = std::filesystem;

void check_no_lfs_pointer(const fs::path& path, std::string_view beginning) {
    if (beginning.starts_with("version https://git-lfs.github.com/spec/"))
        throw Error(fmt::format(
            "cannot use {}: it is a Git LFS pointer and not the file itself; fetch that with 'git lfs pull' or 'hf "
            "download'",
            path.string()));
}

void check_no_lfs_pointer(const fs::path& path) {
    constexpr std::uintmax_t longest = 1024;  // Git LFS itself takes nothing longer for a pointer
    std::error_code code;
    if (fs::is_regular_file(path, code) && fs::file_size(path, code) < longest) read_file(path);
}

}  // namespace cerebellum
