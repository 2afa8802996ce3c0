#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>

#include "cerebellum/cli/command_tree.h"
#include "cerebellum/cli/commands.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"

namespace cerebellum::cli {

Command add_man(CLI::App& app) {
    struct Values {
        std::vector<std::string> words;
        std::string folder;
    };
    auto values = std::make_shared<Values>();
    auto* command = app.add_subcommand("man", "Print the manual page of a command, in roff");
    command->footer(
        "Examples:\n  cerebellum man quantize | man -l -\n  cerebellum man --folder ~/.local/share/man/man1\n\n"
        "The pages are made of what --help knows; 'cmake --install' puts them where man looks.");
    command->add_option("command", values->words, "The command (default: the program itself), as 'imatrix merge'")
        ->type_name("COMMAND");
    command->add_option("--folder", values->folder, "Write the pages of all commands into this folder instead")
        ->type_name("FOLDER");
    return [&app, values] {
        const auto root = document(app);
        const auto commands = all_commands(root);
        if (!values->folder.empty()) {
            if (!values->words.empty())
                throw UsageError("--folder writes the pages of all commands; leave out the command");
            const std::filesystem::path folder = values->folder;
            std::error_code error;
            std::filesystem::create_directories(folder, error);
            if (error) throw Error(fmt::format("cannot make the folder {}: {}", folder.string(), error.message()));
            for (const auto* each : commands)
                write_file_atomically(folder / (each->name('-') + ".1"), manual_page(*each));
            return 0;
        }
        std::vector<std::string> path = {"cerebellum"};
        path.insert(path.end(), values->words.begin(), values->words.end());
        const auto found = std::ranges::find(commands, path, [](const auto* each) { return each->path; });
        if (found == commands.end())
            throw UsageError(
                fmt::format("there is no command '{}'; see 'cerebellum --help'", fmt::join(values->words, " ")));
        fmt::print("{}", manual_page(**found));
        return 0;
    };
}

}  // namespace cerebellum::cli
