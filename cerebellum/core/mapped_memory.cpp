#include "cerebellum/core/mapped_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

namespace cerebellum {

namespace {

struct Mapping {
    std::uintptr_t begin = 0;
    std::uintptr_t end = 0;
    std::string path;
};

/// The read-only mappings of files, as the kernel lists them; none where there is no such list.
std::vector<Mapping> file_mappings() {
    std::vector<Mapping> result;
    std::ifstream list("/proc/self/maps");
    std::string line;
    while (std::getline(list, line)) {
        unsigned long begin = 0, end = 0, inode = 0;
        char permissions[5] = {};
        int path_at = 0;
        if (std::sscanf(line.c_str(), "%lx-%lx %4s %*x %*x:%*x %lu %n", &begin, &end, permissions, &inode, &path_at) <
            4)
            continue;
        if (inode == 0 || permissions[1] == 'w' || path_at == 0) continue;
        result.push_back({begin, end, line.substr(static_cast<std::size_t>(path_at))});
    }
    return result;
}

void drop(std::uintptr_t begin, std::uintptr_t end) {
    const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
    begin = (begin + page - 1) / page * page;
    end = end / page * page;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

}  // namespace

void drop_pages(std::span<const std::byte> bytes) {
    const auto begin = reinterpret_cast<std::uintptr_t>(bytes.data());
    const auto end = begin + bytes.size();
    // Dropping a page of anonymous memory would lose its content.
    for (const auto& mapping : file_mappings())
        if (mapping.begin <= begin && end <= mapping.end) drop(begin, end);
}

void drop_pages(const std::filesystem::path& file) {
    std::error_code error;
    const auto path = std::filesystem::canonical(file, error);
    if (error) return;
    for (const auto& mapping : file_mappings())
        if (mapping.path == path.string()) drop(mapping.begin, mapping.end);
}

}  // namespace cerebellum
