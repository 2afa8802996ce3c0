#pragma once

#include <CLI/CLI.hpp>

namespace cerebellum::cli {

/// Adds --config: a TOML file of defaults for options that are not given. Without it the user's own file is read, if
/// there is one: $XDG_CONFIG_HOME/cerebellum/config.toml, else ~/.config/cerebellum/config.toml.
///
/// A key is the long name of an option. In front of the first section it holds for every command that has the option,
/// in a section for that command and those below it; the closer section wins. Keys and sections that no command has are
/// refused, so that nothing is misspelled in silence.
void add_defaults_file(CLI::App& app);

}  // namespace cerebellum::cli
