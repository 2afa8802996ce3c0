#include "cerebellum/pipeline/import_recipe.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <sstream>

#include "cerebellum/build/build_gguf.h"
#include "cerebellum/build/source_identity.h"
#include "cerebellum/core/compressed_file.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/list_lines.h"
#include "cerebellum/core/name_pattern.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/llama/presets.h"
#include "cerebellum/version.h"

namespace cerebellum {

namespace {

Recipe recipe_for(const GgufFile& source, TypeMap types, const std::string& origin) {
    Recipe recipe;
    recipe.types = std::move(types);
    recipe.source_fingerprint = source.fingerprint();
    recipe.source_name = source.path().filename().string();
    recipe.source_tensors = tensor_identities(source);
    recipe.provenance = {
        {"cerebellum", CEREBELLUM_VERSION}, {"llama.cpp", CEREBELLUM_LLAMA_VERSION}, {"imported_from", origin}};
    return recipe;
}

std::optional<Preset> find_base(std::string name) {
    std::ranges::transform(name, name.begin(), [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
    return find_preset(name);
}

}  // namespace

Recipe recipe_from_gguf(const GgufFile& source, const GgufFile& other) {
    const auto refuse = [&](const std::string& what) {
        throw Error(fmt::format("{} is no version of {}: {}", other.path().string(), source.path().string(), what));
    };
    TypeMap types;
    for (const auto& tensor : source.tensors()) {
        const auto* same = other.find(tensor.name);
        if (same == nullptr) refuse(fmt::format("it has no tensor {}", tensor.name));
        if (same->shape != tensor.shape) refuse(fmt::format("{} has another shape", tensor.name));
        if (same->type == tensor.type) continue;
        if (!type_is_quantizable(same->type))
            throw Error(fmt::format("{} holds {} in {}, which is not among the types that are built",
                                    other.path().string(), tensor.name, type_name(same->type)));
        types[tensor.name] = same->type;
    }
    for (const auto& tensor : other.tensors())
        if (source.find(tensor.name) == nullptr) refuse(fmt::format("only it has the tensor {}", tensor.name));
    return recipe_for(source, std::move(types), other.path().filename().string());
}

Recipe recipe_from_type_file(const GgufFile& source, const std::filesystem::path& file, const std::string& base) {
    const auto preset = find_base(base);
    if (!preset) throw UsageError(fmt::format("--base {}: llama-quantize has no such type; try Q4_K_M", base));
    QuantizeRequest request{.file_type = preset->file_type, .has_imatrix = true};
    // As parse_tensor_type_file in tools/quantize/quantize.cpp reads it: words, split at their first '='. Remarks are
    // ours, and so is the refusal of patterns without a tensor: llama-quantize passes them over in silence.
    for (const auto& [number, line] : list_lines(read_unpacked(file))) {
        std::istringstream words(line);
        for (std::string word; words >> word;) {
            const auto sign = word.find('=');
            const auto type = sign == std::string::npos ? std::nullopt : parse_type(word.substr(sign + 1));
            if (sign == 0 || !type)
                throw Error(fmt::format("{}:{}: '{}' is no PATTERN=TYPE", file.string(), number, word));
            std::string pattern = word.substr(0, sign);
            std::ranges::transform(pattern, pattern.begin(),
                                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
            const auto matches = [&] {
                try {
                    return std::ranges::any_of(source.tensors(),
                                               [regex = name_pattern(pattern)](const TensorInfo& tensor) {
                                                   return std::regex_search(tensor.name, regex);
                                               });
                } catch (const Error& error) {
                    throw Error(fmt::format("{}:{}: {}", file.string(), number, error.what()));
                }
            };
            if (!matches())
                throw Error(fmt::format("{}:{}: '{}' matches no tensor of {}; mend it or remove it", file.string(),
                                        number, pattern, source.path().string()));
            request.overrides.emplace_back(std::move(pattern), *type);
        }
    }
    if (request.overrides.empty()) throw Error(fmt::format("{} holds no PATTERN=TYPE", file.string()));
    TypeMap types;
    for (const auto& [name, type] : dry_run(source.path(), request).types)
        if (const auto* tensor = source.find(name); tensor != nullptr && tensor->type != type) types[name] = type;
    return recipe_for(source, std::move(types), fmt::format("{}, base {}", file.filename().string(), preset->name));
}

}  // namespace cerebellum
