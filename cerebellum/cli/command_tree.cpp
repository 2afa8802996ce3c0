#include "cerebellum/cli/command_tree.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

namespace cerebellum::cli {

namespace {

/// "{kld,nll,top1}" in what CLI11 says of an option's values.
std::vector<std::string> choices_of(const CLI::Option& option) {
    const auto text = option.get_type_name();
    const auto open = text.find('{'), close = text.rfind('}');
    if (open == std::string::npos || close == std::string::npos || close < open) return {};
    return CLI::detail::split(text.substr(open + 1, close - open - 1), ',');
}

OptionDoc::Value value_of(const OptionDoc& option, bool takes_value) {
    if (!takes_value) return OptionDoc::Value::none;
    if (!option.choices.empty()) return OptionDoc::Value::choice;
    const auto& label = option.label;
    if (label.find("FOLDER") != std::string::npos) return OptionDoc::Value::folder;
    const bool file = label.find("FILE") != std::string::npos || label.find("PATH") != std::string::npos ||
                      label.find(".gguf") != std::string::npos || label.find("PROGRAM") != std::string::npos ||
                      label.find("JOURNAL") != std::string::npos;
    return file ? OptionDoc::Value::file : OptionDoc::Value::other;
}

OptionDoc document(const CLI::Option& option) {
    OptionDoc doc;
    doc.positional = option.get_positional();
    for (const auto& [prefix, names] : {std::pair{"-", &option.get_snames()}, std::pair{"--", &option.get_lnames()}})
        for (const auto& name : *names) doc.names.push_back(prefix + name);
    doc.help = option.get_description();
    doc.group = option.get_group();
    if (option.get_name() != "--config") doc.default_value = option.get_default_str();  // that one names a home
    doc.choices = choices_of(option);
    doc.required = option.get_required();
    doc.repeatable = option.get_items_expected_max() > 1;
    const bool takes_value = option.get_items_expected_max() > 0;
    if (takes_value) {
        auto label = option.get_type_name();
        if (const auto end = label.find(':'); end != std::string::npos) label.resize(end);
        doc.label = label.empty() ? "VALUE" : label;
        if (!doc.choices.empty()) doc.label = fmt::format("{}", fmt::join(doc.choices, "|"));
    }
    doc.value = value_of(doc, takes_value);
    return doc;
}

CommandDoc document(const CLI::App& app, std::vector<std::string> path) {
    CommandDoc doc;
    doc.path = std::move(path);
    doc.description = app.get_description();
    doc.footer = app.get_footer();
    for (const auto* option : app.get_options([](const CLI::Option*) { return true; }))
        if (!option->get_group().empty()) doc.options.push_back(document(*option));
    for (const auto* subcommand : app.get_subcommands([](const CLI::App*) { return true; })) {
        auto below = doc.path;
        below.push_back(subcommand->get_name());
        doc.subcommands.push_back(document(*subcommand, std::move(below)));
    }
    return doc;
}

void collect(const CommandDoc& command, std::vector<const CommandDoc*>& all) {
    all.push_back(&command);
    for (const auto& subcommand : command.subcommands) collect(subcommand, all);
}

}  // namespace

std::string CommandDoc::name(char separator) const {
    std::string text;
    for (const auto& word : path) text += (text.empty() ? "" : std::string(1, separator)) + word;
    return text;
}

CommandDoc document(const CLI::App& app) {
    return document(app, {"cerebellum"});
}

std::vector<const CommandDoc*> all_commands(const CommandDoc& root) {
    std::vector<const CommandDoc*> all;
    collect(root, all);
    return all;
}

}  // namespace cerebellum::cli
