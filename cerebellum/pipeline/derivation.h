#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "cerebellum/core/progress.h"
#include "cerebellum/gguf/gguf_file.h"

namespace cerebellum {

/// A statement of what a published file was made of, in the layout of in-toto (Statement, v1): the file as its subject,
/// and source, recipe, importance matrix, second moments and texts by their digests. It lies beside the file, and names
/// no folders.

std::filesystem::path derivation_path(const std::filesystem::path& file);

/// What a file that quantize_model() made was made of; its recipe and its matrix lie beside it.
struct DerivationInputs {
    const GgufFile& source;
    std::filesystem::path file;
    std::vector<std::string> texts;
    std::filesystem::path journal;
};

void write_derivation(const std::filesystem::path& path, const DerivationInputs& inputs, Progress& progress);

/// One thing that a statement says, against what is there.
struct DerivationCheck {
    enum class Result { same, differs, missing };
    std::string what;  // "subject", "source", "recipe", ...
    std::string name;  // of the file
    Result result = Result::missing;
};

struct DerivationReport {
    std::string subject;
    std::string made_by;  // "cerebellum 0.2.0 (llama.cpp 0.5.0)"
    std::vector<DerivationCheck> files;
    bool rebuilt = false;  // a source was given, and the file was made again from it

    bool verified() const;
};

/// Compares every file that the statement names and that lies in its folder. With a source, the file is made again from
/// it, the recipe, the matrix and the moments, in `scratch`, and compared; what that takes must then be there. Throws
/// Error where the statement is none of this kind, names a file outside of its folder, or the source is another model.
DerivationReport verify_derivation(const std::filesystem::path& statement, const std::filesystem::path& source,
                                   const std::filesystem::path& scratch, int threads, Progress& progress);

std::string describe(const DerivationReport& report);

}  // namespace cerebellum
