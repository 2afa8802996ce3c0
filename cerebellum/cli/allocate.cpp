#include <fmt/format.h>

#include <chrono>
#include <nlohmann/json.hpp>

#include "cerebellum/cli/commands.h"
#include "cerebellum/cli/options.h"
#include "cerebellum/cli/terminal.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/core/size.h"
#include "cerebellum/pipeline/allocation.h"
#include "cerebellum/pipeline/quantize.h"
#include "cerebellum/report/table.h"

namespace cerebellum::cli {

Command add_allocate(CLI::App& app) {
    struct Values {
        CommonOptions common;
        std::string size, output;
    };
    auto values = std::make_shared<Values>();
    auto* command =
        app.add_subcommand("allocate", "Only allocate: a recipe for a size, from the journal's measurements");
    command->footer(
        "Example:\n  cerebellum allocate model-f16.gguf --size 3.5bpw -o recipe.json\n\n"
        "Takes well under a second; only the model's header is read.");
    add_model(*command, values->common);
    command->add_option("--size", values->size, "Size of the file: 12GB, 11.5GiB, 800MB, 4.25bpw")->required();
    command
        ->add_option("--journal", values->common.journal,
                     "The journal with the measurements (default: in this folder, named after the model)")
        ->type_name("FILE");
    values->common.rounding = "auto";
    add_rounding(*command, values->common,
                 "Which measured roundings may be chosen: ggml, feedback (where it was measured), auto (either)");
    add_output(*command, values->common, values->output,
               "The recipe (JSON); a llama-quantize type file and the importance matrix go beside it");
    add_json(*command, values->common);
    return [values] {
        const auto goal = parse_size(values->size);
        const auto rounding = parse_rounding(values->common.rounding);
        const std::filesystem::path output = values->output;
        check_output_path(output, 0, values->common.force);
        const auto source = GgufFile::open(values->common.model);
        const auto path = values->common.journal.empty() ? default_journal(values->common.model, "")
                                                         : std::filesystem::path(values->common.journal);
        const auto journal = Journal::open_existing(path);
        if (journal.identity().fields.at("model") != source.fingerprint())
            throw Error(fmt::format("{} was measured on another model than {}; name the right journal or measure again",
                                    path.string(), values->common.model));
        if (const auto& fields = journal.identity().fields;
            !fields.contains("measuring") || fields.at("measuring") != measuring_version)
            throw Error(
                fmt::format("{} was measured in another way by another version; measure again with another --journal",
                            path.string()));
        const auto imatrix = imatrix_from_journal(journal);
        const auto info = imatrix ? std::optional(imatrix_info(*imatrix, journal.get_meta("imatrix_name").value_or("")))
                                  : std::nullopt;
        const auto started = std::chrono::steady_clock::now();
        auto recipe = make_recipe(source, journal, info, goal.bytes(source.n_weights()), rounding);
        const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
        note_moments(journal, recipe);
        write_recipe(output, recipe);
        write_file_atomically(type_file_path(output), tensor_type_file(complete_types(source, recipe.types)));
        if (imatrix) write_imatrix(imatrix_path(output), *imatrix);
        if (values->common.json) {
            fmt::print("{}\n", recipe_to_json(recipe));
            return 0;
        }
        std::map<std::string, std::pair<int, std::uint64_t>> by_type;
        for (const auto& [name, type] : recipe.types) {
            auto& [count, bytes] = by_type[type_name(type)];
            ++count;
            bytes += tensor_bytes(*source.find(name), type.type);
        }
        std::vector<std::vector<std::string>> rows;
        for (const auto& [type, entry] : by_type)
            rows.push_back({type, std::to_string(entry.first), format_bytes(entry.second)});
        fmt::print("{}\n{} bytes, predicted KLD {:.5f} nats per token ({}); solved in {:.3f} s\n",
                   format_table({"type", "tensors", "bytes"}, rows), recipe.file_bytes, recipe.predicted_kld,
                   recipe.provenance.at("optimal") == "yes" ? "optimal" : "not proved optimal", seconds);
        return 0;
    };
}

}  // namespace cerebellum::cli
