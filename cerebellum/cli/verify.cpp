#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "cerebellum/cli/commands.h"
#include "cerebellum/cli/options.h"
#include "cerebellum/cli/terminal.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/size.h"
#include "cerebellum/evaluate/built_file.h"
#include "cerebellum/pipeline/allocation.h"
#include "cerebellum/pipeline/whole_prediction.h"
#include "cerebellum/report/table.h"

namespace cerebellum::cli {

namespace {

/// From the journal's measurements; empty where there are none, or some type of a file is not among them.
std::vector<std::optional<WholePrediction>> predict_files(Session& session, const std::vector<GgufFile>& files) {
    std::vector<std::optional<WholePrediction>> predictions(files.size());
    if (session.journal().measurements().empty()) return predictions;
    const auto problem = make_problem(session.source(), session.journal(), std::nullopt, 0);
    const auto calibration = make_calibration(problem, session.journal());
    for (std::size_t i = 0; i < files.size(); ++i) {
        TypeMap types;
        for (const auto& tensor : files[i].tensors()) types[tensor.name] = tensor.type;
        predictions[i] = predict_whole(problem, calibration, types);
    }
    return predictions;
}

std::string describe(const std::optional<WholePrediction>& prediction) {
    if (!prediction) return "";
    if (!std::isfinite(prediction->calibrated.error)) return fmt::format("{:.5f}", prediction->sum);
    return fmt::format("{:.5f} ± {:.5f}", prediction->calibrated.mean, prediction->calibrated.error);
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
        std::vector<std::filesystem::path> files(values->files.begin(), values->files.end());
        std::vector<GgufFile> opened;
        for (const auto& file : files) opened.push_back(GgufFile::open(file));
        Session session(run_options(values->common, ""), progress);
        const auto scores = score_files(session.model(), files, session.text().test, session.threads(), progress);
        const auto predictions = predict_files(session, opened);
        auto json = nlohmann::json::array();
        std::vector<std::vector<std::string>> rows;
        for (std::size_t i = 0; i < files.size(); ++i) {
            const auto f = summarize(scores[i]);
            const double bpw =
                8.0 * static_cast<double>(opened[i].file_size()) / static_cast<double>(opened[i].n_weights());
            json.push_back({{"file", files[i].string()},
                            {"bytes", opened[i].file_size()},
                            {"bpw", bpw},
                            {"kld", f.kld.mean},
                            {"kld_error", f.kld.error},
                            {"perplexity", f.perplexity},
                            {"perplexity_error", f.perplexity_error},
                            {"delta_nll", f.delta_nll.mean},
                            {"delta_nll_error", f.delta_nll.error},
                            {"top1_agree", f.top1_agree.mean},
                            {"tokens", f.tokens}});
            if (predictions[i]) {
                json.back()["predicted_kld"] = predictions[i]->sum;
                if (std::isfinite(predictions[i]->calibrated.error)) {
                    json.back()["calibrated_kld"] = predictions[i]->calibrated.mean;
                    json.back()["calibrated_kld_error"] = predictions[i]->calibrated.error;
                }
            }
            rows.push_back({files[i].filename().string(), format_bytes(opened[i].file_size()),
                            fmt::format("{:.2f}", bpw), fmt::format("{:.5f} ± {:.5f}", f.kld.mean, f.kld.error),
                            fmt::format("{:.3f} ± {:.3f}", f.perplexity, f.perplexity_error),
                            fmt::format("{:.2f} %", 100.0 * f.top1_agree.mean), describe(predictions[i])});
        }
        if (values->common.json)
            fmt::print("{}\n", json.dump(2));
        else
            fmt::print("{}",
                       format_table({"file", "size", "bpw", "KLD", "perplexity", "same top", "predicted KLD"}, rows));
        return 0;
    };
}

}  // namespace cerebellum::cli
