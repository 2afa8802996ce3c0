#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "cerebellum/cli/commands.h"
#include "cerebellum/cli/options.h"
#include "cerebellum/cli/terminal.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/core/output_guard.h"
#include "cerebellum/core/parallel.h"
#include "cerebellum/pipeline/derivation.h"

namespace cerebellum::cli {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

const char* name_of(DerivationCheck::Result result) {
    switch (result) {
        case DerivationCheck::Result::same:
            return "same";
        case DerivationCheck::Result::differs:
            return "differs";
        case DerivationCheck::Result::missing:
            return "missing";
    }
    return "";
}

json to_json(const DerivationReport& report) {
    auto files = json::array();
    for (const auto& check : report.files)
        files.push_back({{"what", check.what}, {"name", check.name}, {"result", name_of(check.result)}});
    return {{"subject", report.subject},
            {"made_by", report.made_by},
            {"verified", report.verified()},
            {"made_again", report.rebuilt},
            {"files", std::move(files)}};
}

}  // namespace

Command add_verify_derivation(CLI::App& app) {
    struct Values {
        CommonOptions common;
        std::string statement, source;
    };
    auto values = std::make_shared<Values>();
    auto* command = app.add_subcommand("verify-derivation", "Check what a published file is said to have been made of");
    command->footer(
        "Examples:\n"
        "  cerebellum verify-derivation out/model-4.25bpw.derivation.json\n"
        "  cerebellum verify-derivation out/model-4.25bpw.derivation.json --source model-bf16.gguf\n\n"
        "Compares the digests of the files beside the statement that 'publish' has written. With the source, the file\n"
        "is made again from it, the recipe and the importance matrix, and must come out with the same bytes.\n"
        "Exit code 1 where something differs.");
    command->add_option("statement", values->statement, "The statement")->required()->type_name("FILE.derivation.json");
    command->add_option("--source", values->source, "The model that the file was made of: make it again")
        ->type_name("MODEL.gguf");
    add_threads(*command, values->common);
    add_json(*command, values->common);
    return [values] {
        TerminalProgress progress(values->common.quiet, values->common.verbose);
        const auto folder = fs::absolute(values->statement).parent_path();
        const int threads = values->common.threads > 0 ? values->common.threads : physical_cores();
        const auto report =
            verify_derivation(fs::absolute(values->statement), values->source, folder, threads, progress);
        if (values->common.json)
            fmt::print("{}\n", json_to_text(to_json(report), 2));
        else
            fmt::print("{}", describe(report));
        return report.verified() ? 0 : 1;
    };
}

}  // namespace cerebellum::cli
