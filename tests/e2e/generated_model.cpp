#include "tests/e2e/generated_model.h"

#include <fmt/format.h>
#include <ggml.h>
#include <gguf.h>
#include <llama.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <regex>
#include <string_view>
#include <utility>
#include <variant>

#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/gguf/gguf_write.h"
#include "cerebellum/llama/log.h"

namespace cerebellum::testing {

namespace {

using Integers = std::vector<std::uint32_t>;
using Tokens = std::vector<std::int32_t>;
using Value = std::variant<std::uint32_t, float, Integers, Tokens>;

/// A key that begins with a dot belongs to the architecture: its name goes in front.
using Metadata = std::map<std::string, Value>;

struct Blueprint {
    std::string architecture;
    Metadata metadata;  // on top of common_metadata()
    /// Tensors that are left out. Asked for a model that has no file, libllama makes every tensor that it knows to be
    /// optional; real files have no such thing as a scale next to a float matrix, and which of the optional ones are
    /// there decides what graph is built.
    std::string dropped = ".*scale";
    std::uint32_t n_vocab = 128;
};

/// Every row is a multiple of 32 long, so that it fits the types with small blocks.
Metadata common_metadata() {
    return {{".context_length", 256U},
            {".embedding_length", 64U},
            {".feed_forward_length", 96U},
            {".block_count", 3U},
            {".attention.head_count", 2U},
            {".attention.layer_norm_epsilon", 1e-5F},
            {".attention.layer_norm_rms_epsilon", 1e-5F}};
}

/// Four experts of which two are used, and one more that always is.
const Metadata& expert_metadata() {
    static const Metadata metadata = {{".expert_count", 4U},
                                      {".expert_used_count", 2U},
                                      {".expert_shared_count", 1U},
                                      {".expert_feed_forward_length", 64U},
                                      {".expert_shared_feed_forward_length", 96U}};
    return metadata;
}

/// ggml's kernel writes past the end of heads whose size is no multiple of 64 (with AVX-512; 32 with AVX2): it takes
/// whole steps of that many. Real models have heads of 64.
const Metadata& rwkv7_metadata() {
    static const Metadata metadata = {{".attention.head_count", 0U},
                                      {".embedding_length", 128U},
                                      {".wkv.head_size", 64U},
                                      {".attention.decay_lora_rank", 32U},
                                      {".attention.iclr_lora_rank", 32U},
                                      {".attention.value_residual_mix_lora_rank", 32U},
                                      {".attention.gate_lora_rank", 64U},
                                      {".token_shift_count", 2U}};
    return metadata;
}

const Metadata& rwkv6_metadata() {
    static const Metadata metadata = {{".attention.head_count", 0U},
                                      {".wkv.head_size", 32U},
                                      {".time_mix_extra_dim", 32U},
                                      {".time_decay_extra_dim", 64U},
                                      {".token_shift_count", 2U}};
    return metadata;
}

Metadata operator+(Metadata left, const Metadata& right) {
    for (const auto& [key, value] : right) left[key] = value;
    return left;
}

const std::map<std::string, Blueprint>& blueprints() {
    static const std::map<std::string, Blueprint> all = {
        {"apertus",
         {"apertus", {{"xielu.alpha_n", 0.8F}, {"xielu.alpha_p", 0.8F}, {"xielu.beta", 0.5F}, {"xielu.eps", -1e-6F}}}},
        // Without the group norm behind the state, which this one may lack.
        {"arwkv7", {"arwkv7", rwkv7_metadata() + Metadata{{".token_shift_count", 1U}}, R"(.*scale|.*time_mix_ln\..*)"}},
        // With the scale that each of its ternary matrices may have.
        {"bitnet", {"bitnet", {}, ".*input_scale|output.*scale"}},
        // The graph overwrites the logits of the image tokens, 4 to 8195, whatever the vocabulary is.
        {"chameleon", {"chameleon", {}, ".*scale", 8224U}},
        {"deepseek2-ocr",
         {"deepseek2-ocr", expert_metadata() + Metadata{{".leading_dense_block_count", 1U}}, ".*scale"}},
        // The last two of 22 blocks use keys and values of earlier ones: where that begins is hard-coded.
        {"gemma3n",
         {"gemma3n",
          {{".block_count", 22U},
           {".attention.head_count_kv", 1U},
           {".attention.sliding_window", 16U},
           {".attention.sliding_window_pattern",
            Integers{1, 1, 1, 1, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 0, 1, 0}}},
          R"(.*\.scale|.*input_scale|output\.weight)"}},
        // Like the small ones of its family: input embeddings per block, a tied head, keys and values shared by the
        // last blocks, whose feed-forward part is twice as wide, and larger heads where attention is not windowed.
        {"gemma4",
         {"gemma4",
          {{".block_count", 6U},
           {".feed_forward_length", Integers{96, 96, 96, 96, 192, 192}},
           {".attention.head_count_kv", 1U},
           {".attention.key_length", 64U},
           {".attention.value_length", 64U},
           {".attention.key_length_swa", 32U},
           {".attention.value_length_swa", 32U},
           {".rope.dimension_count", 64U},
           {".rope.dimension_count_swa", 32U},
           {".attention.sliding_window", 16U},
           {".attention.sliding_window_pattern", Integers{1, 1, 1, 0, 1, 0}},
           {".attention.shared_kv_layers", 2U},
           {".embedding_length_per_layer_input", 32U},
           {".final_logit_softcapping", 30.0F}},
          R"(.*\.scale|.*input_scale|output\.weight|blk\.[45]\.attn_(k|v|k_norm)\..*)"}},
        // Like the large ones: experts next to the feed-forward part, and values that are the keys where attention is
        // not windowed.
        {"gemma4-moe",
         {"gemma4",
          expert_metadata() + Metadata{{".block_count", 4U},
                                       {".attention.head_count_kv", 1U},
                                       {".attention.key_length", 64U},
                                       {".attention.value_length", 64U},
                                       {".attention.key_length_swa", 32U},
                                       {".attention.value_length_swa", 32U},
                                       {".rope.dimension_count", 64U},
                                       {".rope.dimension_count_swa", 32U},
                                       {".attention.sliding_window", 16U},
                                       {".attention.sliding_window_pattern", Integers{1, 1, 1, 0}},
                                       {".embedding_length_per_layer_input", 0U},
                                       {".final_logit_softcapping", 30.0F}},
          R"(.*(attn_\w+|ffn_(gate|up|down|gate_exps|up_exps)|output)\.scale|.*input_scale|output\.weight|blk\.3\.attn_v\.weight)"}},
        // Four sets of low-rank additions, each switched on by a token of its own.
        {"graniteswitch",
         {"graniteswitch",
          {{".logit_scale", 1.0F},
           {".adapters.count", 4U},
           {".adapters.lora_rank", 32U},
           {".adapters.token_ids_activate", Tokens{3, 30, 60, 90}},
           {".adapters.token_ids_substitute", Tokens{4, 31, 61, 91}}}}},
        {"plm",
         {"plm",
          {{".attention.key_length", 64U},
           {".attention.value_length", 32U},
           {".rope.dimension_count", 32U},
           {".attention.kv_lora_rank", 32U}}}},
        {"rwkv6", {"rwkv6", rwkv6_metadata() + Metadata{{".rescale_every_n_layers", 2U}}}},
        // Without a bonus for the current token; that is how libllama tells it from rwkv6.
        {"rwkv6qwen2",
         {"rwkv6qwen2", rwkv6_metadata() + Metadata{{".token_shift_count", 1U}, {".attention.head_count_kv", 1U}},
          ".*scale|.*time_mix_first.*"}},
        {"rwkv7", {"rwkv7", rwkv7_metadata()}},
        // One dense block in front, and more heads where attention is windowed.
        {"step35",
         {"step35",
          expert_metadata() + Metadata{{".attention.head_count", Integers{2, 3, 2}},
                                       {".attention.head_count_kv", 1U},
                                       {".attention.key_length", 32U},
                                       {".attention.value_length", 32U},
                                       {".attention.sliding_window", 16U},
                                       {".attention.sliding_window_pattern", Integers{0, 1, 0}}},
          R"(.*scale|blk\.0\.ffn_(.*exp.*|gate_inp.*)|blk\.[12]\.ffn_(gate|up|down)\..*)"}},
    };
    return all;
}

GgufContext metadata_of(const Blueprint& blueprint) {
    GgufContext context(gguf_init_empty());
    auto* gguf = context.get();
    gguf_set_val_str(gguf, "general.architecture", blueprint.architecture.c_str());
    for (const auto& [name, value] : common_metadata() + blueprint.metadata) {
        const auto key = name.starts_with('.') ? blueprint.architecture + name : name;
        if (const auto* number = std::get_if<std::uint32_t>(&value))
            gguf_set_val_u32(gguf, key.c_str(), *number);
        else if (const auto* real = std::get_if<float>(&value))
            gguf_set_val_f32(gguf, key.c_str(), *real);
        else if (const auto* integers = std::get_if<Integers>(&value))
            gguf_set_arr_data(gguf, key.c_str(), GGUF_TYPE_UINT32, integers->data(), integers->size());
        else if (const auto* tokens = std::get_if<Tokens>(&value))
            gguf_set_arr_data(gguf, key.c_str(), GGUF_TYPE_INT32, tokens->data(), tokens->size());
    }
    // The tokenizer that libllama keeps for tests: texts become numbers without any rules.
    std::vector<std::string> words(blueprint.n_vocab);
    std::vector<const char*> pointers;
    for (std::size_t i = 0; i < words.size(); ++i) pointers.push_back((words[i] = fmt::format("word{}", i)).c_str());
    const std::vector<float> scores(words.size(), 0.0F);
    gguf_set_val_str(gguf, "tokenizer.ggml.model", "test");
    gguf_set_arr_str(gguf, "tokenizer.ggml.tokens", pointers.data(), pointers.size());
    gguf_set_arr_data(gguf, "tokenizer.ggml.scores", GGUF_TYPE_FLOAT32, scores.data(), scores.size());
    return context;
}

/// FNV-1a: a seed that is the same everywhere.
std::uint32_t hash_of(std::string_view name) {
    std::uint32_t hash = 2166136261U;
    for (const char letter : name) hash = (hash ^ static_cast<unsigned char>(letter)) * 16777619U;
    return hash;
}

struct Tensor {
    std::string name;
    std::array<std::int64_t, 4> shape;
    std::vector<float> values;
};

/// Called by libllama for each tensor of a new model. One that is used twice (a tied head) comes twice.
void collect(ggml_tensor* tensor, void* user_data) {
    auto& tensors = *static_cast<std::vector<Tensor>*>(user_data);
    const std::string name = tensor->name;
    if (std::ranges::find(tensors, name, &Tensor::name) != tensors.end()) return;
    std::mt19937 random(hash_of(name));
    std::normal_distribution<float> normal;
    std::vector<float> values(static_cast<std::size_t>(ggml_nelements(tensor)));
    for (float& value : values) value = normal(random);
    const auto shape = std::to_array(tensor->ne);
    settle(name, shape, values);
    tensors.push_back({name, shape, std::move(values)});
}

std::vector<Tensor> tensors_of(const std::string& name, gguf_context* metadata) {
    auto params = llama_model_default_params();
    ggml_backend_dev_t no_devices[] = {nullptr};
    params.devices = no_devices;
    params.n_gpu_layers = 0;
    std::vector<Tensor> tensors;
    const LogCapture log;
    const std::unique_ptr<llama_model, decltype(&llama_model_free)> model(
        llama_model_init_from_user(metadata, collect, &tensors, params), llama_model_free);
    if (!model)
        throw Error(fmt::format("cannot generate a {} model: {}", name, log.first_error("llama.cpp gave no reason")));
    return tensors;
}

}  // namespace

std::vector<std::string> generated_models() {
    std::vector<std::string> names;
    for (const auto& [name, blueprint] : blueprints()) names.push_back(name);
    return names;
}

void settle(std::string_view name, const std::array<std::int64_t, 4>& shape, std::span<float> values) {
    const auto has = [&](std::string_view part) { return name.find(part) != std::string_view::npos; };
    float mean = 0.0F;
    float deviation = 0.1F;
    if (name.ends_with("embd.weight") || has("_ape."))  // looked up or added, not multiplied
        deviation = 1.0F;
    else if (name.ends_with(".bias"))
        deviation = 0.1F;
    else if (has("norm") || has("time_mix_ln") || has("scale") || has("rope_freqs"))
        mean = 1.0F;
    else if (has("lerp"))
        mean = 0.5F;
    else if (shape[1] > 1)
        deviation = 1.5F / std::sqrt(static_cast<float>(shape[0]));
    else
        deviation = 0.3F;
    for (float& value : values) value = mean + deviation * value;
}

void write_generated_model(const std::string& name, const std::filesystem::path& path) {
    const auto& blueprint = blueprints().at(name);
    const auto context = metadata_of(blueprint);
    auto tensors = tensors_of(name, context.get());
    const std::regex dropped(blueprint.dropped);
    std::erase_if(tensors, [&](const Tensor& tensor) { return std::regex_match(tensor.name, dropped); });

    for (const auto& tensor : tensors) add_tensor(context.get(), tensor.name, GGML_TYPE_F32, tensor.shape);
    AtomicFile file(path);
    const auto metadata = metadata_bytes(context.get());
    file.write(metadata.data(), metadata.size());
    for (auto& tensor : tensors) {
        tensor.values.resize(padded_bytes(tensor.values.size() * sizeof(float)) / sizeof(float));
        file.write(tensor.values.data(), tensor.values.size() * sizeof(float));
    }
    file.commit();
}

}  // namespace cerebellum::testing
