#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "cerebellum/cli/commands.h"
#include "cerebellum/cli/options.h"
#include "cerebellum/cli/terminal_style.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/core/size.h"
#include "cerebellum/core/tensor_name.h"
#include "cerebellum/pipeline/allocation.h"
#include "cerebellum/pipeline/frontier_report.h"
#include "cerebellum/pipeline/session.h"
#include "cerebellum/predict/classes.h"
#include "cerebellum/predict/curve.h"
#include "cerebellum/report/heat_map.h"
#include "cerebellum/report/table.h"

namespace cerebellum::cli {

namespace {

struct Values {
    std::string journal, model, type, tier = "best", profile, colour = "auto";
    double bits = ClassOptions{}.crushed_bits;
    int width = 0;
    bool json = false;
};

/// What is shown of a tensor.
struct Shown {
    std::string tensor;
    const CurvePoint* point = nullptr;
};

/// The point of the wanted type, or the one nearest in bits; null where there is none.
const CurvePoint* choose(const Curve& curve, const Values& values) {
    const CurvePoint* best = nullptr;
    const auto distance = [&](const CurvePoint& point) { return std::abs(std::log(point.bits / values.bits)); };
    for (const auto& point : curve.points) {
        if (values.tier != "best" && tier_name(point.damage.tier) != values.tier) continue;
        if (!values.type.empty() && point.type != parse_encoding(values.type)) continue;
        if (best == nullptr || distance(point) < distance(*best)) best = &point;
    }
    return best;
}

std::string outside_of_blocks(const std::string& tensor) {
    return tensor.ends_with(".weight") ? role_of(tensor) : tensor;
}

HeatMap map_of(const std::vector<Shown>& all) {
    std::map<std::string, HeatMap::Row> in_blocks, others;
    for (const auto& [tensor, point] : all) {
        const auto block = block_of(tensor);
        auto& row = block ? in_blocks[role_of(tensor)] : others[outside_of_blocks(tensor)];
        row.role = block ? role_of(tensor) : outside_of_blocks(tensor);
        row.values[block.value_or(-1)] = point->damage.kld;
    }
    HeatMap map;
    for (auto* rows : {&in_blocks, &others})
        for (auto& [role, row] : *rows) map.rows.push_back(std::move(row));
    return map;
}

std::string ranking(std::vector<Shown> all) {
    constexpr std::size_t most = 8;
    std::ranges::stable_sort(all, std::greater{}, [](const auto& shown) { return shown.point->damage.kld; });
    if (all.size() > most) all.resize(most);
    std::vector<std::vector<std::string>> rows;
    for (const auto& [tensor, point] : all) {
        const auto interval = damage_interval(point->damage);
        rows.push_back({tensor, point->damage.type, fmt::format("{:.2e}", point->damage.kld),
                        fmt::format("{:.1e} to {:.1e}", interval.lower, interval.upper),
                        std::string(tier_name(point->damage.tier))});
    }
    return format_table({"most damage", "type", "KLD", "95 %", "tier"}, rows);
}

/// Damage over size, and what it belongs to.
struct Sizes {
    std::vector<FrontierPoint> points;
    std::vector<std::size_t> knees;
    std::vector<PresetMark> presets;
    double weights = 0.0;

    double bits(std::uint64_t bytes) const { return 8.0 * static_cast<double>(bytes) / weights; }
};

Sizes sizes_of(const Values& values, const std::vector<TensorInfo>& tensors,
               std::span<const Measurement> measurements) {
    Sizes sizes;
    for (const auto& tensor : tensors) sizes.weights += static_cast<double>(tensor.n_weights());
    if (values.model.empty()) {
        sizes.points = points_of(solve_frontier(make_problem(tensors, 0, measurements, Objective::kld)));
        sizes.knees = knee_points(sizes.points);
        return sizes;
    }
    const auto measured = open_measured(values.model, values.journal, {Objective::kld, values.profile});
    auto report = make_frontier(measured, {});
    sizes.points = std::move(report.points);
    sizes.knees = std::move(report.knees);
    sizes.presets = std::move(report.presets);
    return sizes;
}

std::string draw(const Sizes& sizes, const TextStyle& style) {
    PlotSeries ours{'*', "the best file of each size", {}}, knees{'o', "beyond it a byte buys markedly less", {}},
        stock{'+', "stock mixes of llama-quantize", {}};
    // Files that hardly differ from the source would take most of a logarithmic axis.
    constexpr double drawn_range = 1e-5;
    const double least = drawn_range * sizes.points.front().cost;
    for (const auto& point : sizes.points)
        if (point.cost >= least) ours.points.emplace_back(sizes.bits(point.file_bytes), point.cost);
    for (const auto knee : sizes.knees)
        knees.points.emplace_back(sizes.bits(sizes.points[knee].file_bytes), sizes.points[knee].cost);
    for (const auto& preset : sizes.presets)
        if (preset.kld) stock.points.emplace_back(sizes.bits(preset.bytes), *preset.kld);
    std::string text = draw_log_plot({ours, stock, knees}, "bits per weight", "predicted KLD, nats per token", style);
    std::vector<std::vector<std::string>> rows;
    for (const auto knee : sizes.knees)
        rows.push_back({"knee", format_bytes(sizes.points[knee].file_bytes),
                        fmt::format("{:.2f}", sizes.bits(sizes.points[knee].file_bytes)),
                        fmt::format("{:.5f}", sizes.points[knee].cost)});
    for (const auto& preset : sizes.presets)
        if (preset.kld)
            rows.push_back({preset.name, format_bytes(preset.bytes), fmt::format("{:.2f}", sizes.bits(preset.bytes)),
                            fmt::format("{:.5f}", *preset.kld)});
    return rows.empty() ? text : text + "\n" + format_table({"", "size", "bpw", "predicted KLD"}, rows);
}

nlohmann::json to_json(const std::vector<Shown>& all, const Sizes& sizes) {
    auto tensors = nlohmann::json::array(), frontier = nlohmann::json::array(), knees = nlohmann::json::array(),
         presets = nlohmann::json::array();
    for (const auto& [tensor, point] : all) {
        const auto interval = damage_interval(point->damage);
        const auto block = block_of(tensor);
        tensors.push_back({{"tensor", tensor},
                           {"block", block ? nlohmann::json(*block) : nlohmann::json()},
                           {"role", role_of(tensor)},
                           {"type", point->damage.type},
                           {"kld", point->damage.kld},
                           {"kld_95", {interval.lower, interval.upper}},
                           {"tier", tier_name(point->damage.tier)}});
    }
    const auto add = [&](nlohmann::json& list, const FrontierPoint& point) {
        list.push_back(
            {{"bytes", point.file_bytes}, {"bpw", sizes.bits(point.file_bytes)}, {"predicted_kld", point.cost}});
    };
    for (const auto& point : sizes.points) add(frontier, point);
    for (const auto knee : sizes.knees) add(knees, sizes.points[knee]);
    for (const auto& preset : sizes.presets)
        if (preset.kld) {
            add(presets, {preset.bytes, *preset.kld});
            presets.back()["name"] = preset.name;
        }
    return {{"tensors", tensors}, {"frontier", frontier}, {"knees", knees}, {"presets", presets}};
}

int run(const Values& values) {
    if (!values.type.empty() && !parse_encoding(values.type))
        throw UsageError(fmt::format("--type {}: ggml has no such type", values.type));
    const auto journal = Journal::open_existing(values.journal);
    const auto measurements = weighed_measurements(journal, {Objective::kld, values.profile});
    if (measurements.empty())
        throw Error(fmt::format("{} holds no measurements; run 'cerebellum ablate' first", values.journal));
    const auto curves = fit_curves(measurements);
    std::vector<Shown> all;
    for (const auto& [tensor, curve] : curves)
        if (const auto* point = choose(curve, values)) all.push_back({tensor, point});
    if (all.empty())
        throw Error(fmt::format("{} holds nothing of type {} and tier {}; leave out --type or --tier", values.journal,
                                values.type.empty() ? "any" : values.type, values.tier));
    const auto sizes = sizes_of(values, tensors_from_journal(journal), measurements);
    if (values.json) {
        fmt::print("{}\n", json_to_text(to_json(all, sizes), 1));
        return 0;
    }
    auto style = stdout_style();
    if (values.width > 0) style.columns = values.width;
    if (values.colour != "auto") style.colour = values.colour == "always";
    const auto which = values.type.empty() ? fmt::format("the type nearest to {:g} bpw", values.bits)
                                           : fmt::format("type {}", values.type);
    fmt::print("KLD in nats per token of each tensor alone, in {}:\n{}\n{}\n", which, draw_heat_map(map_of(all), style),
               ranking(all));
    fmt::print("{}", draw(sizes, style));
    if (values.model.empty())
        fmt::print("\nSizes are those of the tensors' data; --model adds header and stock mixes.\n");
    return 0;
}

}  // namespace

Command add_show(CLI::App& app) {
    auto values = std::make_shared<Values>();
    auto* command = app.add_subcommand("show", "Draw what a journal knows: damage by block and role, damage over size");
    command->footer(
        "Examples:\n  cerebellum show model-f16.cerebellum.db\n"
        "  cerebellum show model-f16.cerebellum.db --type q4_K --model model-f16.gguf\n\n"
        "Reads the journal only, also while another process is writing it. Colours repeat what the characters say;\n"
        "without a terminal, with NO_COLOR or TERM=dumb there are none. 'explain' tells more of single tensors.");
    command->add_option("journal,--journal", values->journal, "The journal with the measurements")
        ->required()
        ->type_name("FILE");
    command
        ->add_option("--model", values->model,
                     "The measured model: exact sizes of files, and the stock mixes beside them")
        ->type_name("MODEL.gguf");
    command->add_option("--type", values->type, "Show the damage of this type only")->type_name("TYPE");
    command->add_option("--bits", values->bits, "Show each tensor's type nearest to so many bits per weight")
        ->check(CLI::Range(0.5, 32.0))
        ->capture_default_str();
    command->add_option("--tier", values->tier, "Show only figures of this tier")
        ->check(CLI::IsMember({"best", "fast", "full"}))
        ->capture_default_str();
    command->add_option("--profile", values->profile, "How the domains of labelled texts count, as 'allocate' takes it")
        ->type_name("PROFILE");
    command->add_option("--color", values->colour, "When to use colours")
        ->check(CLI::IsMember({"auto", "always", "never"}))
        ->capture_default_str();
    command->add_option("--width", values->width, "Columns to draw on (default: the terminal's, else 80)")
        ->check(CLI::Range(40, 1000));
    command->add_flag("--json", values->json, "Print the result as JSON");
    return [values] { return run(*values); };
}

}  // namespace cerebellum::cli
