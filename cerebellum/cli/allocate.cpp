#include <fmt/format.h>

#include <chrono>
#include <nlohmann/json.hpp>

#include "cerebellum/cli/allocate_imported.h"
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
        ImportedValues imported;
        std::string size, output;
    };
    auto values = std::make_shared<Values>();
    auto* command =
        app.add_subcommand("allocate", "Only allocate: a recipe for a size, from the journal's measurements");
    command->footer(
        "Examples:\n  cerebellum allocate model-f16.gguf --size 3.5bpw -o recipe.json\n"
        "  cerebellum allocate --ablation ablation_results.json --budget 12.0 --output tensor_types.txt\n\n"
        "Takes well under a second; only the model's header is read.");
    add_imported(*command, values->common, values->imported);
    command->add_option("--size", values->size, "Size of the file: 12GB, 11.5GiB, 800MB, 4.25bpw");
    command
        ->add_option("--journal", values->common.journal,
                     "The journal with the measurements (default: in this folder, named after the model)")
        ->type_name("FILE");
    add_output(*command, values->common, values->output,
               "The recipe (JSON); a llama-quantize type file and the importance matrix go beside it");
    add_json(*command, values->common);
    return [values] {
        if (values->imported.wanted())
            return allocate_from_import(values->common, values->imported, values->size, values->output);
        if (values->common.model.empty()) throw UsageError("model is required; see 'cerebellum allocate --help'");
        const auto goal = wanted_size(values->size, values->imported);
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
        const auto recipe = make_recipe(source, journal, info, goal.bytes(source.n_weights()));
        const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
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
            bytes += tensor_bytes(*source.find(name), type);
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
