#include <memory>
#include <vector>

#include "cerebellum/cli/eval_commands.h"

namespace cerebellum::cli {

Command add_eval(CLI::App& app) {
    auto* group = app.add_subcommand("eval", "Judge files: perplexity, divergence from the source, benchmarks, speed");
    group->require_subcommand(1);
    auto commands = std::make_shared<std::vector<Command>>(std::vector<Command>{
        add_eval_ppl(*group),
        add_eval_kld(*group),
        add_eval_choice(*group),
        add_eval_chat(*group),
        add_eval_code(*group),
        add_eval_speed(*group),
        add_eval_serve(*group),
        add_eval_audit(*group),
        add_eval_rejudge(*group),
    });
    return [group, commands] {
        const auto& subcommands = group->get_subcommands([](const CLI::App*) { return true; });
        for (std::size_t i = 0; i < commands->size(); ++i)
            if (subcommands[i]->parsed()) return (*commands)[i]();
        return 2;
    };
}

}  // namespace cerebellum::cli
