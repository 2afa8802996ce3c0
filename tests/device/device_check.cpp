// Compares replay on a device with llama.cpp's own evaluation on the same device and with the CPU, for every model in a
// folder, or for one: how far the logits are apart, how well it repeats itself, and whether a substituted weight does
// there what it does on the CPU. Prints a Markdown table. For devices whose arithmetic is not bit-identical to the
// CPU's. Then it checks, on the model that admits most of them, all pairs of types that differ in nothing but the type.
#include <fmt/format.h>
#include <llama.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <random>
#include <vector>

#include "cerebellum/core/error.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/llama/log.h"
#include "cerebellum/llama/presets.h"
#include "cerebellum/quantize/quantize_tensor.h"
#include "cerebellum/replay/engine.h"
#include "cerebellum/replay/score_kernels.h"
#include "type_pairs.h"

namespace cerebellum {
namespace {

namespace fs = std::filesystem;

constexpr int n_tokens = 64;

/// Logits of a window as llama.cpp computes them with all layers on the device.
std::vector<float> decode_on(const std::string& device, const fs::path& path, const std::vector<Token>& tokens) {
    auto model_params = llama_model_default_params();
    ggml_backend_dev_t devices[] = {ggml_backend_dev_by_name(device.c_str()), nullptr};
    model_params.devices = devices;
    model_params.n_gpu_layers = 999;
    auto* model = llama_model_load_from_file(path.c_str(), model_params);
    if (model == nullptr) throw Error(fmt::format("{} cannot be loaded on {}", path.string(), device));
    auto params = llama_context_default_params();
    params.n_ctx = params.n_batch = params.n_ubatch = n_tokens;
    params.n_seq_max = 1;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    auto* context = llama_init_from_model(model, params);
    auto batch = llama_batch_init(n_tokens, 0, 1);
    batch.n_tokens = n_tokens;
    for (int i = 0; i < n_tokens; ++i) {
        batch.token[i] = tokens[static_cast<std::size_t>(i)];
        batch.pos[i] = i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = 1;
    }
    const int status = llama_decode(context, batch);
    const auto* logits = llama_get_logits(context);
    const auto n = static_cast<std::size_t>(n_tokens) *
                   static_cast<std::size_t>(llama_vocab_n_tokens(llama_model_get_vocab(model)));
    std::vector<float> result;
    if (status == 0) result.assign(logits, logits + n);
    llama_batch_free(batch);
    llama_free(context);
    llama_model_free(model);
    if (status != 0) throw Error(fmt::format("llama_decode on {} returned {}", device, status));
    return result;
}

struct Replayed {
    std::vector<float> logits;
    double kld_of_substitution = 0.0;
    double null_floor = 0.0;
};

Replayed replay_on(const std::string& device, const Model& model, const std::vector<Token>& tokens,
                   const Substitutions& substitutes) {
    EngineOptions options;
    options.device = device;
    ReplayEngine engine(model, n_tokens, options);
    const auto window = engine.prepare(tokens);
    const auto cuts = engine.topology().cuts();
    const auto to_head = [&](const Substitutions& changed) {
        LiveState state;
        for (std::size_t c = 0; c + 2 < cuts.size(); ++c) {
            Slice::Options range_options;
            range_options.substitutes = changed;
            const auto range = engine.slice(cuts[c], cuts[c + 1], range_options);
            range->run(window.inputs, state);
            state = range->live_out(state);
        }
        return state;
    };
    Replayed result;
    const auto at_head = to_head({});
    Slice::Options head_options;
    const int logits = engine.topology().graph().logits;
    head_options.reads = {logits};
    const auto head = engine.slice(engine.topology().head_cut(), engine.topology().n_nodes(), head_options);
    head->run(window.inputs, at_head);
    const auto bytes = head->read(logits);
    result.logits.resize(bytes.size() / sizeof(float));
    std::memcpy(result.logits.data(), bytes.data(), bytes.size());
    engine.set_reference(window, at_head);
    const auto floor = engine.score(window, to_head({}));
    result.null_floor = floor.kld / floor.count;
    const auto changed = engine.make_head(substitutes);
    const auto score = engine.score(*changed, window, to_head(substitutes));
    result.kld_of_substitution = score.kld / score.count;
    return result;
}

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
    double largest = 0.0;
    for (std::size_t i = 0; i < a.size(); ++i) {
        const double difference = std::fabs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
        if (!(difference <= largest)) largest = difference;
    }
    return largest;
}

double spread(const std::vector<float>& values) {
    const auto [low, high] = std::ranges::minmax(values);
    return static_cast<double>(high) - static_cast<double>(low);
}

void check(const std::string& device, const fs::path& path) {
    const auto model = Model::load(path);
    const auto source = GgufFile::open(path);
    std::mt19937 random(2);
    std::uniform_int_distribution<Token> token(0, model.n_vocab() - 1);
    std::vector<Token> tokens(n_tokens);
    for (auto& t : tokens) t = token(random);

    Decoder decoder(model, n_tokens, 4);
    const auto cpu_logits = decoder.decode(tokens);
    const std::vector<float> on_cpu(cpu_logits.begin(), cpu_logits.end());
    const auto on_device = decode_on(device, path, tokens);

    // One matrix in the middle of the model.
    const auto names = quantizable_tensors(path);
    std::string name;
    std::vector<std::byte> bytes;
    for (const auto& candidate : names) {
        const auto* tensor = source.find(candidate);
        if (!candidate.starts_with("blk.1.") || !type_fits_row(GGML_TYPE_Q4_0, tensor->row_length())) continue;
        name = candidate;
        bytes = quantize_tensor(*tensor, source.data(*tensor), GGML_TYPE_Q4_0, {}, 4);
        break;
    }
    Substitutions substitutes;
    if (!name.empty()) substitutes[name] = {GGML_TYPE_Q4_0, bytes};
    const auto there = replay_on(device, model, tokens, substitutes);
    const auto here = replay_on("CPU", model, tokens, substitutes);
    fmt::print("| {} | {:.1f} | {:.2e} | {:.2e} | {:.2e} | {:.1e} | {} | {:.3e} | {:.3e} |\n", path.stem().string(),
               spread(on_cpu), largest_difference(there.logits, on_device), largest_difference(there.logits, on_cpu),
               largest_difference(on_device, on_cpu), there.null_floor, name.empty() ? "–" : name,
               there.kld_of_substitution, here.kld_of_substitution);
    std::fflush(stdout);
}

int run(int argc, char** argv) {
    if (argc != 3) {
        fmt::print(stderr, "usage: {} DEVICE MODEL_OR_FOLDER_WITH_MODELS\n", argv[0]);
        return 2;
    }
    silence_llama_log();
    std::vector<fs::path> files;
    if (fs::is_regular_file(argv[2]))
        files.emplace_back(argv[2]);
    else
        for (const auto& entry : fs::directory_iterator(argv[2]))
            if (entry.path().extension() == ".gguf") files.push_back(entry.path());
    std::ranges::sort(files);
    fmt::print(
        "| model | logits' range | replay − llama.cpp on {0} | replay − CPU | llama.cpp on {0} − CPU | null floor, KLD "
        "| "
        "substituted by Q4_0 | its KLD | on the CPU |\n|---|--:|--:|--:|--:|--:|---|--:|--:|\n",
        argv[1]);
    int failed = 0;
    for (const auto& file : files) {
        try {
            check(argv[1], file);
        } catch (const Error& error) {
            fmt::print("| {} | {} |\n", file.stem().string(), error.what());
            ++failed;
        }
    }
    fmt::print("\n{} passed, {} failed\n", static_cast<int>(files.size()) - failed, failed);
    const auto richest = std::ranges::max_element(files, {}, count_type_pairs);
    int wrong = 0;
    if (richest == files.end() || count_type_pairs(*richest) == 0)
        fmt::print("pairs of types not checked: no model here has a matrix in its second block that they fit\n");
    else
        fmt::print("{} pairs of types disagree\n", wrong = check_type_pairs(argv[1], *richest));
    return failed == 0 && wrong == 0 ? 0 : 1;
}

}  // namespace
}  // namespace cerebellum

int main(int argc, char** argv) {
    return cerebellum::run(argc, argv);
}
