#include <fmt/format.h>

#include <algorithm>

#include "cerebellum/cli/command_tree.h"
#include "cerebellum/core/error.h"

namespace cerebellum::cli {

namespace {

/// In single quotes, as all three shells read it.
std::string quoted(const std::string& text, bool fish = false) {
    std::string result = "'";
    for (const char c : text) {
        if (c == '\'')
            result += fish ? "\\'" : "'\\''";
        else if (c == '\\' && fish)
            result += "\\\\";
        else
            result += c == '\n' ? ' ' : c;
    }
    return result + "'";
}

/// The first sentence, or what stands in front of the first remark.
std::string brief(const std::string& help) {
    const auto end = std::min({help.find(". "), help.find("; "), help.find('\n')});
    return end == std::string::npos ? help : help.substr(0, end);
}

std::string words(const std::vector<std::string>& list) {
    std::string text;
    for (const auto& word : list) text += (text.empty() ? "" : " ") + word;
    return text;
}

/// "'cerebellum quantize:--text'|…" for all options of these kinds; empty where there are none.
std::string keys(const CommandDoc& command, OptionDoc::Value value) {
    std::string text;
    for (const auto& option : command.options)
        if (option.value == value)
            for (const auto& name : option.names)
                text += (text.empty() ? "" : "|") + quoted(command.name() + ":" + name);
    return text;
}

/// Lines of a case that walks over the words in front of the cursor to the command that is being written.
std::string walk(const CommandDoc& root, const char* indent) {
    std::string text;
    for (const auto* command : all_commands(root))
        if (command->path.size() > 1) {
            const auto name = command->name();
            text += fmt::format("{}{}) command={} ;;\n", indent, quoted(name), quoted(name));
        }
    return text;
}

std::string bash_script(const CommandDoc& root) {
    std::string values, lists;
    for (const auto* command : all_commands(root)) {
        if (const auto all = keys(*command, OptionDoc::Value::file); !all.empty())
            values += fmt::format("    {}) COMPREPLY=($(compgen -f -- \"$cur\")); return ;;\n", all);
        if (const auto all = keys(*command, OptionDoc::Value::folder); !all.empty())
            values += fmt::format("    {}) COMPREPLY=($(compgen -d -- \"$cur\")); return ;;\n", all);
        if (const auto all = keys(*command, OptionDoc::Value::other); !all.empty())
            values += fmt::format("    {}) compopt +o default 2>/dev/null; return ;;\n", all);
        std::vector<std::string> options, subcommands, choices;
        for (const auto& option : command->options) {
            if (option.names.empty()) {
                choices.insert(choices.end(), option.choices.begin(), option.choices.end());
                continue;
            }
            options.insert(options.end(), option.names.begin(), option.names.end());
            if (option.value != OptionDoc::Value::choice) continue;
            for (const auto& name : option.names)
                values += fmt::format("    {}) COMPREPLY=($(compgen -W {} -- \"$cur\")); return ;;\n",
                                      quoted(command->name() + ":" + name), quoted(words(option.choices)));
        }
        for (const auto& subcommand : command->subcommands) subcommands.push_back(subcommand.path.back());
        subcommands.insert(subcommands.end(), choices.begin(), choices.end());
        lists += fmt::format("    {}) options={}; words={} ;;\n", quoted(command->name()), quoted(words(options)),
                             quoted(words(subcommands)));
    }
    return fmt::format(R"(# bash completion for cerebellum, written by 'cerebellum completion bash'
_cerebellum() {{
  local cur=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}}
  local command=cerebellum options= words= i
  for ((i = 1; i < COMP_CWORD; i++)); do
    case "$command ${{COMP_WORDS[i]}}" in
{}    esac
  done
  COMPREPLY=()
  case "$command:$previous" in
{}  esac
  case "$command" in
{}  esac
  if [[ $cur == -* ]]; then
    COMPREPLY=($(compgen -W "$options" -- "$cur"))
  elif [[ -n $words ]]; then
    COMPREPLY=($(compgen -W "$words" -- "$cur"))
  else
    COMPREPLY=($(compgen -f -- "$cur"))
  fi
}}
complete -o filenames -o default -F _cerebellum cerebellum
)",
                       walk(root, "      "), values, lists);
}

/// An entry of zsh's _describe.
std::string described(const std::string& name, const std::string& help) {
    std::string escaped;
    for (const char c : name) escaped += c == ':' ? "\\:" : std::string(1, c);
    return quoted(escaped + ":" + brief(help));
}

std::string zsh_script(const CommandDoc& root) {
    std::string values, lists;
    for (const auto* command : all_commands(root)) {
        if (const auto all = keys(*command, OptionDoc::Value::file); !all.empty())
            values += fmt::format("    {}) _files; return ;;\n", all);
        if (const auto all = keys(*command, OptionDoc::Value::folder); !all.empty())
            values += fmt::format("    {}) _files -/; return ;;\n", all);
        if (const auto all = keys(*command, OptionDoc::Value::other); !all.empty())
            values += fmt::format("    {}) _message value; return ;;\n", all);
        std::string options, subcommands;
        for (const auto& option : command->options) {
            if (option.names.empty()) {
                for (const auto& choice : option.choices) subcommands += " " + described(choice, option.help);
                continue;
            }
            for (const auto& name : option.names) options += "\n      " + described(name, option.help);
            if (option.value != OptionDoc::Value::choice) continue;
            for (const auto& name : option.names)
                values += fmt::format("    {}) compadd -- {}; return ;;\n", quoted(command->name() + ":" + name),
                                      words(option.choices));
        }
        for (const auto& subcommand : command->subcommands)
            subcommands += "\n      " + described(subcommand.path.back(), subcommand.description);
        lists +=
            fmt::format("    {}) options=({}); words_here=({}) ;;\n", quoted(command->name()), options, subcommands);
    }
    return fmt::format(R"(#compdef cerebellum
# zsh completion for cerebellum, written by 'cerebellum completion zsh'
_cerebellum() {{
  local command=cerebellum i
  local -a options words_here
  for ((i = 2; i < CURRENT; i++)); do
    case "$command ${{words[i]}}" in
{}    esac
  done
  case "$command:${{words[CURRENT-1]}}" in
{}  esac
  case "$command" in
{}  esac
  if [[ ${{words[CURRENT]}} == -* ]]; then
    _describe -o option options
  elif (( ${{#words_here}} )); then
    _describe command words_here
  else
    _files
  fi
}}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then _cerebellum "$@"; else compdef _cerebellum cerebellum; fi
)",
                       walk(root, "      "), values, lists);
}

std::string fish_script(const CommandDoc& root) {
    std::string text = fmt::format(R"(# fish completion for cerebellum, written by 'cerebellum completion fish'
function __cerebellum_command
    set -l command cerebellum
    set -l given (commandline -opc)
    for word in $given[2..-1]
        switch "$command $word"
)");
    for (const auto* command : all_commands(root))
        if (command->path.size() > 1) {
            const auto name = quoted(command->name(), true);
            text += fmt::format("            case {}\n                set command {}\n", name, name);
        }
    text += R"(        end
    end
    echo $command
end
function __cerebellum_is
    test (__cerebellum_command) = $argv[1]
end
)";
    for (const auto* command : all_commands(root)) {
        const auto condition = fmt::format("\"__cerebellum_is '{}'\"", command->name());
        for (const auto& subcommand : command->subcommands)
            text += fmt::format("complete -c cerebellum -n {} -f -a {} -d {}\n", condition,
                                quoted(subcommand.path.back(), true), quoted(brief(subcommand.description), true));
        for (const auto& option : command->options) {
            const auto help = quoted(brief(option.help), true);
            if (option.names.empty()) {
                if (!option.choices.empty())
                    text += fmt::format("complete -c cerebellum -n {} -f -a {} -d {}\n", condition,
                                        quoted(words(option.choices), true), help);
                continue;
            }
            std::string line = fmt::format("complete -c cerebellum -n {}", condition);
            for (const auto& name : option.names)
                line += name.starts_with("--") ? " -l " + name.substr(2) : " -s " + name.substr(1);
            switch (option.value) {
                case OptionDoc::Value::none:
                    break;
                case OptionDoc::Value::file:
                    line += " -r -F";
                    break;
                case OptionDoc::Value::folder:
                    line += " -x -a '(__fish_complete_directories)'";
                    break;
                case OptionDoc::Value::choice:
                    line += " -x -a " + quoted(words(option.choices), true);
                    break;
                case OptionDoc::Value::other:
                    line += " -x";
                    break;
            }
            text += fmt::format("{} -d {}\n", line, help);
        }
    }
    return text;
}

}  // namespace

std::string completion_script(const CommandDoc& root, const std::string& shell) {
    if (shell == "bash") return bash_script(root);
    if (shell == "zsh") return zsh_script(root);
    if (shell == "fish") return fish_script(root);
    throw UsageError(fmt::format("there is no completion for '{}'; there is bash, zsh and fish", shell));
}

}  // namespace cerebellum::cli
