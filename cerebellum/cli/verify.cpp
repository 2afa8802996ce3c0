#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "cerebellum/cli/commands.h"
#include "cerebellum/cli/options.h"
#include "cerebellum/cli/terminal.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/core/size.h"
#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/pipeline/verify.h"
#include "cerebellum/report/table.h"

namespace cerebellum::cli {

namespace {

std::string describe(const std::optional<WholePrediction>& prediction) {
    if (!prediction) return "";
    if (!std::isfinite(prediction->calibrated.error)) return fmt::format("{:.5f}", prediction->sum);
    return with_error(fmt::format("{:.5f}", prediction->calibrated.mean), prediction->calibrated.error, "{:.5f}");
}

}  // namespace

Command add_verify(CLI::App& app) {
    struct Values {
        CommonOptions common;
        std::vector<std::string> files;
    };
    auto values = std::make_shared<Values>();
    auto* command = app.add_subcommand(
        "verify", "Only verify: compare built files with their source on the held-out part of the text");
    command->footer(
        "Example:\n  cerebellum verify model-f16.gguf model-small.gguf model-Q4_K_M.gguf --text notes.txt\n\n"
        "With the options of an earlier run (and its journal), the text is the one that no choice was made on.");
    add_model(*command, values->common);
    command->add_option("files", values->files, "Files made from the source")->required()->type_name("FILE.gguf");
    add_measuring(*command, values->common);
    add_json(*command, values->common);
    return [values] {
        TerminalProgress progress(values->common.quiet, values->common.verbose);
        for (const auto& file : values->files)
            GgufFile::open(file);  // what cannot be read is known before the work begins
        Session session(run_options(values->common, ""), progress);
        const auto files = verify_files(session, {values->files.begin(), values->files.end()}, progress);
        if (values->common.json) {
            fmt::print("{}\n", json_to_text(to_json(files), 2));
            return 0;
        }
        std::vector<std::vector<std::string>> rows;
        for (const auto& file : files) {
            const auto& f = file.figures;
            rows.push_back({file.path.filename().string(), format_bytes(file.bytes), fmt::format("{:.2f}", file.bpw),
                            with_error(fmt::format("{:.5f}", f.kld.mean), f.kld.error, "{:.5f}"),
                            with_error(fmt::format("{:.3f}", f.perplexity), f.perplexity_error, "{:.3f}"),
                            fmt::format("{:.2f} %", 100.0 * f.top1_agree.mean), describe(file.prediction)});
        }
        fmt::print("{}", format_table({"file", "size", "bpw", "KLD", "perplexity", "same top", "predicted KLD"}, rows));
        return 0;
    };
}

}  // namespace cerebellum::cli
