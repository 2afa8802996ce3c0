#include "cerebellum/cli/defaults.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <functional>

#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"

namespace cerebellum::cli {

namespace fs = std::filesystem;

namespace {

std::string users_file() {
    if (const char* config = std::getenv("XDG_CONFIG_HOME"); config != nullptr && *config != '\0')
        return (fs::path(config) / "cerebellum" / "config.toml").string();
    if (const char* home = std::getenv("HOME"); home != nullptr && *home != '\0')
        return (fs::path(home) / ".config" / "cerebellum" / "config.toml").string();
    return "";
}

std::vector<const CLI::App*> below(const CLI::App& app) {
    return app.get_subcommands([](const CLI::App*) { return true; });
}

/// Turns each key into one for every command that it holds for and that was given, those of closer sections first:
/// the parser takes the first value that it gets for an option.
class Defaults final : public CLI::ConfigTOML {
  public:
    explicit Defaults(const CLI::App& app) : app_(app) {}

    std::vector<CLI::ConfigItem> from_config(std::istream& input) const override {
        auto keys = CLI::ConfigTOML::from_config(input);
        std::erase_if(keys, [](const auto& item) { return item.name == "++" || item.name == "--"; });
        std::ranges::stable_sort(keys, std::ranges::greater{}, [](const auto& item) { return item.parents.size(); });
        std::vector<CLI::ConfigItem> result;
        for (const auto& item : keys) {
            const CLI::App* command = &app_;
            for (const auto& name : item.parents) {
                const auto commands = below(*command);
                const auto found = std::ranges::find(commands, name, [](const auto* each) { return each->get_name(); });
                if (found == commands.end())
                    throw UsageError(
                        fmt::format("the file of defaults has a section [{}], but there is no such "
                                    "command; see 'cerebellum --help'",
                                    fmt::join(item.parents, ".")));
                command = *found;
            }
            if (is_reserved(item.name) || !spread(*command, item.parents, item, result))
                throw UsageError(fmt::format(
                    "the file of defaults sets '{}', but no command{} has an option --{} that "
                    "can have a default; keys are long names of options",
                    item.fullname(),
                    item.parents.empty() ? std::string() : fmt::format(" [{}]", fmt::join(item.parents, ".")),
                    item.name));
        }
        return result;
    }

  private:
    static bool is_reserved(const std::string& name) { return name == "help" || name == "config" || name == "version"; }

    /// Whether the command, or one below it, has the option.
    static bool spread(const CLI::App& command, const std::vector<std::string>& path, const CLI::ConfigItem& item,
                       std::vector<CLI::ConfigItem>& result) {
        const auto* option = command.get_option_no_throw("--" + item.name);
        bool known = option != nullptr;
        if (known && command.count() > 0) {
            result.push_back(item);
            result.back().parents = path;
        }
        for (const auto* each : below(command)) {
            auto deeper = path;
            deeper.push_back(each->get_name());
            known |= spread(*each, deeper, item, result);
        }
        return known;
    }

    const CLI::App& app_;
};

}  // namespace

void add_defaults_file(CLI::App& app) {
    app.set_config("--config", users_file(), "Defaults for options that are not given (TOML; see docs/cli.md)")
        ->check(
            [](const std::string& file) {
                check_regular(file);  // throws
                return std::string();
            },
            "")
        ->type_name("FILE");
    app.config_formatter(std::make_shared<Defaults>(app));
}

}  // namespace cerebellum::cli
