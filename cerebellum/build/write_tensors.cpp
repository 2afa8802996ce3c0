#include "cerebellum/build/write_tensors.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <utility>

#include "cerebellum/core/parallel.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/quantize/quantize_tensor.h"
#include "cerebellum/quantize/scale_rows.h"

namespace cerebellum {

namespace {

/// Importance weights of one tensor, from its first chunk to its last one.
struct TensorWork {
    const OutputTensor* tensor = nullptr;
    AtomicFile* file = nullptr;
    const TensorScaling* scaling = nullptr;
    std::once_flag weights_once;
    std::vector<float> weights;
    SharedBytes known;  // the whole tensor, made before
    std::atomic<std::int64_t> chunks_left = 0;
};

struct Chunk {
    TensorWork* work = nullptr;
    std::int64_t first_row = 0;
    std::int64_t n_rows = 0;
};

struct Buffers {
    std::vector<std::byte> input, output;
};

/// Buffers that threads take for a chunk and give back.
class BufferPool {
  public:
    std::unique_ptr<Buffers> take() {
        const std::lock_guard lock(mutex_);
        if (free_.empty()) return std::make_unique<Buffers>();
        auto buffers = std::move(free_.back());
        free_.pop_back();
        return buffers;
    }
    void give_back(std::unique_ptr<Buffers> buffers) {
        const std::lock_guard lock(mutex_);
        free_.push_back(std::move(buffers));
    }

  private:
    std::mutex mutex_;
    std::vector<std::unique_ptr<Buffers>> free_;
};

std::uint64_t row_bytes(ggml_type type, const TensorInfo& tensor) {
    return type_size_bytes(type, tensor.row_length(), 1);
}

std::vector<Chunk> cut(TensorWork& work, std::uint64_t chunk_bytes) {
    const TensorInfo& source = *work.tensor->source;
    const auto widest = std::max(row_bytes(source.type, source), row_bytes(work.tensor->type, source));
    const auto rows = static_cast<std::int64_t>(std::max<std::uint64_t>(1, chunk_bytes / widest));
    std::vector<Chunk> chunks;
    for (std::int64_t row = 0; row < source.n_rows(); row += rows)
        chunks.push_back({&work, row, std::min(rows, source.n_rows() - row)});
    work.chunks_left = static_cast<std::int64_t>(chunks.size());
    return chunks;
}

}  // namespace

void write_tensors(const GgufFile& source, std::span<const OutputFile> files, const Imatrix* imatrix,
                   const MomentReader& moments, const std::map<std::string, TensorScaling>& scaling,
                   const KnownBytes& known, int threads, std::uint64_t chunk_bytes, Progress& progress) {
    std::vector<std::unique_ptr<TensorWork>> works;
    std::vector<Chunk> chunks;
    for (const auto& file : files)
        for (const auto& tensor : file.tensors) {
            auto& work = *works.emplace_back(std::make_unique<TensorWork>());
            work.tensor = &tensor;
            work.file = file.file;
            if (const auto scaled = scaling.find(tensor.source->name); scaled != scaling.end())
                work.scaling = &scaled->second;
            const auto more = cut(work, chunk_bytes);
            chunks.insert(chunks.end(), more.begin(), more.end());
        }

    const auto read_ahead = [&](std::size_t index) {
        if (index >= chunks.size()) return;
        const TensorInfo& tensor = *chunks[index].work->tensor->source;
        const auto row = row_bytes(tensor.type, tensor);
        source.read_ahead(tensor, static_cast<std::uint64_t>(chunks[index].first_row) * row,
                          static_cast<std::uint64_t>(chunks[index].n_rows) * row);
    };
    FeedbackRounder rounder(moments, 1);
    BufferPool pool;
    std::mutex progress_mutex;
    std::uint64_t written = 0;
    const auto run = [&](std::int64_t index) {
        const auto place = static_cast<std::size_t>(index);
        const auto& chunk = chunks[place];
        auto* const work = chunk.work;
        const auto first_row = chunk.first_row, n_rows = chunk.n_rows;
        const TensorInfo& tensor = *work->tensor->source;
        const ggml_type type = work->tensor->type;
        {
            const std::lock_guard lock(progress_mutex);
            progress.check();
            progress.advance(static_cast<double>(written), tensor.name);
        }
        read_ahead(place + static_cast<std::size_t>(threads));
        std::call_once(work->weights_once, [&] {
            if (type == tensor.type) return;
            if (known && work->scaling == nullptr) work->known = known(tensor.name, {type, work->tensor->rounding});
            if (!work->known) work->weights = quantization_weights(imatrix, tensor);
        });
        const auto input_row = row_bytes(tensor.type, tensor), output_row = row_bytes(type, tensor);
        const auto from = output_row * static_cast<std::uint64_t>(first_row);
        const auto output_bytes = output_row * static_cast<std::uint64_t>(n_rows);
        if (work->known) {
            work->file->write_at(work->tensor->offset + from, work->known->data() + from, output_bytes);
        } else {
            auto buffers = pool.take();
            buffers->input.resize(input_row * static_cast<std::uint64_t>(n_rows));
            buffers->output.resize(output_bytes);
            source.read(tensor, input_row * static_cast<std::uint64_t>(first_row), buffers->input);
            if (work->scaling != nullptr) scale_rows(tensor, *work->scaling, first_row, buffers->input);
            quantize_row_bytes(tensor, buffers->input, type, work->weights, first_row, n_rows, buffers->output, 1);
            if (work->tensor->rounding == Rounding::feedback)
                rounder.improve_rows(tensor, buffers->input, type, first_row, buffers->output);
            work->file->write_at(work->tensor->offset + from, buffers->output.data(), output_bytes);
            pool.give_back(std::move(buffers));
        }
        {
            const std::lock_guard lock(progress_mutex);
            written += output_bytes;
        }
        if (--work->chunks_left == 0) {
            work->weights = {};
            work->known.reset();
        }
    };
    for (int i = 0; i < threads; ++i) read_ahead(static_cast<std::size_t>(i));
    parallel_chunks(static_cast<std::int64_t>(chunks.size()), 1, threads, [&](std::int64_t begin, std::int64_t end) {
        for (auto i = begin; i < end; ++i) run(i);
    });
    progress.check();
}

}  // namespace cerebellum
