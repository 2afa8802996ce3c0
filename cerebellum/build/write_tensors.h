#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "cerebellum/core/channel_scaling.h"
#include "cerebellum/core/encoding.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/progress.h"
#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/gguf/imatrix_file.h"
#include "cerebellum/quantize/feedback_rounder.h"
#include "cerebellum/quantize/quantized_cache.h"

namespace cerebellum {

/// A tensor's bytes in another type where somebody has them already; null where they are to be made.
using KnownBytes = std::function<SharedBytes(const std::string& tensor, const Encoding& type)>;

struct OutputTensor {
    const TensorInfo* source = nullptr;
    ggml_type type = GGML_TYPE_F32;
    Rounding rounding = Rounding::ggml;
    std::uint64_t offset = 0;  ///< of its data, from the beginning of its output file
};

struct OutputFile {
    AtomicFile* file = nullptr;  ///< reserved in its full size, so that padding is zero already
    std::span<const OutputTensor> tensors;
};

/// Fills in the tensors' data. Work is cut into chunks of whole rows with at most `chunk_bytes` of input and of output
/// (or one row); each thread reads one, quantizes it and writes it where it belongs, so that of `threads` threads some
/// read or write while others compute, and nothing waits for the end of a tensor. The system reads what comes next and
/// stores what was written meanwhile.
///
/// Tensors in `scaling` are scaled before they are quantized; the importance matrix and the moments are those of the
/// scaled model. `known`, where given, is asked for each tensor of another type that is not scaled. `moments` is asked
/// for tensors that are rounded with feedback. The bytes depend on neither threads nor chunks.
///
/// Memory: one chunk of input and output per thread, the importance weights of the tensors under way, and the input
/// metric of each matrix under way that is rounded with feedback. Throws Error
/// as quantize_rows does and where reading or writing fails, Interrupted where the user asked to stop.
void write_tensors(const GgufFile& source, std::span<const OutputFile> files, const Imatrix* imatrix,
                   const MomentReader& moments, const std::map<std::string, TensorScaling>& scaling,
                   const KnownBytes& known, int threads, std::uint64_t chunk_bytes, Progress& progress);

}  // namespace cerebellum
