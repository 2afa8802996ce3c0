#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace cerebellum {

/// The block of a tensor called "blk.N.…"; empty for all others.
std::optional<int> block_of(std::string_view tensor);

/// What a tensor does in its block: "attn_q" of "blk.3.attn_q.weight", "token_embd" of "token_embd.weight".
std::string role_of(std::string_view tensor);

/// Whether a glob (as in a shell: * ? [...]) is the tensor's name, its name without ".weight", or its role.
bool matches_tensor(const std::string& glob, const std::string& tensor);

}  // namespace cerebellum
