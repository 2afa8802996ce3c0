#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/llama/memory.h"
#include "cerebellum/pipeline/doctor.h"
#include "cerebellum/report/modelfile.h"

namespace cerebellum {

struct ServingWishes {
    int context = 0;  // tokens of all slots together; 0: as many as fit, at most what the model was trained for
    int parallel = 1;
    ggml_type cache_type = GGML_TYPE_F16;
    std::string device;  // empty: the first GPU that the file fits on, else the processor
};

/// How a file is run on a machine.
struct ServingPlan {
    /// A context size that was looked at.
    struct Tried {
        ServingSetup setup;
        ServingMemory memory;
        bool fits = false;
    };
    std::vector<Tried> tried;  // largest context first
    std::size_t chosen = 0;    // of `tried`; the last one where nothing fits
    int threads = 1;

    const Tried& choice() const { return tried.at(chosen); }
    /// "llama-server --model …" for a file of this name.
    std::string llama_server(const std::string& file) const;
};

/// Halves the context until it fits into what is free. Throws Error where llama.cpp cannot run the file.
ServingPlan plan_serving(const GgufFile& file, const ServingWishes& wishes, const Patient& patient);

/// The Modelfile's parts: template, the texts that end a turn, and sampling parameters as the GGUF has them.
ModelfileParts modelfile_parts(const GgufFile& file, int context);

/// What is stored of both.
nlohmann::json to_json(const ServingPlan& plan, const ModelfileParts& parts);

}  // namespace cerebellum
