#include "cerebellum/pipeline/doctor.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string_view>

#include "cerebellum/cli/commands.h"
#include "cerebellum/cli/options.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/core/size.h"
#include "cerebellum/report/table.h"

namespace cerebellum::cli {

namespace {

struct Values {
    std::string model, size;
    bool json = false;
};

/// Lines of at most so many columns; those behind the first are indented.
std::string wrapped(const std::string& text, std::size_t indent, std::size_t columns) {
    std::string result;
    std::size_t at = indent;
    for (const auto& word : CLI::detail::split(text, ' ')) {
        if (at > indent && at + 1 + word.size() > columns) {
            result += "\n" + std::string(indent, ' ');
            at = indent;
        } else if (at > indent) {
            result += ' ';
            ++at;
        }
        result += word;
        at += word.size();
    }
    return result;
}

std::string describe(const Finding& finding, std::size_t columns) {
    constexpr std::size_t indent = 26;
    const std::string_view mark = finding.status == Finding::Status::good ? "ok" : status_name(finding.status);
    auto text = fmt::format("{:<8} {:<16} {}\n", mark, finding.what, wrapped(finding.said, indent, columns));
    if (!finding.mend.empty())
        text += fmt::format("{:<{}}-> {}\n", "", indent, wrapped(finding.mend, indent + 3, columns));
    return text;
}

std::string describe(const std::vector<Capacity>& all) {
    std::vector<std::vector<std::string>> rows;
    for (const auto& capacity : all)
        rows.push_back({capacity.where, format_bytes(capacity.bytes), fmt::format("{:.1f} B", capacity.measured_f16),
                        fmt::format("{:.1f} B", capacity.run_at_4_5_bpw)});
    return format_table({"what would fit, in weights", "free", "F16 source held whole", "file of 4.5 bpw run"}, rows);
}

int run(const Values& values, const std::string& defaults_file) {
    auto patient = admit();
    patient.defaults_file = defaults_file;
    auto findings = examine(patient);
    if (!values.model.empty()) {
        const auto model = GgufFile::open(values.model);
        const auto budget = values.size.empty() ? 0 : parse_size(values.size).bytes(model.n_weights());
        std::ranges::move(examine_model(patient, model, budget), std::back_inserter(findings));
    }
    const bool ill =
        std::ranges::any_of(findings, [](const auto& finding) { return finding.status == Finding::Status::problem; });
    if (values.json) {
        auto json = to_json(patient);
        json["findings"] = to_json(findings);
        fmt::print("{}\n", json_to_text(json, 2));
        return ill ? 1 : 0;
    }
    constexpr std::size_t columns = 79;
    for (const auto& finding : findings) fmt::print("{}", describe(finding, columns));
    fmt::print("\n{}Larger sources are streamed from their file with --memory.\n", describe(capacities(patient)));
    return ill ? 1 : 0;
}

}  // namespace

Command add_doctor(CLI::App& app) {
    auto values = std::make_shared<Values>();
    auto* command = app.add_subcommand("doctor", "Look at this machine: what is there, what fits, what is wrong");
    command->footer(
        "Examples:\n  cerebellum doctor\n  cerebellum doctor model-f16.gguf --size 4GB\n\n"
        "Exit code 1 where something would keep the program from working.");
    command->add_option("model", values->model, "Also say what can be done with this model here")
        ->type_name("MODEL.gguf");
    command->add_option("--size", values->size, "With a model: size of the file to make, as 4GB or 4.25bpw")
        ->type_name("SIZE");
    command->add_flag("--json", values->json, "Print the result as JSON");
    return [&app, values] {
        if (!values->size.empty() && values->model.empty())
            throw UsageError("--size is the size of a file made from a model; name the model, too");
        const auto* config = app.get_option("--config");
        return run(*values, config->count() > 0 ? config->as<std::string>() : "");
    };
}

}  // namespace cerebellum::cli
