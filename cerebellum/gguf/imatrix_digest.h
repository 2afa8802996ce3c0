#pragma once

#include <string>

#include "cerebellum/gguf/imatrix_file.h"

namespace cerebellum {

/// SHA-256 (hexadecimal) of everything in an importance matrix: equal where files built with it are equal.
std::string imatrix_sha256(const Imatrix& imatrix);

}  // namespace cerebellum
