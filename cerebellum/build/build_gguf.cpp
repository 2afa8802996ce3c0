#include "cerebellum/build/build_gguf.h"

#include <fmt/format.h>

#include <algorithm>
#include <cassert>
#include <cmath>
#include <map>
#include <set>
#include <system_error>

#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/parallel.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/gguf/gguf_write.h"
#include "cerebellum/quantize/quantize_tensor.h"
#include "cerebellum/version.h"

namespace cerebellum {

namespace fs = std::filesystem;

namespace {

/// Both are SHA-256 in hexadecimal: the size of the file must not depend on the recipe.
constexpr std::size_t digest_length = 64;

/// Everything of the file's first part whose size counts; values that vary have a fixed width.
GgufContext make_metadata(const GgufFile& source, const std::optional<ImatrixInfo>& imatrix, std::uint32_t file_type,
                          const std::string& recipe_digest, const std::string& source_digest, Provenance provenance) {
    assert(recipe_digest.size() == digest_length && source_digest.size() == digest_length);
    GgufContext context(gguf_init_empty());
    gguf_context* out = context.get();
    gguf_set_kv(out, source.context());
    // We align to the default whatever the source did. gguf_set_kv copies the key but not its effect, so that
    // llama-quantize v0.5.0 makes an unreadable file of a source with another alignment.
    gguf_remove_key(out, GGUF_KEY_GENERAL_ALIGNMENT);
    for (const char* key : {"split.no", "split.count", "split.tensors.count"}) gguf_remove_key(out, key);
    gguf_set_val_u32(out, "general.quantization_version", GGML_QNT_VERSION);
    gguf_set_val_u32(out, "general.file_type", file_type);
    if (provenance == Provenance::none) return context;
    if (imatrix) {
        gguf_set_val_str(out, "quantize.imatrix.file", imatrix->file.c_str());
        if (imatrix->dataset) gguf_set_val_str(out, "quantize.imatrix.dataset", imatrix->dataset->c_str());
        gguf_set_val_u32(out, "quantize.imatrix.entries_count", imatrix->entries_count);
        if (imatrix->chunks_count > 0) gguf_set_val_u32(out, "quantize.imatrix.chunks_count", imatrix->chunks_count);
    }
    gguf_set_val_str(out, "cerebellum.version", CEREBELLUM_VERSION);
    gguf_set_val_str(out, "cerebellum.recipe_sha256", recipe_digest.c_str());
    gguf_set_val_str(out, "cerebellum.source_fingerprint", source_digest.c_str());
    return context;
}

ggml_type type_of(const TensorInfo& tensor, const TypeMap& types) {
    const auto found = types.find(tensor.name);
    return found == types.end() ? tensor.type : found->second.type;
}

bool rounds_with_feedback(const TensorInfo& tensor, const TypeMap& types) {
    const auto found = types.find(tensor.name);
    return found != types.end() && found->second.rounding == Rounding::feedback && found->second.type != tensor.type;
}

void check_names(const GgufFile& source, const TypeMap& types) {
    for (const auto& [name, type] : types)
        if (source.find(name) == nullptr)
            throw Error(
                fmt::format("the recipe names the tensor {}, which {} does not have; it was made for another model",
                            name, source.path().string()));
}

std::vector<const TensorInfo*> ordered_tensors(const GgufFile& source, const std::vector<std::string>& order) {
    std::vector<const TensorInfo*> tensors;
    std::set<std::string_view> placed;
    for (const auto& name : order) {
        const TensorInfo* tensor = source.find(name);
        if (tensor == nullptr)
            throw Error(fmt::format("cannot order tensors: {} has no tensor {}", source.path().string(), name));
        if (!placed.insert(name).second) throw Error(fmt::format("cannot order tensors: {} is listed twice", name));
        tensors.push_back(tensor);
    }
    for (const auto& tensor : source.tensors())
        if (!placed.contains(tensor.name)) tensors.push_back(&tensor);
    return tensors;
}

/// Numbers of enum llama_ftype (llama.h, LLAMA_FTYPE_MOSTLY_*), chosen as llama-model-loader.cpp does.
std::uint32_t file_type_number(ggml_type type) {
    switch (type) {
        case GGML_TYPE_F32:
            return 0;
        case GGML_TYPE_F16:
            return 1;
        case GGML_TYPE_Q4_0:
            return 2;
        case GGML_TYPE_Q4_1:
            return 3;
        case GGML_TYPE_Q8_0:
            return 7;
        case GGML_TYPE_Q5_0:
            return 8;
        case GGML_TYPE_Q5_1:
            return 9;
        case GGML_TYPE_Q2_K:
            return 10;
        case GGML_TYPE_Q3_K:
            return 12;  // Q3_K_M
        case GGML_TYPE_Q4_K:
            return 15;  // Q4_K_M
        case GGML_TYPE_Q5_K:
            return 17;  // Q5_K_M
        case GGML_TYPE_Q6_K:
            return 18;
        case GGML_TYPE_IQ2_XXS:
            return 19;
        case GGML_TYPE_IQ2_XS:
            return 20;
        case GGML_TYPE_IQ3_XXS:
            return 23;
        case GGML_TYPE_IQ1_S:
            return 24;
        case GGML_TYPE_IQ4_NL:
            return 25;
        case GGML_TYPE_IQ3_S:
            return 26;
        case GGML_TYPE_IQ2_S:
            return 28;
        case GGML_TYPE_IQ4_XS:
            return 30;
        case GGML_TYPE_IQ1_M:
            return 31;
        case GGML_TYPE_BF16:
            return 32;
        case GGML_TYPE_TQ1_0:
            return 36;
        case GGML_TYPE_TQ2_0:
            return 37;
        case GGML_TYPE_MXFP4:
            return 38;
        case GGML_TYPE_NVFP4:
            return 39;
        case GGML_TYPE_Q1_0:
            return 40;
        case GGML_TYPE_Q2_0:
            return 41;
        default:
            return 1024;  // LLAMA_FTYPE_GUESSED
    }
}

}  // namespace

ImatrixInfo imatrix_info(const Imatrix& imatrix, const std::string& file) {
    constexpr std::size_t longest = 127;  // llama_model_kv_override holds no more
    ImatrixInfo info;
    info.file = file.substr(0, longest);
    if (!imatrix.datasets.empty()) info.dataset = imatrix.datasets.front().substr(0, longest);
    info.entries_count = static_cast<std::uint32_t>(imatrix.entries.size());
    info.chunks_count = imatrix.chunk_count;
    return info;
}

TypeMap complete_types(const GgufFile& source, const TypeMap& types) {
    check_names(source, types);
    TypeMap complete;
    for (const auto& tensor : source.tensors()) {
        const auto found = types.find(tensor.name);
        complete.emplace(tensor.name, found == types.end() ? Encoding(tensor.type) : found->second);
    }
    return complete;
}

std::uint32_t file_type_number(const GgufFile& source, const TypeMap& types) {
    std::map<ggml_type, std::int64_t> weights;
    for (const auto& tensor : source.tensors()) weights[type_of(tensor, types)] += tensor.n_weights();
    // Quantized types before all others, then the most weights.
    const auto most = std::ranges::max_element(
        weights, {}, [](const auto& entry) { return std::pair(ggml_is_quantized(entry.first), entry.second); });
    return file_type_number(most->first);
}

void check_recipe(const GgufFile& source, const Recipe& recipe, const Imatrix* imatrix) {
    if (!recipe.source_fingerprint.empty() && recipe.source_fingerprint != source.fingerprint())
        throw Error(fmt::format(
            "the recipe was made for the model {} with fingerprint {:.12}..., and {} has {:.12}...; name the "
            "original file or make a new recipe",
            recipe.source_name, recipe.source_fingerprint, source.path().string(), source.fingerprint()));
    check_names(source, recipe.types);
    for (const auto& tensor : source.tensors()) {
        const ggml_type type = type_of(tensor, recipe.types);
        if (type == tensor.type) continue;
        const auto weights = quantization_weights(imatrix, tensor);
        check_quantizable(tensor, type, !weights.empty());
        if (rounds_with_feedback(tensor, recipe.types) && !takes_feedback(tensor, type))
            throw Error(fmt::format("cannot use the recipe: {} as {} cannot be rounded with feedback", tensor.name,
                                    type_name(type)));
        if (!std::ranges::all_of(weights, [](float weight) { return std::isfinite(weight) && weight >= 0.0f; }))
            throw Error(
                fmt::format("the importance matrix holds no usable values for {}; compute it again", tensor.name));
    }
}

std::uint64_t tensor_bytes(const TensorInfo& tensor, ggml_type type) {
    return padded_bytes(type_size_bytes(type, tensor.row_length(), tensor.n_rows()));
}

std::uint64_t fixed_bytes(const GgufFile& source, const std::optional<ImatrixInfo>& imatrix, Provenance provenance) {
    const std::string digest(digest_length, '0');
    const auto context = make_metadata(source, imatrix, 0, digest, digest, provenance);
    for (const auto& tensor : source.tensors()) add_tensor(context.get(), tensor.name, tensor.type, tensor.shape);
    return gguf_get_meta_size(context.get());
}

std::uint64_t predicted_file_bytes(const GgufFile& source, const TypeMap& types,
                                   const std::optional<ImatrixInfo>& imatrix, Provenance provenance) {
    check_names(source, types);
    std::uint64_t bytes = fixed_bytes(source, imatrix, provenance);
    for (const auto& tensor : source.tensors()) bytes += tensor_bytes(tensor, type_of(tensor, types));
    return bytes;
}

std::uint64_t build_gguf(const GgufFile& source, const Recipe& recipe, const Imatrix* imatrix, const fs::path& out,
                         const BuildOptions& options, Progress& progress) {
    check_recipe(source, recipe, imatrix);
    const auto tensors = ordered_tensors(source, options.tensor_order);
    const auto info = imatrix == nullptr ? std::nullopt : std::optional(imatrix_info(*imatrix, options.imatrix_file));
    const int threads = options.threads > 0 ? options.threads : physical_cores();
    if (!options.moments)
        for (const auto* tensor : tensors)
            if (rounds_with_feedback(*tensor, recipe.types))
                throw Error(
                    fmt::format("the recipe rounds {} with feedback, for which the second moments of its input "
                                "are needed; name the file that was collected with the measurements (--moments)",
                                tensor->name));
    if (std::error_code code; fs::equivalent(out, source.path(), code))
        throw Error(fmt::format("cannot write {}: it is the source itself; choose another name", out.string()));

    const auto context = make_metadata(source, info, file_type_number(source, recipe.types), recipe_sha256(recipe),
                                       source.fingerprint(), options.provenance);
    std::uint64_t total = 0;
    for (const auto* tensor : tensors) {
        const ggml_type type = type_of(*tensor, recipe.types);
        add_tensor(context.get(), tensor->name, type, tensor->shape);
        total += tensor_bytes(*tensor, type);
    }
    const auto metadata = metadata_bytes(context.get());
    total += metadata.size();
    check_output_path(out, total, options.overwrite);

    FeedbackRounder rounder(options.moments, threads);
    progress.begin("building", static_cast<double>(total));
    AtomicFile file(out);
    file.write(metadata.data(), metadata.size());
    std::vector<std::byte> slab;
    for (const auto* tensor : tensors) {
        const ggml_type type = type_of(*tensor, recipe.types);
        const auto data = source.data(*tensor);
        const auto weights = type == tensor->type ? std::vector<float>() : quantization_weights(imatrix, *tensor);
        const std::uint64_t row_bytes = type_size_bytes(type, tensor->row_length(), 1);
        const auto slab_rows = static_cast<std::int64_t>(std::max<std::uint64_t>(1, options.slab_bytes / row_bytes));
        for (std::int64_t row = 0; row < tensor->n_rows(); row += slab_rows) {
            progress.check();
            progress.advance(static_cast<double>(file.position()), tensor->name);
            const std::int64_t n_rows = std::min(slab_rows, tensor->n_rows() - row);
            slab.resize(row_bytes * static_cast<std::uint64_t>(n_rows));
            quantize_rows(*tensor, data, type, weights, row, n_rows, slab, threads);
            if (rounds_with_feedback(*tensor, recipe.types)) rounder.improve_rows(*tensor, data, type, row, slab);
            file.write(slab.data(), slab.size());
        }
        file.write_zeros(padded_bytes(file.position()) - file.position());
    }
    progress.check();
    assert(file.position() == total);
    file.commit();
    progress.advance(static_cast<double>(total), "");
    progress.end();
    return total;
}

}  // namespace cerebellum
