#include "cerebellum/llama/presets.h"

#include <fmt/format.h>
#include <llama.h>

#include <algorithm>
#include <regex>
#include <set>
#include <sstream>

#include "cerebellum/core/error.h"
#include "cerebellum/core/ggml_abort.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/llama/log.h"

namespace cerebellum {

const std::vector<Preset>& stock_presets() {
    // The names are those of tools/quantize/quantize.cpp; libllama has no list of them.
    static const std::vector<Preset> presets = {
        {"IQ1_S", LLAMA_FTYPE_MOSTLY_IQ1_S},     {"IQ1_M", LLAMA_FTYPE_MOSTLY_IQ1_M},
        {"IQ2_XXS", LLAMA_FTYPE_MOSTLY_IQ2_XXS}, {"IQ2_XS", LLAMA_FTYPE_MOSTLY_IQ2_XS},
        {"IQ2_S", LLAMA_FTYPE_MOSTLY_IQ2_S},     {"IQ2_M", LLAMA_FTYPE_MOSTLY_IQ2_M},
        {"Q2_K_S", LLAMA_FTYPE_MOSTLY_Q2_K_S},   {"Q2_K", LLAMA_FTYPE_MOSTLY_Q2_K},
        {"IQ3_XXS", LLAMA_FTYPE_MOSTLY_IQ3_XXS}, {"IQ3_XS", LLAMA_FTYPE_MOSTLY_IQ3_XS},
        {"Q3_K_S", LLAMA_FTYPE_MOSTLY_Q3_K_S},   {"IQ3_S", LLAMA_FTYPE_MOSTLY_IQ3_S},
        {"IQ3_M", LLAMA_FTYPE_MOSTLY_IQ3_M},     {"Q3_K_M", LLAMA_FTYPE_MOSTLY_Q3_K_M},
        {"Q3_K_L", LLAMA_FTYPE_MOSTLY_Q3_K_L},   {"IQ4_XS", LLAMA_FTYPE_MOSTLY_IQ4_XS},
        {"IQ4_NL", LLAMA_FTYPE_MOSTLY_IQ4_NL},   {"Q4_0", LLAMA_FTYPE_MOSTLY_Q4_0},
        {"Q4_K_S", LLAMA_FTYPE_MOSTLY_Q4_K_S},   {"Q4_K_M", LLAMA_FTYPE_MOSTLY_Q4_K_M},
        {"Q4_1", LLAMA_FTYPE_MOSTLY_Q4_1},       {"Q5_0", LLAMA_FTYPE_MOSTLY_Q5_0},
        {"Q5_K_S", LLAMA_FTYPE_MOSTLY_Q5_K_S},   {"Q5_K_M", LLAMA_FTYPE_MOSTLY_Q5_K_M},
        {"Q5_1", LLAMA_FTYPE_MOSTLY_Q5_1},       {"Q6_K", LLAMA_FTYPE_MOSTLY_Q6_K},
        {"Q8_0", LLAMA_FTYPE_MOSTLY_Q8_0},
    };
    return presets;
}

std::optional<Preset> find_preset(std::string_view name) {
    const auto found = std::ranges::find(stock_presets(), name, &Preset::name);
    return found != stock_presets().end() ? std::optional(*found) : std::nullopt;
}

std::optional<Preset> find_quantization(std::string_view name) {
    static const std::vector<Preset> others = {
        {"Q1_0", LLAMA_FTYPE_MOSTLY_Q1_0},   {"Q2_0", LLAMA_FTYPE_MOSTLY_Q2_0},
        {"TQ1_0", LLAMA_FTYPE_MOSTLY_TQ1_0}, {"TQ2_0", LLAMA_FTYPE_MOSTLY_TQ2_0},
        {"Q3_K", LLAMA_FTYPE_MOSTLY_Q3_K_M}, {"Q4_K", LLAMA_FTYPE_MOSTLY_Q4_K_M},
        {"Q5_K", LLAMA_FTYPE_MOSTLY_Q5_K_M}, {"MXFP4_MOE", LLAMA_FTYPE_MOSTLY_MXFP4_MOE},
        {"F16", LLAMA_FTYPE_MOSTLY_F16},     {"BF16", LLAMA_FTYPE_MOSTLY_BF16},
        {"F32", LLAMA_FTYPE_ALL_F32},
    };
    std::string upper(name);
    std::ranges::transform(upper, upper.begin(), [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
    if (auto preset = find_preset(upper)) return preset;
    const auto found = std::ranges::find(others, upper, &Preset::name);
    return found != others.end() ? std::optional(*found) : std::nullopt;
}

std::optional<int> file_type_of(ggml_type type) {
    switch (type) {
        case GGML_TYPE_F32:
            return LLAMA_FTYPE_ALL_F32;
        case GGML_TYPE_F16:
            return LLAMA_FTYPE_MOSTLY_F16;
        case GGML_TYPE_BF16:
            return LLAMA_FTYPE_MOSTLY_BF16;
        case GGML_TYPE_Q2_K:
            return LLAMA_FTYPE_MOSTLY_Q2_K;
        case GGML_TYPE_Q3_K:
            return LLAMA_FTYPE_MOSTLY_Q3_K_S;
        case GGML_TYPE_Q4_K:
            return LLAMA_FTYPE_MOSTLY_Q4_K_S;
        case GGML_TYPE_Q5_K:
            return LLAMA_FTYPE_MOSTLY_Q5_K_S;
        case GGML_TYPE_IQ2_S:
            return LLAMA_FTYPE_MOSTLY_IQ2_M;
        default:
            break;
    }
    // Elsewhere the mix carries the name of its type.
    std::string name = type_name(type);
    std::ranges::transform(name, name.begin(), [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
    const auto preset = find_preset(name);
    return preset ? std::optional(preset->file_type) : std::nullopt;
}

QuantizeOutcome dry_run(const std::filesystem::path& model, const QuantizeRequest& request) {
    auto params = llama_model_quantize_default_params();
    params.ftype = static_cast<llama_ftype>(request.file_type);
    params.pure = request.pure;
    params.dry_run = true;
    params.allow_requantize = true;
    if (request.token_embedding_type) params.token_embedding_type = *request.token_embedding_type;
    std::vector<llama_model_tensor_override> overrides;
    for (const auto& [pattern, type] : request.overrides) overrides.push_back({pattern.c_str(), type});
    overrides.push_back({nullptr, GGML_TYPE_COUNT});
    if (!request.overrides.empty()) params.tt_overrides = overrides.data();
    // Only whether there is an importance matrix matters to the choice of types, not what is in it.
    const float one = 1.0F;
    const llama_model_imatrix_data some_imatrix[] = {{"none", &one, 1}, {nullptr, nullptr, 0}};
    if (request.has_imatrix) params.imatrix = some_imatrix;

    const LogCapture log;
    const AbortBlame blame(model.native());
    if (llama_model_quantize(model.c_str(), "", &params) != 0)
        throw Error(fmt::format("llama.cpp cannot quantize {}: {}", model.string(), log.last_error("no reason given")));
    // "[   1/  47] token_embd.weight - [ 64, 512, 1, 1], type = f16, size = 0.06 MiB -> 0.03 MiB (q8_0)"; warnings
    // about fallbacks may stand on lines of their own in between.
    static const std::regex line_pattern(
        R"(\[ *\d+/ *\d+\] +(\S+) +- \[[^\]]*\], type = +(\S+), size = +[0-9.]+ MiB(?: -> +[0-9.]+ MiB \((\S+)\))?)");
    QuantizeOutcome outcome;
    std::istringstream lines(log.text());
    for (std::string line; std::getline(lines, line);) {
        std::smatch match;
        constexpr std::size_t longest_line = 1000;  // std::regex takes stack for each character
        if (line.size() > longest_line || !std::regex_search(line, match, line_pattern)) continue;
        const auto type = parse_type(match[3].matched ? match[3].str() : match[2].str());
        if (!type) throw Error(fmt::format("llama.cpp's dry run names an unknown type: {}", line));
        outcome.order.push_back(match[1].str());
        outcome.types[match[1].str()] = *type;
    }
    outcome.lacks_imatrix = log.text().find("will require an imatrix") != std::string::npos;
    if (outcome.order.empty()) throw Error(fmt::format("llama.cpp's dry run of {} listed no tensors", model.string()));
    return outcome;
}

std::vector<std::string> quantizable_tensors(const std::filesystem::path& model) {
    // With a 32- or 16-bit target every tensor that may be quantized takes that type; whichever source type a tensor
    // has, it differs from one of the two.
    const auto to_f32 = dry_run(model, {.file_type = LLAMA_FTYPE_ALL_F32});
    const auto to_f16 = dry_run(model, {.file_type = LLAMA_FTYPE_MOSTLY_F16});
    std::vector<std::string> names;
    for (const auto& name : to_f32.order)
        if (to_f32.types.at(name) != to_f16.types.at(name)) names.push_back(name);
    return names;
}

}  // namespace cerebellum
