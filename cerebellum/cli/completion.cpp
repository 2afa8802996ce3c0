#include <fmt/format.h>

#include "cerebellum/cli/command_tree.h"
#include "cerebellum/cli/commands.h"

namespace cerebellum::cli {

Command add_completion(CLI::App& app) {
    auto shell = std::make_shared<std::string>();
    auto* command = app.add_subcommand("completion", "Print the completion of this program for a shell");
    command->footer(
        "Examples:\n"
        "  cerebellum completion bash > ~/.local/share/bash-completion/completions/cerebellum\n"
        "  cerebellum completion zsh > ~/.zfunc/_cerebellum    # a folder of $fpath\n"
        "  cerebellum completion fish > ~/.config/fish/completions/cerebellum.fish\n\n"
        "'cmake --install' puts all three where the shells look.");
    command->add_option("shell", *shell, "bash, zsh or fish")
        ->required()
        ->type_name("SHELL")
        ->check(CLI::IsMember({"bash", "zsh", "fish"}));
    return [&app, shell] {
        fmt::print("{}", completion_script(document(app), *shell));
        return 0;
    };
}

}  // namespace cerebellum::cli
