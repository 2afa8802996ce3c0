#include "cerebellum/build/hollow_gguf.h"

#include <fmt/format.h>

#include "cerebellum/build/build_gguf.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/gguf/gguf_write.h"

namespace cerebellum {

void write_hollow_gguf(const GgufFile& source, const TypeMap& types, const std::filesystem::path& path) {
    const GgufContext context(gguf_init_empty());
    gguf_set_kv(context.get(), source.context());
    for (const char* key : {GGUF_KEY_GENERAL_ALIGNMENT, "split.no", "split.count", "split.tensors.count"})
        gguf_remove_key(context.get(), key);
    std::uint64_t data_bytes = 0;
    for (const auto& tensor : source.tensors()) {
        const auto named = types.find(tensor.name);
        const auto type = named == types.end() ? tensor.type : named->second.type;
        add_tensor(context.get(), tensor.name, type, tensor.shape);
        data_bytes += tensor_bytes(tensor, type);
    }
    const auto header = metadata_bytes(context.get());
    AtomicFile file(path);
    file.write(header.data(), header.size());
    file.commit();
    std::error_code problem;
    std::filesystem::resize_file(path, header.size() + data_bytes, problem);
    if (problem) throw Error(fmt::format("cannot enlarge {}: {}", path.string(), problem.message()));
}

}  // namespace cerebellum
