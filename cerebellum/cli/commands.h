#pragma once

#include <CLI/CLI.hpp>
#include <functional>

namespace cerebellum::cli {

/// Each adds one subcommand and returns what runs it. The returned function is called only if the subcommand was given;
/// what it returns is the exit code.
using Command = std::function<int()>;
Command add_quantize(CLI::App& app);
Command add_ablate(CLI::App& app);
Command add_allocate(CLI::App& app);
Command add_import(CLI::App& app);
Command add_journal(CLI::App& app);
Command add_build(CLI::App& app);
Command add_convert(CLI::App& app);
Command add_verify(CLI::App& app);
Command add_verify_derivation(CLI::App& app);
Command add_inspect(CLI::App& app);
Command add_frontier(CLI::App& app);
Command add_recipe(CLI::App& app);
Command add_compare(CLI::App& app);
Command add_imatrix(CLI::App& app);
Command add_explain(CLI::App& app);
Command add_interactions(CLI::App& app);
Command add_eval(CLI::App& app);
Command add_memory(CLI::App& app);
Command add_compare_evals(CLI::App& app);
Command add_show(CLI::App& app);
Command add_card(CLI::App& app);
Command add_modelfile(CLI::App& app);
Command add_publish(CLI::App& app);
Command add_doctor(CLI::App& app);
Command add_completion(CLI::App& app);
Command add_man(CLI::App& app);
Command add_report(CLI::App& app);

}  // namespace cerebellum::cli
