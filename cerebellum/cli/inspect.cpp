#include <fmt/format.h>
#include <fmt/ranges.h>

#include <nlohmann/json.hpp>

#include "cerebellum/cli/commands.h"
#include "cerebellum/cli/options.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/core/size.h"
#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/report/table.h"

namespace cerebellum::cli {

namespace {

std::string shape_of(const TensorInfo& tensor) {
    return fmt::format("{}", fmt::join(tensor.shape.begin(), tensor.shape.begin() + tensor.n_dims, " x "));
}

double bits_per_weight_of(std::uint64_t bytes, std::uint64_t weights) {
    return 8.0 * static_cast<double>(bytes) / static_cast<double>(weights);
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
        auto tensors = nlohmann::json::array();
        std::vector<std::vector<std::string>> rows;
        for (const auto& tensor : file.tensors()) {
            auto& [count, bytes] = by_type[type_name(tensor.type)];
            ++count;
            bytes += tensor.size_bytes;
            tensors.push_back(
                {{"name", tensor.name},
                 {"type", type_name(tensor.type)},
                 {"shape", std::vector<std::int64_t>(tensor.shape.begin(), tensor.shape.begin() + tensor.n_dims)},
                 {"bytes", tensor.size_bytes},
                 {"bpw", bits_per_weight_of(tensor.size_bytes, static_cast<std::uint64_t>(tensor.n_weights()))}});
            rows.push_back({tensor.name, type_name(tensor.type), shape_of(tensor), std::to_string(tensor.size_bytes)});
        }
        const double bpw = bits_per_weight_of(file.file_size(), file.n_weights());
        if (common->json) {
            fmt::print("{}\n", nlohmann::json{{"file", common->model},
                                              {"bytes", file.file_size()},
                                              {"weights", file.n_weights()},
                                              {"bpw", bpw},
                                              {"architecture", file.architecture()},
                                              {"fingerprint", file.fingerprint()},
                                              {"metadata", file.metadata_json()},
                                              {"tensors", tensors}}
                                   .dump(2));
            return 0;
        }
        fmt::print("{}: {} ({} bytes), {} weights, {:.3f} bits per weight, architecture {}\n\n", common->model,
                   format_bytes(file.file_size()), file.file_size(), file.n_weights(), bpw, file.architecture());
        const auto metadata = file.metadata_json();
        for (const auto& [key, value] : metadata.items()) fmt::print("{} = {}\n", key, value.dump());
        std::vector<std::vector<std::string>> types;
        for (const auto& [type, entry] : by_type)
            types.push_back({type, std::to_string(entry.first), format_bytes(entry.second)});
        fmt::print("\n{}\n", format_table({"tensor", "type", "shape", "bytes"}, rows));
        fmt::print("{}", format_table({"type", "tensors", "bytes"}, types));
        return 0;
    };
}

}  // namespace cerebellum::cli
