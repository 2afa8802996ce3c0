#pragma once

#include <span>
#include <string>

namespace cerebellum {

/// An instruction set that ggml's CPU kernels may be compiled for.
struct InstructionSet {
    const char* name;
    bool built_for;  // ggml's kernels use it
    bool present;    // this processor has it
};

/// What decides whether this build runs on this machine; empty on processors for which nothing is known.
std::span<const InstructionSet> instruction_sets();

/// Throws Error where one of `sets` was built for and is not present. Without the check such a program would end at an
/// illegal instruction, somewhere in the middle of its work.
void require_instruction_sets(std::span<const InstructionSet> sets);

}  // namespace cerebellum
