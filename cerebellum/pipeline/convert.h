#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "cerebellum/core/progress.h"

namespace cerebellum {

struct ConvertOptions {
    std::filesystem::path folder;  // a Hugging Face model: config.json, tokenizer, weights
    std::filesystem::path output;
    std::string type = "auto";  // f32, f16, bf16, or auto: the 16-bit type that keeps most of the weights
    bool overwrite = false;
    /// An interpreter that has the converter's packages. Empty: an environment of our own, see converter_python().
    std::filesystem::path python;
};

/// Whether a path names such a folder rather than a file.
bool is_hugging_face_folder(const std::filesystem::path& path);

/// Runs llama.cpp's own converter, of the release that this program was built with, on a Hugging Face folder. The
/// output gets its name when it is complete and has passed our own checks; returns its size in bytes. Nothing is
/// fetched from a model hub, but some models bring Python code of their own, which the converter runs. Throws Error
/// with what the converter complained of.
std::uint64_t convert_model(const ConvertOptions& options, Progress& progress);

/// The interpreter of a virtual environment that holds the converter's packages, in the versions and with the hashes
/// that its requirements.txt asks for. Made with pip at the first call, in cache_folder(), which takes a network,
/// several GB and some minutes; later calls find it. Throws Error where it cannot be made.
std::filesystem::path converter_python(const std::filesystem::path& converter, Progress& progress);

/// The model that stands for `model` where a GGUF file is needed: itself, or, for a Hugging Face folder, a file in
/// `folder` named after it and after the digest of what is in it. It is converted unless that file is there, is what it
/// was when it was converted, and was converted from the same contents.
std::filesystem::path gguf_of(const std::filesystem::path& model, const std::filesystem::path& folder,
                              Progress& progress);

}  // namespace cerebellum
