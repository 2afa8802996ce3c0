#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

struct llama_model;
struct llama_context;
struct llama_model_params;
struct ggml_tensor;

namespace cerebellum {

using Token = std::int32_t;

struct LlamaContextFree {
    void operator()(llama_context* context) const;
};

/// Where libllama runs a model that is loaded to be run: on the CPU, unless something else is said.
struct RunPlace {
    /// Devices that share the layers, each as find_device takes it. None: all of this build, where `gpu_layers` asks
    /// for any.
    std::vector<std::string> devices;
    int gpu_layers = 0;  // that many of a model's layers on the devices, the head counting as the last one; −1: all
    /// Weights repacked for this processor, as llama.cpp's own programs do by default. Repacking is faster, rounds
    /// otherwise, and in v0.5.0 ends the program for some types on processors with AMX, llama.cpp's own programs too.
    bool repack = false;
    std::size_t device_bytes = 0;  // most of each device's memory that may be used; 0: what is free

    bool on_cpu() const { return devices.empty() && gpu_layers == 0; }
};

/// Every layer on these devices; "CPU" or an empty name is none of them. Several share the layers.
RunPlace place_on(std::span<const std::string> devices);
/// Throws UsageError naming the devices there are, Error where a server does not answer.
void check_place(const RunPlace& place);
/// "CPU", or what the devices are called.
std::string describe(const RunPlace& place);

/// A model loaded by libllama into host memory (mapped from its file), without repacked weights, so that its weights
/// can be read and replaced by name. Movable; its const functions may be called from several threads.
class Model {
  public:
    /// Throws Error with libllama's reason where the file cannot be loaded, and for encoders and other models that do
    /// not predict a next token.
    static Model load(const std::filesystem::path& path);
    /// To be run, its weights neither read nor replaced. Layers that are not on a device are computed with in host
    /// memory; a device that takes over products of large batches (CUDA) computes them all the same. Throws
    /// check_place's errors too, and Error naming the device where it has not enough memory.
    static Model load_to_run(const std::filesystem::path& path, const RunPlace& place);

    const std::filesystem::path& path() const { return path_; }
    int n_layers() const;
    /// Whether it was loaded to be run on devices.
    bool on_devices() const { return on_devices_; }
    int n_vocab() const;
    /// The context the model was trained for, in tokens.
    int trained_context() const;
    /// Whether texts begin with a BOS token for this model.
    bool adds_bos() const;
    /// The token a text begins with: BOS where there is one, else EOS, else token 0.
    Token first_token() const;
    /// A token that ends a text (EOS, end of turn, …): self-sampled sequences restart there.
    bool ends_text(Token token) const;

    /// Texts of the special tokens (ends of turns, roles, …) that stand in a text, in the order of the vocabulary. They
    /// are not parsed by tokenize().
    std::vector<std::string> special_tokens_in(std::string_view text) const;
    /// Tokens of a text, without BOS, special tokens not parsed. llama-perplexity tokenizes the same way.
    std::vector<Token> tokenize(std::string_view text) const;
    /// The same behind BOS, where the model wants one.
    std::vector<Token> tokenize_from_start(std::string_view text) const;
    /// Whether the state of a sequence is more than a cache of its tokens, so that it cannot be cut back or be shared
    /// token by token (recurrent and hybrid models).
    bool is_recurrent() const;
    std::string text_of(std::span<const Token> tokens) const;

    llama_model* handle() const { return model_.get(); }

  private:
    struct Free {
        void operator()(llama_model* model) const;
    };
    static Model load_with(const std::filesystem::path& path, const llama_model_params& params,
                           const std::string& place);

    std::filesystem::path path_;
    bool on_devices_ = false;
    std::unique_ptr<llama_model, Free> model_;
};

/// Watches an evaluation node by node.
class NodeObserver {
  public:
    virtual ~NodeObserver() = default;
    /// Asked of every node in execution order, before it is computed: whether to stop behind it and call computed().
    virtual bool wants(const ggml_tensor& node) = 0;
    /// The node and everything in front of it have been computed.
    virtual void computed(const ggml_tensor& node) = 0;
};

/// An observer that lets go of the pages which a model's weights are mapped to, whenever about so many bytes of them
/// have been used.
std::shared_ptr<NodeObserver> page_dropper(std::size_t resident_bytes);

/// A context that evaluates one window at a time where the model is, logits at every position, flash attention off and
/// an F16 cache: the settings that replay and every referee use too. Not thread-safe.
class Decoder {
  public:
    Decoder(const Model& model, int n_tokens, int threads, std::shared_ptr<NodeObserver> observer = nullptr);
    /// Logits of every position of the window, [n_tokens × n_vocab], valid until the next call. `tokens` is of
    /// n_tokens.
    std::span<const float> decode(std::span<const Token> tokens);

  private:
    int n_tokens_;
    int n_vocab_;
    std::shared_ptr<NodeObserver> observer_;  // the context calls it
    std::unique_ptr<llama_context, LlamaContextFree> context_;
};

}  // namespace cerebellum
