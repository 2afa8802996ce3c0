#include <fmt/format.h>

#include <exception>
#include <utility>
#include <vector>

#include "cerebellum/cli/commands.h"
#include "cerebellum/cli/terminal.h"
#include "cerebellum/core/error.h"
#include "cerebellum/llama/log.h"
#include "cerebellum/version.h"

namespace {

constexpr int exit_failure = 1;
constexpr int exit_usage = 2;

int run(int argc, char** argv) {
    using namespace cerebellum::cli;
    CLI::App app(
        "Cerebellum turns a high-precision GGUF model into the best mixed-precision GGUF that fits a size: it "
        "measures\n"
        "what each tensor loses at each quantization type inside the running model, spends the bytes where that\n"
        "damage is largest, builds a standard GGUF and proves it against the stock presets.\n\n"
        "  cerebellum quantize model-bf16.gguf --size 12GB -o model-12gb.gguf\n");
    app.set_version_flag("--version",
                         fmt::format("cerebellum {} (llama.cpp {})", CEREBELLUM_VERSION, CEREBELLUM_LLAMA_VERSION));
    app.require_subcommand(1);
    app.get_formatter()->column_width(30);
    std::vector<Command> commands = {add_quantize(app), add_ablate(app), add_allocate(app),
                                     add_build(app),    add_verify(app), add_inspect(app)};
    try {
        app.parse(argc, argv);
    } catch (const CLI::Success& asked_for_help) {
        return app.exit(asked_for_help);
    } catch (const CLI::ParseError& error) {
        if (const auto words = app.remaining(); app.get_subcommands().empty() && !words.empty())
            throw cerebellum::UsageError(fmt::format("there is no '{}'; see 'cerebellum --help'", words.front()));
        throw cerebellum::UsageError(fmt::format("{}; see 'cerebellum --help'", error.what()));
    }
    const auto& subcommands = app.get_subcommands([](const CLI::App*) { return true; });
    for (std::size_t i = 0; i < commands.size(); ++i)
        if (subcommands[i]->parsed()) return commands[i]();
    return exit_usage;
}

}  // namespace

int main(int argc, char** argv) {
    try {
        cerebellum::silence_llama_log();
        cerebellum::cli::stop_on_signals();
        return run(argc, argv);
    } catch (const cerebellum::UsageError& error) {
        fmt::print(stderr, "cerebellum: {}\n", error.what());
        return exit_usage;
    } catch (const std::exception& error) {
        fmt::print(stderr, "cerebellum: {}\n", error.what());
        return exit_failure;
    }
}
