#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace cerebellum::cli {

/// What --help knows of an option or a positional argument, read from the parser itself: completions and manual pages
/// are made of this, so that they say what the parser does.
struct OptionDoc {
    enum class Value { none, file, folder, choice, other };
    std::vector<std::string> names;  // "-o", "--output"; none where it is only an argument
    std::string label;               // what stands for the value: "FILE"; empty for a flag
    std::string help;
    std::string group;
    std::string default_value;
    std::vector<std::string> choices;
    Value value = Value::none;
    bool positional = false;  // may be given without its name
    bool required = false;
    bool repeatable = false;
};

struct CommandDoc {
    std::vector<std::string> path;  // "cerebellum", "imatrix", "merge"
    std::string description;
    std::string footer;
    std::vector<OptionDoc> options;
    std::vector<CommandDoc> subcommands;

    /// The path with a separator: "cerebellum imatrix merge".
    std::string name(char separator = ' ') const;
};

CommandDoc document(const CLI::App& app);

/// The command and all below it, each before its subcommands.
std::vector<const CommandDoc*> all_commands(const CommandDoc& root);

/// A script for "bash", "zsh" or "fish".
std::string completion_script(const CommandDoc& root, const std::string& shell);

/// A manual page in roff (man(7)).
std::string manual_page(const CommandDoc& command);

}  // namespace cerebellum::cli
