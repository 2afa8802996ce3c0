#include "cerebellum/pipeline/import_allocation.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cmath>

#include "cerebellum/build/build_gguf.h"
#include "cerebellum/build/hollow_gguf.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/leftovers.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/core/tensor_name.h"
#include "cerebellum/llama/presets.h"
#include "cerebellum/predict/transfer.h"
#include "cerebellum/version.h"

namespace cerebellum {

namespace fs = std::filesystem;

namespace {

/// libllama looks at whole files only. Of a header alone a file is made that has a hole where the data would be.
class WholeFile {
  public:
    explicit WholeFile(const GgufFile& file)
        : path_(file.path()),
          scratch_(file.has_data() ? fs::path()
                                   : fs::temp_directory_path() / fmt::format("cerebellum-{}.gguf", getpid())) {
        if (file.has_data()) return;
        path_ = scratch_.path();
        write_hollow_gguf(file, {}, path_);
    }
    const fs::path& path() const { return path_; }

  private:
    fs::path path_;
    ScratchFile scratch_;
    Leftover leftover_{scratch_.path()};
};

std::string upper(std::string text) {
    std::ranges::transform(text, text.begin(), [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
    return text;
}

TypeMap base_types(const GgufFile& file, const std::string& base, bool has_imatrix) {
    if (const auto preset = find_preset(upper(base)))
        return dry_run(WholeFile(file).path(), {.file_type = preset->file_type, .has_imatrix = has_imatrix}).types;
    if (const auto type = parse_type(base)) {
        const auto file_type = file_type_of(*type);
        if (!file_type) throw UsageError(fmt::format("llama-quantize has no mix of the type {}", base));
        return dry_run(WholeFile(file).path(), {.file_type = *file_type, .has_imatrix = has_imatrix}).types;
    }
    if (!fs::exists(base))
        throw UsageError(fmt::format("--base {} is neither a mix of llama-quantize nor a recipe file", base));
    return complete_types(file, read_recipe(base).types);
}

/// Whether llama-quantize v0.5.0 makes the type only with an importance matrix entry (tensor_requires_imatrix in its
/// src/llama-quant.cpp): more types than ggml itself insists on one for.
bool llama_quantize_needs_imatrix(ggml_type type) {
    return type_needs_imatrix(type) || type == GGML_TYPE_IQ3_XXS || type == GGML_TYPE_IQ2_S || type == GGML_TYPE_IQ1_M;
}

/// Weights that llama-quantize would quantize, by shape and type, which is all that a list tells.
bool could_be_quantized(const TensorInfo& tensor) {
    return tensor.n_dims >= 2 && tensor.type != GGML_TYPE_F32 && tensor.name.ends_with(".weight");
}

class Builder {
  public:
    Builder(const DamageTable& table, const ImportedModel& model, const ImportOptions& options)
        : table_(table), model_(model), options_(options) {
        check_names(
            table, [&](const std::string& name) { return model.base.find(name) != nullptr; }, model.base.origin);
        for (const auto& row : table.rows) measured_.emplace(row.tensor, row.type);
        // Only a crush sweep starts from rounded tensors; all others from the source.
        if (table.is_crush_sweep)
            for (const auto& tensor : model.base.tensors) baseline_types_[tensor.name] = tensor.type;
        result_.metric = table.metric;
        for (const auto* notes : {&table.notes, &model.notes})
            result_.notes.insert(result_.notes.end(), notes->begin(), notes->end());
    }

    ImportedAllocation build() {
        sensitivities_ = sensitivities(table_, baseline_types_, &smallest_bits_);
        find_skipped();
        if (options_.extrapolate_layer) learn_blocks();
        AllocationProblem problem;
        problem.fixed_bytes = model_.fixed_bytes;
        for (const auto& tensor : model_.base.tensors) {
            auto choices = choices_of(tensor);
            if (choices.size() > 1)
                problem.tensors.push_back({tensor.name, std::move(choices)});
            else
                problem.fixed_bytes += tensor_bytes(tensor, tensor.type);
        }
        if (problem.tensors.empty())
            throw Error(
                fmt::format("there is nothing to decide: no measured tensor of {} may have another type than "
                            "it has in the base; allow more --types or give an --imatrix",
                            table_.origin));
        const auto allocation = allocate(problem, options_.budget_bytes);
        describe(allocation);
        return std::move(result_);
    }

  private:
    void find_skipped() {
        for (const auto& [tensor, type] : measured_) {
            const auto base = baseline_types_.find(tensor);
            const auto crushed = parse_foreign_type(type);
            if (base != baseline_types_.end() && crushed && crushed->type == base->second)
                result_.at_crush_type.push_back(tensor);
        }
        if (!measured_.empty() && result_.at_crush_type.size() == measured_.size())
            throw Error(fmt::format(
                "every tensor that {} measured ({}, …) has the type already that it was crushed to, so the file says "
                "nothing; name the base it was measured from with --base, or the right --crush type",
                table_.origin, measured_.begin()->first));
    }

    void learn_blocks() {
        for (const auto& [tensor, sensitivity] : sensitivities_)
            if (const auto block = block_of(tensor)) blocks_.add(*block, sensitivity.at(reference_error));
        for (const auto& [tensor, bits] : smallest_bits_)
            extrapolated_bits_ = extrapolated_bits_ == 0.0 ? bits : std::max(extrapolated_bits_, bits);
    }

    std::vector<TypeChoice> choices_of(const TensorInfo& tensor) {
        const TypeChoice base{tensor.type, tensor_bytes(tensor, tensor.type), 0.0};
        if (const auto known = sensitivities_.find(tensor.name); known != sensitivities_.end()) {
            ++result_.measured;
            return offered(tensor, base, known->second, smallest_bits_.at(tensor.name));
        }
        if (std::ranges::find(result_.at_crush_type, tensor.name) != result_.at_crush_type.end() ||
            !could_be_quantized(tensor))
            return {base};
        if (const auto block = block_of(tensor.name); options_.extrapolate_layer && block && !blocks_.empty()) {
            result_.extrapolated.push_back(tensor.name);
            return offered(tensor, base, Sensitivity({{std::log(reference_error), blocks_.at(*block)}}),
                           extrapolated_bits_);
        }
        result_.unmeasured.push_back(tensor.name);
        return {base};
    }

    std::vector<TypeChoice> offered(const TensorInfo& tensor, const TypeChoice& base, const Sensitivity& sensitivity,
                                    double smallest_bits) const {
        const auto known = baseline_types_.find(tensor.name);
        const double base_error = known == baseline_types_.end() ? 0.0 : rounding_error(known->second);
        const auto source = model_.source_types.find(tensor.name);
        std::vector<TypeChoice> choices = {base};
        // Figures against high precision, and a base that is not: it does damage as well.
        if (source == model_.source_types.end() || source->second != tensor.type)
            choices.front().cost = sensitivity.damage(rounding_error(tensor.type), base_error);
        const auto offer = [&](ggml_type type) {
            if (std::ranges::find(choices, Encoding(type), &TypeChoice::type) != choices.end()) return;
            choices.push_back({type, tensor_bytes(tensor, type), sensitivity.damage(rounding_error(type), base_error)});
        };
        const double most_bits = bits_per_weight(source != model_.source_types.end() ? source->second
                                                 : ggml_is_quantized(tensor.type)    ? GGML_TYPE_Q8_0
                                                                                     : tensor.type);
        if (source != model_.source_types.end()) offer(source->second);
        const bool has_entry = options_.imatrix != nullptr && options_.imatrix->entries.contains(tensor.name);
        for (const auto type : options_.types.empty() ? default_types() : options_.types) {
            // Nothing is known of types smaller than any that was measured.
            if (bits_per_weight(type) < std::min(smallest_bits, bits_per_weight(tensor.type)) ||
                bits_per_weight(type) > most_bits || !type_fits_row(type, tensor.row_length()))
                continue;
            if (llama_quantize_needs_imatrix(type) && !has_entry) continue;
            offer(type);
        }
        return choices;
    }

    void describe(const Allocation& allocation) {
        auto& recipe = result_.recipe;
        for (const auto& tensor : model_.base.tensors) recipe.types[tensor.name] = tensor.type;
        for (const auto& [name, type] : allocation.types) recipe.types[name] = type;
        recipe.source_name = model_.name;
        recipe.source_fingerprint = model_.fingerprint;
        recipe.file_bytes = allocation.file_bytes;
        recipe.predicted_kld = allocation.cost;
        result_.tensor_bytes = allocation.file_bytes - model_.fixed_bytes;
        result_.optimal = allocation.exact;
        if (!model_.fixed_bytes_known)
            result_.notes.emplace_back(
                "bytes are of tensor data alone: a tensor map does not say how large header and "
                "tokenizer are; leave room for them, or give the model's header with --model");
        if (!table_.missing.empty())
            result_.notes.push_back(fmt::format("{} measurements are marked as failed in the file, the first {}",
                                                table_.missing.size(), table_.missing.front()));
        if (!table_.unread.empty())
            result_.notes.push_back(
                fmt::format("{} tensors lost nothing at all, so nothing read them: they count as "
                            "not measured, the first {}",
                            table_.unread.size(), table_.unread.front()));
        const auto negative =
            std::ranges::count_if(table_.rows, [&](const DamageRow& row) { return row.value(table_.metric) < 0.0; });
        if (negative > 0)
            result_.notes.push_back(fmt::format(
                "{} of {} figures are below zero, which is noise until shown otherwise: they count as no damage",
                negative, table_.rows.size()));
        recipe.provenance = {
            {"cerebellum", CEREBELLUM_VERSION},
            {"llama.cpp", CEREBELLUM_LLAMA_VERSION},
            {"budget_bytes", std::to_string(options_.budget_bytes)},
            {"optimal", allocation.exact ? "yes" : "within the gap to the lower bound"},
            {"imported_from", fs::path(table_.origin).filename().string()},
            {"metric", table_.metric == Metric::kld ? "KLD, nats per token" : "loss of log-likelihood, nats per token"},
            {"transfer", "types that were not measured: damage in proportion to ggml's rounding error"}};
    }

    /// Where a block's tensors, measured in whatever types, are compared: about Q2_K's.
    static constexpr double reference_error = 0.1;

    const DamageTable& table_;
    const ImportedModel& model_;
    const ImportOptions& options_;
    std::map<std::string, std::string> measured_;  // a type that each was measured in
    std::map<std::string, ggml_type> baseline_types_;
    std::map<std::string, Sensitivity> sensitivities_;
    std::map<std::string, double> smallest_bits_;
    BlockMeans blocks_;
    double extrapolated_bits_ = 0.0;
    ImportedAllocation result_;
};

}  // namespace

std::uint64_t longest_fixed_bytes(const GgufFile& source) {
    constexpr std::size_t longest_name = 127;
    ImatrixInfo imatrix;
    imatrix.file = std::string(longest_name, 'x');
    imatrix.dataset = imatrix.file;
    imatrix.chunks_count = 1;
    return fixed_bytes(source, imatrix);
}

ImportedModel imported_model(const ExportedModel& model) {
    ImportedModel result;
    result.base = model.baseline;
    result.source_types = model.source_types;
    result.fixed_bytes = model.fixed_bytes;
    result.fixed_bytes_known = true;
    result.name = model.name;
    result.fingerprint = model.fingerprint;
    return result;
}

ImportedModel imported_model(TensorList map) {
    ImportedModel result;
    for (const auto& tensor : map.tensors) result.source_types[tensor.name] = tensor.type;
    result.name = map.origin;
    result.base = std::move(map);
    return result;
}

ImportedModel imported_model(const GgufFile& file, const std::string& base, bool has_imatrix) {
    ImportedModel result;
    result.base = tensor_list(file);
    const bool quantized = std::ranges::any_of(file.tensors(), [](const auto& t) { return ggml_is_quantized(t.type); });
    // What is quantized itself is not what the recipe will be built from.
    if (!quantized) {
        for (const auto& tensor : file.tensors()) result.source_types[tensor.name] = tensor.type;
        if (file.has_data()) result.fingerprint = file.fingerprint();
    }
    if (!base.empty()) {
        for (const auto& [name, type] : base_types(file, base, has_imatrix))
            for (auto& tensor : result.base.tensors)
                if (tensor.name == name) {
                    tensor.type = type.type;
                    tensor.size_bytes = type_size_bytes(type.type, tensor.row_length(), tensor.n_rows());
                }
    }
    result.fixed_bytes = longest_fixed_bytes(file);
    result.fixed_bytes_known = true;
    result.name = file.path().filename().string();
    return result;
}

ImportedAllocation allocate_imported(const DamageTable& table, const ImportedModel& model,
                                     const ImportOptions& options) {
    return Builder(table, model, options).build();
}

}  // namespace cerebellum
