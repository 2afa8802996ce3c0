#include "cerebellum/core/processor.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <ggml-cpu.h>

#include <vector>

#include "cerebellum/core/error.h"

namespace cerebellum {

std::span<const InstructionSet> instruction_sets() {
#if defined(__x86_64__) && defined(__GNUC__)
    const auto has = [](int answer) { return answer != 0; };
    static const InstructionSet sets[] = {
        {"AVX", has(ggml_cpu_has_avx()), has(__builtin_cpu_supports("avx"))},
        {"AVX2", has(ggml_cpu_has_avx2()), has(__builtin_cpu_supports("avx2"))},
        {"FMA", has(ggml_cpu_has_fma()), has(__builtin_cpu_supports("fma"))},
        {"BMI2", has(ggml_cpu_has_bmi2()), has(__builtin_cpu_supports("bmi2"))},
        {"AVX-512F", has(ggml_cpu_has_avx512()), has(__builtin_cpu_supports("avx512f"))},
        {"AVX-512 VBMI", has(ggml_cpu_has_avx512_vbmi()), has(__builtin_cpu_supports("avx512vbmi"))},
        {"AVX-512 VNNI", has(ggml_cpu_has_avx512_vnni()), has(__builtin_cpu_supports("avx512vnni"))},
        {"AVX-512 BF16", has(ggml_cpu_has_avx512_bf16()), has(__builtin_cpu_supports("avx512bf16"))},
    };
    return sets;
#else
    return {};
#endif
}

void require_instruction_sets(std::span<const InstructionSet> sets) {
    std::vector<const char*> missing;
    for (const auto& set : sets)
        if (set.built_for && !set.present) missing.push_back(set.name);
    if (!missing.empty())
        throw Error(
            fmt::format("this build needs instructions that this processor does not have ({}); build it on this "
                        "machine, or take one that was built for older processors",
                        fmt::join(missing, ", ")));
}

}  // namespace cerebellum
