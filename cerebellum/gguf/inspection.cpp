#include "cerebellum/gguf/inspection.h"

#include <nlohmann/json.hpp>
#include <vector>

#include "cerebellum/core/quant_type.h"

namespace cerebellum {

double bits_per_weight(std::uint64_t bytes, std::uint64_t weights) {
    return 8.0 * static_cast<double>(bytes) / static_cast<double>(weights);
}

nlohmann::json inspection(const GgufFile& file) {
    auto tensors = nlohmann::json::array();
    for (const auto& tensor : file.tensors())
        tensors.push_back(
            {{"name", tensor.name},
             {"type", type_name(tensor.type)},
             {"shape", std::vector<std::int64_t>(tensor.shape.begin(), tensor.shape.begin() + tensor.n_dims)},
             {"bytes", tensor.size_bytes},
             {"bpw", bits_per_weight(tensor.size_bytes, static_cast<std::uint64_t>(tensor.n_weights()))}});
    return {{"bytes", file.file_size()},
            {"weights", file.n_weights()},
            {"bpw", bits_per_weight(file.file_size(), file.n_weights())},
            {"architecture", file.architecture()},
            {"fingerprint", file.fingerprint()},
            {"metadata", file.metadata_json()},
            {"tensors", std::move(tensors)}};
}

}  // namespace cerebellum
