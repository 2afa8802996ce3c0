#include <fmt/format.h>
#include <ggml.h>

#include <cstdlib>
#include <exception>
#include <new>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "cerebellum/cli/commands.h"
#include "cerebellum/cli/defaults.h"
#include "cerebellum/cli/shortened.h"
#include "cerebellum/cli/terminal.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/ggml_abort.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/core/leftovers.h"
#include "cerebellum/core/processor.h"
#include "cerebellum/core/visible_text.h"
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
    app.fallthrough();  // --config may stand behind the command, too
    app.get_formatter()->column_width(30);
    std::vector<Command> commands = {
        add_quantize(app),  add_ablate(app),  add_allocate(app),         add_build(app),
        add_verify(app),    add_inspect(app), add_frontier(app),         add_recipe(app),
        add_compare(app),   add_imatrix(app), add_explain(app),          add_interactions(app),
        add_import(app),    add_eval(app),    add_memory(app),           add_compare_evals(app),
        add_show(app),      add_doctor(app),  add_completion(app),       add_man(app),
        add_convert(app),   add_report(app),  add_journal(app),          add_card(app),
        add_modelfile(app), add_publish(app), add_verify_derivation(app)};
    add_defaults_file(app);
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

/// ggml ends the program where a device fails in the middle of its work (no memory left, an RPC server gone), and where
/// a file says what cannot be. Everything measured so far is in the journal already, and a destructor that spoke to the
/// device would only fail again.
void on_ggml_abort(const char* message) {
    fmt::print(stderr, "cerebellum: {}\n", cerebellum::abort_message(message != nullptr ? message : ""));
    cerebellum::remove_leftovers();
    std::_Exit(exit_failure);
}

/// A message may quote names and words that are not ours. Of an interruption somebody else may have spoken already.
int complain(int exit_code, std::string_view message) {
    if (cerebellum::cli::work_ends(exit_code) && !message.empty())
        fmt::print(stderr, "cerebellum: {}\n", cerebellum::visible(cerebellum::cli::shortened(message)));
    return exit_code;
}

/// What the library promises to find words for, and did not. They are a programmer's and name no file.
int complain_of_bug(const std::string& what) {
    return complain(
        exit_failure,
        fmt::format("the program did not expect {}; this is a fault of it: please report it with the command and, "
                    "if you can, the files it was given",
                    what));
}

}  // namespace

int main(int argc, char** argv) {
    try {
        cerebellum::require_instruction_sets(cerebellum::instruction_sets());
        cerebellum::silence_llama_log();
        cerebellum::cli::stop_on_signals();
        ggml_set_abort_callback(on_ggml_abort);
        const int code = run(argc, argv);
        cerebellum::cli::work_ends(code);
        return code;
    } catch (const cerebellum::UsageError& error) {
        return complain(exit_usage, error.what());
    } catch (const std::system_error& error) {
        // Whoever read our output ('| head') has seen enough.
        return complain(exit_failure, error.code() == std::errc::broken_pipe ? "" : error.what());
    } catch (const cerebellum::Error& error) {
        return complain(exit_failure, error.what());
    } catch (const std::bad_alloc&) {
        return complain(exit_failure,
                        "there is not enough memory for this; --memory and smaller windows (--ctx) need less");
    } catch (const nlohmann::json::exception& error) {
        return complain_of_bug("a file of JSON that it reads: " + cerebellum::json_problem(error));
    } catch (const std::exception& error) {
        return complain_of_bug(error.what());
    }
}
