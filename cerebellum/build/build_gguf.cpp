#include "cerebellum/build/build_gguf.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cassert>
#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <set>
#include <system_error>
#include <utility>

#include "cerebellum/build/source_identity.h"
#include "cerebellum/build/write_tensors.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/parallel.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/gguf/gguf_write.h"
#include "cerebellum/gguf/imatrix_digest.h"
#include "cerebellum/gguf/split_name.h"
#include "cerebellum/llama/file_type.h"
#include "cerebellum/quantize/quantize_tensor.h"
#include "cerebellum/quantize/scale_rows.h"
#include "cerebellum/version.h"

namespace cerebellum {

namespace fs = std::filesystem;

namespace {

/// Both are SHA-256 in hexadecimal: the size of the file must not depend on the recipe.
constexpr std::size_t digest_length = 64;

// What llama.cpp calls LLM_KV_SPLIT_*.
constexpr auto split_no = "split.no";
constexpr auto split_count = "split.count";
constexpr auto split_tensors = "split.tensors.count";

/// Everything of the file's first part whose size counts; values that vary have a fixed width.
GgufContext make_metadata(const GgufFile& source, const std::optional<ImatrixInfo>& imatrix, std::uint32_t file_type,
                          const std::string& recipe_digest, const std::string& source_digest, Provenance provenance) {
    assert(recipe_digest.size() == digest_length && source_digest.size() == digest_length);
    GgufContext context(gguf_init_empty());
    gguf_context* out = context.get();
    gguf_set_kv(out, source.context());
    // We align to the default whatever the source did. gguf_set_kv copies the key but not its effect, so that
    // llama-quantize v0.5.0 makes an unreadable file of a source with another alignment.
    if (source.alignment() != GGUF_DEFAULT_ALIGNMENT) gguf_remove_key(out, GGUF_KEY_GENERAL_ALIGNMENT);
    gguf_set_val_u32(out, "general.quantization_version", GGML_QNT_VERSION);
    gguf_set_val_u32(out, "general.file_type", file_type);
    for (const char* key : {split_no, split_count, split_tensors}) gguf_remove_key(out, key);
    if (provenance == Provenance::none) return context;
    if (imatrix) {
        const auto written = [&](const std::string& name) {
            constexpr std::size_t longest = 127;  // llama_model_kv_override holds no more
            const auto bare = provenance == Provenance::full ? fs::path(name).filename().string() : "";
            return (bare.empty() ? name : bare).substr(0, longest);
        };
        gguf_set_val_str(out, "quantize.imatrix.file", written(imatrix->file).c_str());
        if (imatrix->dataset) gguf_set_val_str(out, "quantize.imatrix.dataset", written(*imatrix->dataset).c_str());
        gguf_set_val_u32(out, "quantize.imatrix.entries_count", imatrix->entries_count);
        if (imatrix->chunks_count > 0) gguf_set_val_u32(out, "quantize.imatrix.chunks_count", imatrix->chunks_count);
    }
    if (provenance == Provenance::imatrix) return context;
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

/// Refuses a source that the recipe was not made for, naming the first tensor that differs.
void check_source(const GgufFile& source, const Recipe& recipe) {
    if (recipe.source_fingerprint.empty() || recipe.source_fingerprint == source.fingerprint()) return;
    std::string difference =
        fmt::format("its fingerprint is {:.12}... and not {:.12}...", source.fingerprint(), recipe.source_fingerprint);
    if (!recipe.source_tensors.empty())
        difference = first_difference(source, recipe.source_tensors)
                         .value_or("its metadata differs, or weights inside of a tensor, whose ends are the same");
    throw Error(
        fmt::format("the recipe was made for another model, {}, than {}: {}; name the original file or make a "
                    "new recipe",
                    recipe.source_name, source.path().string(), difference));
}

void check_imatrix(const Recipe& recipe, const Imatrix* imatrix) {
    const auto expected = recipe.provenance.find(imatrix_digest_key);
    if (expected == recipe.provenance.end()) return;
    if (imatrix == nullptr)
        throw Error("the recipe was made with an importance matrix, and none is given; name it with --imatrix");
    if (imatrix_sha256(*imatrix) != expected->second)
        throw Error("the recipe was made with another importance matrix; name the one that lies beside the recipe");
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

/// A file to write, planned to the last byte.
struct Part {
    fs::path path;
    GgufContext context;
    std::vector<std::byte> metadata;
    std::vector<OutputTensor> tensors;
    std::uint64_t size = 0;
};

/// Deals the tensors to files: by the source's files, by size, or all to one.
std::vector<std::vector<OutputTensor>> deal(const GgufFile& source, const std::vector<OutputTensor>& tensors,
                                            std::uint64_t first_bytes, const BuildOptions& options) {
    if (options.keep_split) {
        std::vector<std::vector<OutputTensor>> parts(source.paths().size());
        for (const auto& tensor : tensors) parts[tensor.source->part].push_back(tensor);
        return parts;
    }
    if (options.split_bytes == 0) return {tensors};
    // Of a description in the header: name, shape, type and offset, with their lengths.
    const auto described = [](const TensorInfo& tensor) {
        return padded_bytes(tensor.name.size() + 8 + 4 + 32 + 4 + 8);
    };
    constexpr std::uint64_t other_header = 256;
    std::vector<std::vector<OutputTensor>> parts(1);
    std::uint64_t bytes = first_bytes;
    for (const auto& tensor : tensors) {
        const auto more = described(*tensor.source) + tensor_bytes(*tensor.source, tensor.type);
        if (bytes + more > options.split_bytes && !parts.back().empty()) {
            parts.emplace_back();
            bytes = other_header;
        }
        parts.back().push_back(tensor);
        bytes += more;
    }
    return parts;
}

/// Fills in header and offsets of one file.
void finish(Part& part) {
    std::uint64_t data = 0;
    for (auto& tensor : part.tensors) {
        add_tensor(part.context.get(), tensor.source->name, tensor.type, tensor.source->shape);
        tensor.offset = data;
        data += tensor_bytes(*tensor.source, tensor.type);
    }
    part.metadata = metadata_bytes(part.context.get());
    for (auto& tensor : part.tensors) tensor.offset += part.metadata.size();
    part.size = part.metadata.size() + data;
}

std::vector<Part> plan_parts(const GgufFile& source, const Recipe& recipe, const Imatrix* imatrix, const fs::path& out,
                             const BuildOptions& options) {
    assert(!options.keep_split || options.split_bytes == 0);
    check_recipe(source, recipe, imatrix);
    std::vector<OutputTensor> tensors;
    // llama-quantize, too, leaves the tensors of a kept split in the source's order.
    for (const auto* tensor :
         ordered_tensors(source, options.keep_split ? std::vector<std::string>() : options.tensor_order))
        tensors.push_back({tensor, type_of(*tensor, recipe.types),
                           rounds_with_feedback(*tensor, recipe.types) ? Rounding::feedback : Rounding::ggml});
    const auto info = imatrix == nullptr ? std::nullopt : std::optional(imatrix_info(*imatrix, options.imatrix_file));
    auto metadata = make_metadata(source, info, options.file_type.value_or(file_type_number(source, recipe.types)),
                                  recipe_sha256(recipe), source.fingerprint(), options.provenance);
    auto dealt = deal(source, tensors, gguf_get_meta_size(metadata.get()) + GGUF_DEFAULT_ALIGNMENT, options);
    const bool is_split = options.split_bytes > 0 || dealt.size() > 1;
    if (dealt.size() > std::numeric_limits<std::uint16_t>::max())
        throw Error(
            fmt::format("cannot write {}: files of {} bytes would be {} and GGUF allows {}; choose a larger "
                        "--split-size",
                        out.string(), options.split_bytes, dealt.size(), std::numeric_limits<std::uint16_t>::max()));
    std::vector<Part> parts;
    for (std::size_t i = 0; i < dealt.size(); ++i) {
        auto& part = parts.emplace_back();
        part.path = is_split ? split_path(out, static_cast<int>(i) + 1, static_cast<int>(dealt.size())) : out;
        part.context = i == 0 ? std::move(metadata) : GgufContext(gguf_init_empty());
        if (is_split) {
            gguf_set_val_u16(part.context.get(), split_no, static_cast<std::uint16_t>(i));
            gguf_set_val_u16(part.context.get(), split_count, static_cast<std::uint16_t>(dealt.size()));
            gguf_set_val_i32(part.context.get(), split_tensors, static_cast<std::int32_t>(tensors.size()));
        }
        part.tensors = std::move(dealt[i]);
        finish(part);
    }
    return parts;
}

void check_moments(const GgufFile& source, const Recipe& recipe, const BuildOptions& options) {
    if (options.moments) return;
    for (const auto& tensor : source.tensors())
        if (rounds_with_feedback(tensor, recipe.types))
            throw Error(
                fmt::format("the recipe rounds {} with feedback, for which the second moments of its input are needed; "
                            "name the file that was collected with the measurements (--moments)",
                            tensor.name));
}

/// Space of all files together, and whether each may be written.
void check_output_paths(const GgufFile& source, const std::vector<Part>& parts, bool overwrite) {
    std::uint64_t total = 0;
    for (const auto& part : parts) total += part.size;
    for (const auto& part : parts) {
        for (const auto& path : source.paths())
            if (std::error_code code; fs::equivalent(part.path, path, code))
                throw Error(
                    fmt::format("cannot write {}: it is the source itself; choose another name", part.path.string()));
        check_output_path(part.path, total, overwrite);
    }
}

}  // namespace

ImatrixInfo imatrix_info(const Imatrix& imatrix, const std::string& file) {
    ImatrixInfo info;
    info.file = file;
    if (!imatrix.datasets.empty()) info.dataset = imatrix.datasets.front();
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
    return guessed_file_type(most->first);
}

void check_recipe(const GgufFile& source, const Recipe& recipe, const Imatrix* imatrix) {
    check_source(source, recipe);
    check_names(source, recipe.types);
    for (const auto& [name, scaling] : scaling_by_tensor(recipe.scaling)) {
        const auto* tensor = source.find(name);
        if (tensor == nullptr)
            throw Error(fmt::format("the recipe scales {}, which {} does not have", name, source.path().string()));
        check_scaling(*tensor, scaling);
    }
    check_imatrix(recipe, imatrix);
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

std::string requantization_warning(const GgufFile& source, const TypeMap& types) {
    std::map<std::string, int> counts;
    for (const auto& tensor : source.tensors())
        if (ggml_is_quantized(tensor.type) && type_of(tensor, types) != tensor.type) ++counts[type_name(tensor.type)];
    if (counts.empty()) return "";
    std::vector<std::string> parts;
    for (const auto& [type, count] : counts) parts.push_back(fmt::format("{} in {}", count, type));
    return fmt::format(
        "{} holds tensors that are quantized already ({}) and are rounded a second time: what the first rounding lost "
        "stays lost; use the original model where you can",
        source.path().string(), fmt::join(parts, ", "));
}

std::vector<PlannedFile> plan_build(const GgufFile& source, const Recipe& recipe, const Imatrix* imatrix,
                                    const fs::path& out, const BuildOptions& options) {
    std::vector<PlannedFile> files;
    for (const auto& part : plan_parts(source, recipe, imatrix, out, options)) {
        auto& file = files.emplace_back(PlannedFile{part.path, part.size, {}});
        for (const auto& tensor : part.tensors) file.tensors.push_back(tensor.source->name);
    }
    return files;
}

std::uint64_t build_gguf(const GgufFile& source, const Recipe& recipe, const Imatrix* imatrix, const fs::path& out,
                         const BuildOptions& options, Progress& progress) {
    const auto parts = plan_parts(source, recipe, imatrix, out, options);
    check_moments(source, recipe, options);
    check_output_paths(source, parts, options.overwrite);
    std::uint64_t total = 0;
    std::vector<std::unique_ptr<AtomicFile>> files;
    std::vector<OutputFile> outputs;
    for (const auto& part : parts) {
        auto& file = *files.emplace_back(std::make_unique<AtomicFile>(part.path));
        file.reserve(part.size);
        file.write_at(0, part.metadata.data(), part.metadata.size());
        outputs.push_back({&file, part.tensors});
        total += part.size;
    }
    progress.begin("building", static_cast<double>(total));
    write_tensors(source, outputs, imatrix, options.moments, scaling_by_tensor(recipe.scaling), options.known,
                  options.threads > 0 ? options.threads : physical_cores(), options.chunk_bytes, progress);
    source.check_unchanged();
    for (auto& file : files) file->make_durable();
    progress.check();
    if (std::error_code ignored; files.size() > 1) fs::remove(parts.front().path, ignored);
    std::for_each(files.rbegin(), files.rend(), [](auto& file) { file->commit(); });
    progress.advance(static_cast<double>(total), "");
    progress.end();
    return total;
}

}  // namespace cerebellum
