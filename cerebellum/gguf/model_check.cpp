#include "cerebellum/gguf/model_check.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>

#include "cerebellum/core/error.h"
#include "cerebellum/core/tensor_name.h"

namespace cerebellum {

namespace {

class ModelCheck {
  public:
    explicit ModelCheck(const GgufFile& file) : file_(file), prefix_(file.architecture() + ".") {}

    void blocks() const {
        std::uint64_t found = 0;
        for (const auto& tensor : file_.tensors())
            if (const auto block = block_of(tensor.name))
                found = std::max(found, static_cast<std::uint64_t>(*block) + 1);
        const auto announced = value("block_count");
        if (!announced || found == 0) return;
        // Blocks that predict further tokens may have been left out of the file. A model whose blocks differ may have
        // some without any tensor.
        const auto optional = value("nextn_predict_layers").value_or(0);
        const bool may_be_less =
            found < *announced && (found + optional >= *announced || is_array("attention.head_count"));
        if (found == *announced || (may_be_less && *announced <= most_blocks)) return;
        contradiction("block_count", *announced, fmt::format("its tensors are of {} blocks", found));
    }

    void embedding() const {
        const auto* tensor = file_.find("token_embd.weight");
        if (tensor == nullptr) return;
        if (const auto columns = static_cast<std::uint64_t>(tensor->row_length());
            value("embedding_length").value_or(columns) != columns)
            contradiction("embedding_length", *value("embedding_length"),
                          fmt::format("the rows of token_embd.weight have {} weights", columns));
        constexpr auto* tokens = "tokenizer.ggml.tokens";
        const auto key = gguf_find_key(file_.context(), tokens);
        if (key < 0 || gguf_get_kv_type(file_.context(), key) != GGUF_TYPE_ARRAY) return;
        if (const auto count = gguf_get_arr_n(file_.context(), key);
            count != static_cast<std::size_t>(tensor->n_rows()))
            refuse(fmt::format("{} has {} tokens, but token_embd.weight has {} rows", tokens, count, tensor->n_rows()));
    }

    void heads() const {
        for (const auto& [role, key] :
             {std::pair("attn_q", "attention.head_count"), std::pair("attn_k", "attention.head_count_kv")}) {
            const auto heads = value(key);
            if (!heads) continue;
            for (const auto& tensor : file_.tensors()) {
                if (!block_of(tensor.name) || role_of(tensor.name) != role || !tensor.name.ends_with(".weight"))
                    continue;
                const auto rows = static_cast<std::uint64_t>(tensor.n_rows());
                if (*heads == 0 || rows % *heads != 0)
                    contradiction(key, *heads, fmt::format("{} has {} rows", tensor.name, rows));
            }
        }
    }

  private:
    static constexpr std::uint64_t most_blocks = 512;  // LLAMA_MAX_LAYERS: beyond it llama.cpp ends the program

    std::optional<std::uint64_t> value(std::string_view key) const {
        return file_.uint_value(prefix_ + std::string(key));
    }
    bool is_array(std::string_view key) const {
        const auto id = gguf_find_key(file_.context(), (prefix_ + std::string(key)).c_str());
        return id >= 0 && gguf_get_kv_type(file_.context(), id) == GGUF_TYPE_ARRAY;
    }
    [[noreturn]] void contradiction(std::string_view key, std::uint64_t value, std::string_view tensors) const {
        refuse(fmt::format("{}{} is {}, but {}", prefix_, key, value, tensors));
    }
    [[noreturn]] void refuse(std::string_view reason) const {
        throw Error(fmt::format("cannot use {}: its metadata contradict its tensors: {}; convert or fetch it again",
                                file_.path().string(), reason));
    }

    const GgufFile& file_;
    std::string prefix_;
};

}  // namespace

void check_model(const GgufFile& file) {
    const ModelCheck check(file);
    check.blocks();
    check.embedding();
    check.heads();
}

}  // namespace cerebellum
