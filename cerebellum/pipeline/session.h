#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cerebellum/calibrate/text.h"
#include "cerebellum/core/progress.h"
#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/gguf/imatrix_file.h"
#include "cerebellum/journal/journal.h"
#include "cerebellum/replay/engine.h"
#include "cerebellum/sweep/runner.h"

namespace cerebellum {

/// What all stages that look at a model need to know.
struct RunOptions {
    std::filesystem::path model;
    std::vector<std::filesystem::path> texts;  // none: the model writes its own
    int tokens = 4096;                         // measured on; the other parts of the text follow from it
    int context = 0;                           // tokens per window; 0: 512, or what the model was trained for if less
    int threads = 0;                           // 0: physical cores
    std::uint64_t seed = 1;                    // of self-sampled text
    std::filesystem::path journal;
    std::optional<std::filesystem::path> imatrix;  // none: computed from the calibration text
    std::vector<ggml_type> types;                  // allowed types; none: all
    bool full = false;                             // measure every type in full
};

/// A model with its text, importance matrix and journal, each made when first asked for and kept in the journal, so
/// that a later run of any stage finds them. Not thread-safe.
class Session {
  public:
    /// Opens model and journal. Throws Error where one cannot be used, or the journal belongs to other settings.
    Session(RunOptions options, Progress& progress);
    ~Session();

    const RunOptions& options() const { return options_; }
    const GgufFile& source() const { return source_; }
    const Model& model() const { return model_; }
    Journal& journal() { return *journal_; }
    int threads() const { return options_.threads; }
    int context() const { return options_.context; }

    const TextParts& text();
    /// The replay engine, checked once against llama_decode: throws Error where replay is not bit-identical.
    ReplayEngine& engine();
    const Imatrix& imatrix();
    /// What the built file says about the importance matrix.
    std::string imatrix_name() const;
    /// Every quantizable tensor of the source, in llama-quantize's order.
    const std::vector<std::string>& quantizable();
    /// All tensors of the source in the order in which llama-quantize writes them.
    const std::vector<std::string>& tensor_order();
    Quantizer quantizer();

    /// Windows of a part, recorded and ready.
    std::vector<Window> prepare(const TokenWindows& windows);
    /// What is to be measured: every quantizable tensor in every type that it may have.
    std::vector<TensorPlan> plan();
    /// Measures what the journal does not hold yet.
    SweepSummary measure();

  private:
    JournalIdentity identity() const;
    TextDemand demand() const;
    void keep_text();

    RunOptions options_;
    Progress& progress_;
    GgufFile source_;
    Model model_;
    std::unique_ptr<Journal> journal_;
    std::optional<TextParts> text_;
    std::unique_ptr<ReplayEngine> engine_;
    std::optional<Imatrix> imatrix_;
    std::vector<std::string> quantizable_;
    std::vector<std::string> tensor_order_;
};

/// Version of the measuring procedure: changes whenever a figure would come out differently. Part of a journal's
/// identity.
inline constexpr const char* measuring_version = "3";

/// An importance matrix as the journal keeps it.
std::optional<Imatrix> imatrix_from_journal(const Journal& journal);

}  // namespace cerebellum
