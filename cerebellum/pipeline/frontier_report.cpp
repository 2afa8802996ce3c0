#include "cerebellum/pipeline/frontier_report.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "cerebellum/build/build_gguf.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/journal/digest.h"
#include "cerebellum/llama/presets.h"
#include "cerebellum/pipeline/allocation.h"
#include "cerebellum/version.h"

namespace cerebellum {

namespace {

double bits_per_weight_of(std::uint64_t bytes, const GgufFile& source) {
    return 8.0 * static_cast<double>(bytes) / static_cast<double>(source.n_weights());
}

std::vector<PresetMark> mark_presets(const MeasuredModel& measured, std::span<const FrontierPoint> points) {
    std::set<std::string> known;
    for (const auto& tensor : measured.problem.tensors) known.insert(tensor.name);
    std::vector<PresetMark> marks;
    for (const auto& preset : stock_presets()) {
        const auto types = dry_run(measured.source.path(), {.file_type = preset.file_type, .has_imatrix = true}).types;
        PresetMark mark;
        mark.name = preset.name;
        mark.bytes = predicted_file_bytes(measured.source, types, std::nullopt, Provenance::none);
        mark.kld = predicted_kld(measured.problem, types);
        for (const auto& [name, type] : types)
            if (const auto* tensor = measured.source.find(name); tensor != nullptr && tensor->type != type)
                mark.unmeasured += !known.contains(name);
        const auto above =
            std::ranges::upper_bound(points, mark.bytes, {}, [](const auto& point) { return point.file_bytes; });
        if (above != points.begin()) mark.frontier_kld = (above - 1)->cost;
        if (mark.kld) {
            const auto enough =
                std::ranges::find_if(points, [&](const auto& point) { return point.cost <= *mark.kld; });
            if (enough != points.end()) mark.same_kld_bytes = enough->file_bytes;
        }
        marks.push_back(std::move(mark));
    }
    std::ranges::stable_sort(marks, {}, &PresetMark::bytes);
    return marks;
}

nlohmann::json or_null(const auto& value) {
    return value ? nlohmann::json(*value) : nlohmann::json(nullptr);
}

}  // namespace

FrontierReport make_frontier(const MeasuredModel& measured, const Constraints& constraints) {
    FrontierReport report;
    report.frontier = solve_frontier(constrained_for_any_size(measured.problem, constraints));
    report.points = points_of(report.frontier);
    report.knees = knee_points(report.points);
    report.presets = mark_presets(measured, report.points);
    report.constraints = texts_of(constraints);
    return report;
}

nlohmann::json to_json(const FrontierReport& report, const MeasuredModel& measured) {
    const auto& source = measured.source;
    nlohmann::json types = nlohmann::json::object();
    for (const auto& [name, type] : report.frontier.smallest.types) types[name] = type_name(type);
    auto steps = nlohmann::json::array();
    for (const auto& step : report.frontier.steps)
        steps.push_back({{"tensors", step.tensors},
                         {"type", type_name(step.type)},
                         {"bytes", step.file_bytes},
                         {"predicted_kld", step.cost}});
    auto knees = nlohmann::json::array();
    for (const auto knee : report.knees)
        knees.push_back({{"bytes", report.points[knee].file_bytes},
                         {"bpw", bits_per_weight_of(report.points[knee].file_bytes, source)},
                         {"predicted_kld", report.points[knee].cost}});
    auto presets = nlohmann::json::array();
    for (const auto& preset : report.presets)
        presets.push_back({{"name", preset.name},
                           {"bytes", preset.bytes},
                           {"bpw", bits_per_weight_of(preset.bytes, source)},
                           {"predicted_kld", or_null(preset.kld)},
                           {"unmeasured_tensors", preset.unmeasured},
                           {"frontier_kld_at_its_size", or_null(preset.frontier_kld)},
                           {"frontier_bytes_at_its_kld", or_null(preset.same_kld_bytes)}});
    return {{"format", "cerebellum-frontier"},
            {"version", 1},
            {"cerebellum", CEREBELLUM_VERSION},
            {"llama.cpp", CEREBELLUM_LLAMA_VERSION},
            {"source", {{"name", source.path().filename().string()}, {"fingerprint", source.fingerprint()}}},
            {"journal_sha256", measurements_sha256(measured.journal)},
            {"constraints", report.constraints},
            {"weights", source.n_weights()},
            {"smallest",
             {{"bytes", report.points.front().file_bytes},
              {"predicted_kld", report.points.front().cost},
              {"types", std::move(types)}}},
            {"steps", std::move(steps)},
            {"knees", std::move(knees)},
            {"presets", std::move(presets)}};
}

}  // namespace cerebellum
