// Nanoseconds per weight of quantizing on one core: ggml's code, and ours with one block in each SIMD lane
// (cerebellum/quantize/lane_quantizer.h). Prints a table; the time is this thread's, the least of several runs.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <ctime>
#include <limits>
#include <random>
#include <vector>

#include "cerebellum/core/quant_type.h"
#include "cerebellum/quantize/lane_quantizer.h"

namespace {

constexpr std::int64_t n_rows = 16;
constexpr std::int64_t row_length = 2048;

template <typename Work>
double least_seconds(int runs, const Work& work) {
    double least = std::numeric_limits<double>::max();
    for (int run = 0; run < runs; ++run) {
        const std::clock_t start = std::clock();
        work();
        least = std::min(least, static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC);
    }
    return least;
}

}  // namespace

int main() {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    std::vector<float> rows(n_rows * row_length), importance(row_length);
    for (float& weight : rows) weight = 0.02f * normal(random);
    for (float& weight : importance) weight = std::exp(normal(random));
    fmt::print("| type | importance | ggml, ns per weight | ours | times as fast |\n|---|---|--:|--:|--:|\n");
    const auto& ours = cerebellum::lane_quantizer();
    for (const auto type : cerebellum::lane_types())
        for (const bool important : {true, false}) {
            if (!ours.uses_lanes(type, important)) continue;
            const float* given = important ? importance.data() : nullptr;
            std::vector<std::byte> bytes(cerebellum::type_size_bytes(type, row_length, n_rows));
            const double nanoseconds = 1e9 / static_cast<double>(rows.size());
            const double before =
                nanoseconds * least_seconds(3, [&] {
                    cerebellum::quantize_with_ggml(type, rows.data(), bytes.data(), n_rows, row_length, given);
                });
            const double now = nanoseconds * least_seconds(20, [&] {
                                   ours.quantize(type, rows.data(), bytes.data(), n_rows, row_length, given);
                               });
            fmt::print("| {} | {} | {:.1f} | {:.1f} | {:.1f} |\n", cerebellum::type_name(type),
                       important ? "yes" : "no", before, now, before / now);
        }
}
