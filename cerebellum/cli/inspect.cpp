#include <fmt/format.h>
#include <fmt/ranges.h>

#include <nlohmann/json.hpp>

#include "cerebellum/cli/commands.h"
#include "cerebellum/cli/options.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/core/size.h"
#include "cerebellum/core/visible_text.h"
#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/gguf/inspection.h"
#include "cerebellum/report/table.h"

namespace cerebellum::cli {

namespace {

std::string shape_of(const TensorInfo& tensor) {
    return fmt::format("{}", fmt::join(tensor.shape.begin(), tensor.shape.begin() + tensor.n_dims, " x "));
}

}  // namespace

Command add_inspect(CLI::App& app) {
    auto common = std::make_shared<CommonOptions>();
    auto* command = app.add_subcommand("inspect", "Show a GGUF's metadata, tensors, types and bytes");
    command->add_option("model", common->model, "The file to look at")->required()->type_name("FILE.gguf");
    add_json(*command, *common);
    return [common] {
        const auto file = GgufFile::open(common->model);
        std::map<std::string, std::pair<int, std::uint64_t>> by_type;
        std::vector<std::vector<std::string>> rows;
        for (const auto& tensor : file.tensors()) {
            auto& [count, bytes] = by_type[type_name(tensor.type)];
            ++count;
            bytes += tensor.size_bytes;
            rows.push_back({tensor.name, type_name(tensor.type), shape_of(tensor), std::to_string(tensor.size_bytes)});
        }
        if (common->json) {
            auto json = inspection(file);
            json["file"] = common->model;
            fmt::print("{}\n", visible_lines(json_to_text(json, 2)));
            return 0;
        }
        fmt::print("{}: {} ({} bytes), {} weights, {:.3f} bits per weight, architecture {}\n\n", visible(common->model),
                   format_bytes(file.file_size()), file.file_size(), file.n_weights(),
                   bits_per_weight(file.file_size(), file.n_weights()), visible(file.architecture()));
        const auto metadata = file.metadata_json();
        for (const auto& [key, value] : metadata.items())
            fmt::print("{} = {}\n", visible(key), visible(json_to_text(value)));
        std::vector<std::vector<std::string>> types;
        for (const auto& [type, entry] : by_type)
            types.push_back({type, std::to_string(entry.first), format_bytes(entry.second)});
        fmt::print("\n{}\n", format_table({"tensor", "type", "shape", "bytes"}, rows));
        fmt::print("{}", format_table({"type", "tensors", "bytes"}, types));
        return 0;
    };
}

}  // namespace cerebellum::cli
