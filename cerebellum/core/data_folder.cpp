#include "cerebellum/core/data_folder.h"

#include <fmt/format.h>

#include <cstdlib>
#include <vector>

#include "cerebellum/core/error.h"

namespace cerebellum {

namespace fs = std::filesystem;

namespace {

fs::path from_environment(const char* variable) {
    const char* value = std::getenv(variable);
    return value != nullptr ? value : "";
}

}  // namespace

fs::path data_folder(const std::string& name) {
    std::vector<fs::path> folders;
    if (const auto given = from_environment("CEREBELLUM_DATA"); !given.empty()) {
        folders.push_back(given);
    } else {
        std::error_code unknown;
        if (const auto program = fs::read_symlink("/proc/self/exe", unknown); !unknown) {
            folders.push_back(program.parent_path() / "share/cerebellum");
            folders.push_back(program.parent_path().parent_path() / "share/cerebellum");
        }
        folders.emplace_back(CEREBELLUM_INSTALLED_DATA);
    }
    std::string searched;
    for (const auto& folder : folders) {
        std::error_code code;
        if (fs::is_directory(folder / name, code)) return folder / name;
        searched += fmt::format("{}{}", searched.empty() ? "" : ", ", folder.string());
    }
    throw Error(
        fmt::format("the folder '{}' of this installation is missing (looked in {}); install it again, or name "
                    "the folder that holds it in CEREBELLUM_DATA",
                    name, searched));
}

fs::path cache_folder() {
    if (auto given = from_environment("CEREBELLUM_CACHE"); !given.empty()) return given;
    if (const auto given = from_environment("XDG_CACHE_HOME"); !given.empty()) return given / "cerebellum";
    if (const auto home = from_environment("HOME"); !home.empty()) return home / ".cache" / "cerebellum";
    throw Error("there is no folder to keep things in: neither HOME nor XDG_CACHE_HOME nor CEREBELLUM_CACHE is set");
}

}  // namespace cerebellum
