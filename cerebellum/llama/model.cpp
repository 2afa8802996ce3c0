#include "cerebellum/llama/model.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <ggml-backend.h>
#include <llama.h>

#include <algorithm>
#include <mutex>
#include <utility>

#include "cerebellum/core/error.h"
#include "cerebellum/core/ggml_abort.h"
#include "cerebellum/core/ggml_device.h"
#include "cerebellum/core/mapped_memory.h"
#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/gguf/model_check.h"
#include "cerebellum/llama/context.h"
#include "cerebellum/llama/log.h"

namespace cerebellum {

namespace {

constexpr const char* out_of_memory_hint =
    "; less --device-memory leaves a part of the model in host memory, --device CPU all of it";

void initialise_once() {
    static std::once_flag once;
    std::call_once(once, [] { llama_backend_init(); });
}

}  // namespace

void Model::Free::operator()(llama_model* model) const {
    llama_model_free(model);
}

RunPlace place_on(std::span<const std::string> devices) {
    RunPlace place;
    for (const auto& device : devices)
        if (!device.empty() && device != "CPU") place.devices.push_back(device);
    if (!place.devices.empty()) place.gpu_layers = -1;
    return place;
}

void check_place(const RunPlace& place) {
    for (const auto& device : place.devices) find_device(device);
}

std::string describe(const RunPlace& place) {
    if (place.on_cpu()) return "CPU";
    return place.devices.empty() ? "this build's devices" : fmt::format("{}", fmt::join(place.devices, ", "));
}

Model Model::load(const std::filesystem::path& path) {
    return load_to_run(path, {});
}

Model Model::load_to_run(const std::filesystem::path& path, const RunPlace& place) {
    initialise_once();
    auto params = llama_model_default_params();
    std::vector<ggml_backend_dev_t> devices;
    for (const auto& name : place.devices)
        if (auto* device = find_device(name); ggml_backend_dev_type(device) != GGML_BACKEND_DEVICE_TYPE_CPU)
            devices.push_back(device);
    devices.push_back(nullptr);
    if (place.on_cpu() || !place.devices.empty()) params.devices = devices.data();
    if (!place.on_cpu()) note_device_use();
    params.n_gpu_layers = place.gpu_layers;
    params.use_extra_bufts = place.repack;
    auto model = load_with(path, params, place.on_cpu() ? "" : describe(place));
    model.on_devices_ = !place.on_cpu();
    return model;
}

Model Model::load_with(const std::filesystem::path& path, const llama_model_params& params, const std::string& place) {
    initialise_once();
    check_model(GgufFile::open_header(path));
    Model result;
    result.path_ = path;
    {
        const LogCapture log;
        const AbortBlame blame(path.native());
        result.model_.reset(llama_model_load_from_file(path.c_str(), params));
        if (!result.model_) {
            const auto reason = log.first_error("llama.cpp gave no reason");
            const bool no_room = !place.empty() && reason.find("alloc") != std::string::npos;
            throw Error(fmt::format("cannot load {}{}: {}{}", path.string(), place.empty() ? "" : " on " + place,
                                    reason, no_room ? out_of_memory_hint : ""));
        }
    }
    if (llama_model_has_encoder(result.handle()) || !llama_model_has_decoder(result.handle())) {
        std::string architecture(128, '\0');
        const int length =
            llama_model_meta_val_str(result.handle(), "general.architecture", architecture.data(), architecture.size());
        architecture.resize(static_cast<std::size_t>(std::max(0, length)));
        throw Error(fmt::format(
            "{} is a {} model, which does not predict a next token; only generative decoders can be measured",
            path.string(), architecture));
    }
    return result;
}

int Model::n_layers() const {
    return llama_model_n_layer(handle());
}
int Model::n_vocab() const {
    return llama_vocab_n_tokens(llama_model_get_vocab(handle()));
}
int Model::trained_context() const {
    return llama_model_n_ctx_train(handle());
}
bool Model::adds_bos() const {
    return llama_vocab_get_add_bos(llama_model_get_vocab(handle()));
}

Token Model::first_token() const {
    const auto* vocab = llama_model_get_vocab(handle());
    if (const Token bos = llama_vocab_bos(vocab); bos != LLAMA_TOKEN_NULL) return bos;
    if (const Token eos = llama_vocab_eos(vocab); eos != LLAMA_TOKEN_NULL) return eos;
    return 0;
}

bool Model::ends_text(Token token) const {
    return llama_vocab_is_eog(llama_model_get_vocab(handle()), token);
}

std::vector<Token> Model::tokenize_from_start(std::string_view text) const {
    auto tokens = tokenize(text);
    if (adds_bos()) tokens.insert(tokens.begin(), first_token());
    return tokens;
}

bool Model::is_recurrent() const {
    return llama_model_is_recurrent(handle()) || llama_model_is_hybrid(handle());
}

std::vector<std::string> Model::special_tokens_in(std::string_view text) const {
    constexpr std::size_t shortest = 3;  // less is found in any text
    std::vector<std::string> found;
    const auto* vocab = llama_model_get_vocab(handle());
    for (Token token = 0; token < n_vocab(); ++token) {
        if (!llama_vocab_is_control(vocab, token)) continue;
        const std::string_view name = llama_vocab_get_text(vocab, token);
        if (name.size() >= shortest && text.find(name) != std::string_view::npos) found.emplace_back(name);
    }
    return found;
}

std::vector<Token> Model::tokenize(std::string_view text) const {
    const auto* vocab = llama_model_get_vocab(handle());
    if (llama_vocab_type(vocab) == LLAMA_VOCAB_TYPE_NONE)
        throw Error(fmt::format("{} carries no tokenizer, so text cannot be used with it", path_.string()));
    std::vector<Token> tokens(text.size() + 8);
    const auto call = [&] {
        return llama_tokenize(vocab, text.data(), static_cast<std::int32_t>(text.size()), tokens.data(),
                              static_cast<std::int32_t>(tokens.size()), /*add_special=*/false, /*parse_special=*/false);
    };
    int count = call();
    if (count < 0) {
        tokens.resize(static_cast<std::size_t>(-count));
        count = call();
    }
    if (count < 0) throw Error(fmt::format("the text is too long to be tokenized at once ({} bytes)", text.size()));
    tokens.resize(static_cast<std::size_t>(count));
    return tokens;
}

std::string Model::text_of(std::span<const Token> tokens) const {
    std::string text(tokens.size() * 8 + 64, '\0');
    const auto call = [&] {
        return llama_detokenize(llama_model_get_vocab(handle()), tokens.data(),
                                static_cast<std::int32_t>(tokens.size()), text.data(),
                                static_cast<std::int32_t>(text.size()), false, true);
    };
    int length = call();
    if (length < 0) {
        text.resize(static_cast<std::size_t>(-length));
        length = call();
    }
    text.resize(static_cast<std::size_t>(std::max(0, length)));
    return text;
}

llama_context_params cpu_context_params(int n_tokens, int threads) {
    auto params = llama_context_default_params();
    params.n_ctx = params.n_batch = params.n_ubatch = static_cast<std::uint32_t>(n_tokens);
    params.n_seq_max = 1;
    params.n_threads = params.n_threads_batch = threads;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    params.type_k = params.type_v = GGML_TYPE_F16;
    params.offload_kqv = false;
    params.op_offload = false;
    params.no_perf = true;
    return params;
}

llama_context_params context_params(const Model& model, int n_tokens, int threads) {
    auto params = cpu_context_params(n_tokens, threads);
    params.offload_kqv = params.op_offload = model.on_devices();
    return params;
}

void LlamaContextFree::operator()(llama_context* context) const {
    llama_free(context);
}

LlamaContext make_context(const Model& model, const llama_context_params& params) {
    const LogCapture log;
    const AbortBlame blame(model.path().native());
    LlamaContext context(llama_init_from_model(model.handle(), params));
    if (!context)
        throw Error(fmt::format("cannot evaluate {} with a context of {} tokens: {}{}", model.path().string(),
                                params.n_ctx, log.last_error("llama.cpp gave no reason"),
                                model.on_devices() ? out_of_memory_hint : ""));
    return context;
}

WindowBatch::WindowBatch(int n_tokens) : batch_(llama_batch_init(n_tokens, 0, 1)) {
    batch_.n_tokens = n_tokens;
    for (int i = 0; i < n_tokens; ++i) {
        batch_.pos[i] = i;
        batch_.n_seq_id[i] = 1;
        batch_.seq_id[i][0] = 0;
        batch_.logits[i] = 1;
    }
}

WindowBatch::~WindowBatch() {
    llama_batch_free(batch_);
}

namespace {

class PageDropper final : public NodeObserver {
  public:
    explicit PageDropper(std::size_t resident_bytes) : resident_bytes_(resident_bytes) {}
    ~PageDropper() override { drop(); }
    PageDropper(const PageDropper&) = delete;
    PageDropper& operator=(const PageDropper&) = delete;

    bool wants(const ggml_tensor& node) override {
        for (const ggml_tensor* source : node.src) note(source);
        return touched_bytes_ >= resident_bytes_;
    }
    void computed(const ggml_tensor&) override { drop(); }

  private:
    void note(const ggml_tensor* tensor) {
        if (tensor == nullptr || tensor->view_src != nullptr || tensor->buffer == nullptr ||
            ggml_backend_buffer_get_usage(tensor->buffer) != GGML_BACKEND_BUFFER_USAGE_WEIGHTS)
            return;
        touched_.emplace_back(static_cast<const std::byte*>(tensor->data), ggml_nbytes(tensor));
        touched_bytes_ += ggml_nbytes(tensor);
    }
    void drop() {
        for (const auto& bytes : touched_) drop_pages(bytes);
        touched_.clear();
        touched_bytes_ = 0;
    }

    std::size_t resident_bytes_;
    std::size_t touched_bytes_ = 0;
    std::vector<std::span<const std::byte>> touched_;
};

bool on_node(ggml_tensor* node, bool ask, void* observer) {
    auto& watching = *static_cast<NodeObserver*>(observer);
    if (ask) return watching.wants(*node);
    watching.computed(*node);
    return true;
}

}  // namespace

std::shared_ptr<NodeObserver> page_dropper(std::size_t resident_bytes) {
    return std::make_shared<PageDropper>(resident_bytes);
}

Decoder::Decoder(const Model& model, int n_tokens, int threads, std::shared_ptr<NodeObserver> observer)
    : n_tokens_(n_tokens), n_vocab_(model.n_vocab()), observer_(std::move(observer)) {
    auto params = context_params(model, n_tokens, threads);
    if (observer_) {
        params.op_offload = false;  // an observer is to see the weights themselves, not copies of them on a device
        params.cb_eval = on_node;
        params.cb_eval_user_data = observer_.get();
    }
    context_ = make_context(model, params);
}

std::span<const float> Decoder::decode(std::span<const Token> tokens) {
    WindowBatch window(n_tokens_);
    std::ranges::copy(tokens, window.batch().token);
    llama_memory_clear(llama_get_memory(context_.get()), true);
    if (const int status = llama_decode(context_.get(), window.batch()); status != 0)
        throw Error(fmt::format("llama.cpp could not evaluate a window of {} tokens (llama_decode returned {})",
                                n_tokens_, status));
    return {llama_get_logits(context_.get()), static_cast<std::size_t>(n_tokens_) * static_cast<std::size_t>(n_vocab_)};
}

}  // namespace cerebellum
