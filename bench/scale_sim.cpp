// How long a sweep takes on N ranks, without having them: replays the costs of a measured journal, or those that follow
// from a list of tensors, through the dealer that mpirun's ranks use (cerebellum/distribute/dealer.h), with stragglers
// and failures.
#include <fmt/format.h>
#include <fnmatch.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <queue>
#include <random>
#include <string>
#include <vector>

#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/distribute/dealer.h"
#include "cerebellum/gguf/gguf_file.h"
#include "cerebellum/journal/journal.h"

namespace {

using cerebellum::Dealer;
using cerebellum::Error;

struct Options {
    std::string journal, gguf, list;
    std::vector<std::string> shapes;
    std::size_t ranks = 64;
    std::size_t per_node = 8;
    double stragglers = 0.05;
    double straggler_pace = 0.5;
    std::size_t failures = 0;
    bool restart = false;
    double startup_s = 20.0;
    double pass_s = 2.0;
    std::size_t windows = 8;
    std::size_t types = 0;
    double quantize_rate = 0.0;
    double active_experts = 1.0;
    std::size_t runs = 20;
    unsigned seed = 1;
    double at_least = 0.0;
    bool json = false;
};

/// A piece of work: a tensor, or a type of a tensor that is read in several blocks or in none.
struct Piece {
    double cost_s = 0.0;
    double position = 0.0;  // 0: begin of the model, 1: its head
};

/// What is to be done. One replay of the source through all windows takes source_s.
struct Sweep {
    std::vector<Piece> pieces;
    double source_s = 0.0;
    double work_s() const {
        return std::accumulate(pieces.begin(), pieces.end(), 0.0,
                               [](double sum, const Piece& piece) { return sum + piece.cost_s; });
    }
};

int block_of(const std::string& tensor) {
    int block = -1;
    return std::sscanf(tensor.c_str(), "blk.%d.", &block) == 1 ? block : -1;
}

double position_of(const std::string& tensor, int blocks) {
    if (const int block = block_of(tensor); block >= 0) return static_cast<double>(block) / (blocks + 1.0);
    return tensor.starts_with("output") ? 1.0 : 0.0;
}

/// As rank 0 deals them.
Sweep in_order(Sweep sweep, const Options& options) {
    if (options.per_node > 1)
        std::ranges::stable_sort(sweep.pieces, std::greater<>{}, &Piece::cost_s);
    else
        std::ranges::stable_sort(sweep.pieces, {}, &Piece::position);
    return sweep;
}

/// The times that measuring really took.
Sweep from_journal(const Options& options) {
    const auto& path = options.journal;
    const auto rows = cerebellum::Journal::open_existing(path).measurements();
    std::map<std::string, bool> local;
    int blocks = 0;
    for (const auto& row : rows) {
        local[row.tensor] = local[row.tensor] || row.tier == cerebellum::Tier::fast;
        blocks = std::max(blocks, block_of(row.tensor) + 1);
    }
    Sweep sweep;
    std::map<std::string, Piece> whole;
    double dearest_s = 0.0;
    for (const auto& row : rows) {
        auto& piece = local[row.tensor] ? whole[row.tensor] : sweep.pieces.emplace_back();
        piece.cost_s += row.wall_s;
        piece.position = position_of(row.tensor, blocks);
        // A change of the embedding is replayed through everything: no replay of the source takes longer.
        if (!local[row.tensor] && piece.position == 0.0) dearest_s = std::max(dearest_s, row.wall_s);
    }
    for (const auto& [name, piece] : whole) sweep.pieces.push_back(piece);
    if (sweep.pieces.empty()) throw Error(fmt::format("{} holds no measurements", path));
    sweep.source_s = dearest_s;
    return in_order(std::move(sweep), options);
}

/// Names and numbers of weights, in the file's order.
using Tensors = std::vector<std::pair<std::string, double>>;

Tensors from_list(const Options& options) {
    std::vector<std::pair<std::string, double>> shapes;
    for (const auto& shape : options.shapes) {
        double columns = 0.0, rows = 0.0;
        const auto equals = shape.rfind('=');
        if (equals == std::string::npos || std::sscanf(shape.c_str() + equals, "=%lfx%lf", &columns, &rows) != 2)
            throw cerebellum::UsageError(
                fmt::format("--shape {}: write it as 'blk.*.ffn_up.weight=5120x17408'", shape));
        shapes.emplace_back(shape.substr(0, equals), columns * rows);
    }
    Tensors tensors;
    auto text = cerebellum::read_file(options.list);
    text.resize(std::min(text.find('\n'), text.size()));
    for (const auto& name : CLI::detail::split(text, ',')) {
        if (!name.ends_with(".weight")) continue;  // the first column's head
        const auto shape = std::ranges::find_if(
            shapes, [&](const auto& known) { return fnmatch(known.first.c_str(), name.c_str(), 0) == 0; });
        if (shape == shapes.end()) throw cerebellum::UsageError(fmt::format("no --shape is given for {}", name));
        tensors.emplace_back(name, shape->second);
    }
    return tensors;
}

Tensors from_gguf(const std::string& path) {
    Tensors tensors;
    const auto file = cerebellum::GgufFile::open(path);
    for (const auto& tensor : file.tensors())
        if (tensor.n_dims >= 2 && tensor.name.ends_with(".weight"))
            tensors.emplace_back(tensor.name, static_cast<double>(tensor.n_weights()));
    return tensors;
}

/// What the plan of `ablate` costs: every tensor in every type through its block, two anchors on half of the windows to
/// the head; tensors outside of the blocks to the head in every type. A replay takes the weights' share of a pass.
Sweep from_tensors(const Tensors& tensors, const Options& options) {
    const double types = static_cast<double>(options.types > 0 ? options.types : cerebellum::default_types().size());
    const double windows = static_cast<double>(options.windows);
    int blocks = 0;
    for (const auto& [name, weights] : tensors) blocks = std::max(blocks, block_of(name) + 1);
    std::vector<double> of_block(static_cast<std::size_t>(blocks), 0.0);
    double head = 0.0, all = 0.0;
    const auto read = [&](const std::string& name, double weights) {
        return name.find("_exps.") != std::string::npos ? weights * options.active_experts : weights;
    };
    for (const auto& [name, weights] : tensors) {
        const int block = block_of(name);
        if (block >= 0) of_block[static_cast<std::size_t>(block)] += read(name, weights);
        if (name.starts_with("output")) head += weights;
    }
    for (const double weights : of_block) all += weights;
    all += head;
    if (!(all > 0.0)) throw Error("there are no blocks in this list of tensors");
    const double pass_per_weight_s = options.pass_s / all;
    Sweep sweep;
    sweep.source_s = windows * options.pass_s;
    for (const auto& [name, weights] : tensors) {
        const int block = block_of(name);
        const double quantizing_s = options.quantize_rate > 0.0 ? weights / options.quantize_rate : 0.0;
        const double position = position_of(name, blocks);
        if (block < 0) {
            const double replay_s = windows * pass_per_weight_s * (name.starts_with("output") ? head : all);
            for (int type = 0; type < static_cast<int>(types); ++type)
                sweep.pieces.push_back({replay_s + quantizing_s, position});
            continue;
        }
        double behind = head;
        for (auto later = static_cast<std::size_t>(block) + 1; later < of_block.size(); ++later)
            behind += of_block[later];
        const double anchors = 2.0 * std::ceil(windows / 2.0);
        sweep.pieces.push_back(
            {pass_per_weight_s * (types * windows * of_block[static_cast<std::size_t>(block)] + anchors * behind) +
                 types * quantizing_s,
             position});
    }
    return in_order(std::move(sweep), options);
}

struct Outcome {
    double wall_s = 0.0;
    std::size_t dealt_again = 0;  // pieces
};

/// One run. A failing rank dies without a word at a random moment of the ideal time; with --restart the job then begins
/// again with what has been recorded.
Outcome simulate(const Sweep& sweep, const Options& options, unsigned seed) {
    std::mt19937_64 random(seed);
    std::uniform_real_distribution<double> uniform(0.0, 1.0);
    const double ideal_s = sweep.work_s() / static_cast<double>(options.ranks);
    std::vector<double> pace(options.ranks, 1.0), dies_s(options.ranks, 1e300);
    std::vector<std::size_t> order(options.ranks);
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::ranges::shuffle(order, random);
    const auto slow = static_cast<std::size_t>(std::lround(options.stragglers * static_cast<double>(options.ranks)));
    for (std::size_t i = 0; i < slow; ++i) pace[order[i]] = options.straggler_pace;
    std::ranges::shuffle(order, random);
    // Rank 0 has the journal; without it there is nothing to simulate.
    std::erase(order, std::size_t{0});
    for (std::size_t i = 0; i < std::min(options.failures, order.size()); ++i)
        dies_s[order[i]] = options.startup_s + uniform(random) * ideal_s;

    std::vector<std::size_t> left(sweep.pieces.size());  // pieces that are not recorded yet
    std::iota(left.begin(), left.end(), std::size_t{0});
    Outcome outcome;
    const auto per_node = std::max<std::size_t>(1, std::min(options.per_node, options.ranks));
    const bool shared = per_node > 1;
    for (double start_s = 0.0; !left.empty();) {
        std::vector<double> costs;
        for (const auto piece : left) costs.push_back(sweep.pieces[piece].cost_s);
        Dealer dealer(costs, options.ranks);
        struct Event {
            double at_s;
            std::size_t rank;
            std::optional<Dealer::Batch> done;
            bool operator<(const Event& other) const { return at_s > other.at_s; }
        };
        std::priority_queue<Event> events;
        std::vector<double> position(options.ranks, 0.0);
        // Ranks of a node divide the windows of the source among themselves (a window is not divided).
        const double divided = static_cast<double>(std::min(per_node, options.windows));
        for (std::size_t rank = 0; rank < options.ranks; ++rank)
            events.push({start_s + options.startup_s + sweep.source_s / pace[rank] / divided, rank, std::nullopt});
        double failed_s = 1e300;
        if (options.restart)
            for (auto& dies : dies_s)
                if (dies > start_s) failed_s = std::min(failed_s, dies);
        std::vector<bool> recorded(left.size(), false);
        std::map<std::size_t, int> times_dealt;
        double now_s = start_s;
        while (!dealer.done() && !events.empty()) {
            const auto event = events.top();
            events.pop();
            if (event.at_s > failed_s) break;
            if (event.at_s > dies_s[event.rank]) continue;
            now_s = event.at_s;
            if (event.done && dealer.finish(event.done->id, now_s))
                for (const auto piece : event.done->pieces) recorded[piece] = true;
            if (dealer.done()) break;
            auto batch = dealer.deal(event.rank, now_s);
            if (!batch) {
                events.push({now_s + 0.5, event.rank, std::nullopt});
                continue;
            }
            double work_s = 0.0;
            for (const auto piece : batch->pieces) {
                work_s += costs[piece] * (0.9 + 0.2 * uniform(random));  // estimates are not exact
                outcome.dealt_again += ++times_dealt[piece] > 1 ? 1 : 0;
            }
            if (!shared) {
                // Each rank takes the source's states along with it.
                const double to = sweep.pieces[left[batch->pieces.back()]].position;
                work_s += sweep.source_s * (to < position[event.rank] ? to : to - position[event.rank]);
                position[event.rank] = to;
            }
            const double end_s = now_s + work_s / pace[event.rank];
            events.push({end_s, event.rank, std::move(batch)});
        }
        std::vector<std::size_t> still;
        for (std::size_t piece = 0; piece < left.size(); ++piece)
            if (!recorded[piece]) still.push_back(left[piece]);
        left = std::move(still);
        if (left.empty()) {
            outcome.wall_s = now_s;
        } else {
            if (!options.restart) throw Error("all ranks have failed");
            start_s = failed_s;
        }
    }
    return outcome;
}

int run(const Options& options) {
    if (options.journal.empty() + options.gguf.empty() + options.list.empty() != 2)
        throw cerebellum::UsageError("give one of --journal, --gguf and --list");
    const auto sweep = !options.journal.empty() ? from_journal(options)
                       : !options.gguf.empty()  ? from_tensors(from_gguf(options.gguf), options)
                                                : from_tensors(from_list(options), options);
    std::vector<double> efficiencies, walls_s;
    double again = 0.0;
    for (std::size_t i = 0; i < options.runs; ++i) {
        const auto outcome = simulate(sweep, options, options.seed + static_cast<unsigned>(i));
        walls_s.push_back(outcome.wall_s);
        efficiencies.push_back(sweep.work_s() / (static_cast<double>(options.ranks) * outcome.wall_s));
        again += static_cast<double>(outcome.dealt_again) / static_cast<double>(options.runs);
    }
    const auto mean = [](const std::vector<double>& values) {
        return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
    };
    const double worst = std::ranges::min(efficiencies);
    if (options.json)
        fmt::print("{}\n", nlohmann::json{{"pieces", sweep.pieces.size()},
                                          {"work_s", sweep.work_s()},
                                          {"source_s", sweep.source_s},
                                          {"ranks", options.ranks},
                                          {"wall_s", mean(walls_s)},
                                          {"efficiency", mean(efficiencies)},
                                          {"worst_efficiency", worst},
                                          {"pieces_dealt_again", again}}
                               .dump(2));
    else
        fmt::print(
            "{} pieces, {:.0f} s of work on one rank; a replay of the source takes {:.1f} s\n"
            "{} ranks, {} to a node, {:.0f} % stragglers at {:.2f} of the pace, {} failures ({}): {:.0f} s on average "
            "of "
            "{} runs\n"
            "efficiency {:.1f} % (worst run {:.1f} %), {:.1f} pieces dealt again\n",
            sweep.pieces.size(), sweep.work_s(), sweep.source_s, options.ranks, options.per_node,
            100.0 * options.stragglers, options.straggler_pace, options.failures,
            options.restart ? "the job starts again" : "the others go on", mean(walls_s), options.runs,
            100.0 * mean(efficiencies), 100.0 * worst, again);
    if (mean(efficiencies) < options.at_least) {
        fmt::print(stderr, "scale_sim: the mean efficiency is below --at-least {}\n", options.at_least);
        return 1;
    }
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    Options options;
    CLI::App app(
        "How long a sweep takes on N ranks. Efficiency is the work's time on one undisturbed rank over N times the "
        "time\n"
        "on N ranks, everything counted against them: start, the source's own replays, stragglers, failures.");
    app.add_option("--journal", options.journal, "Costs are the times that this journal's measurements took");
    app.add_option("--gguf", options.gguf, "Costs follow from this model's tensors; the header is enough");
    app.add_option("--list", options.list, "The same from a CSV whose first line names tensors; needs --shape");
    app.add_option("--shape", options.shapes, "GLOB=COLUMNSxROWS of tensors of --list; repeatable");
    app.add_option("--ranks", options.ranks)->check(CLI::PositiveNumber)->capture_default_str();
    app.add_option("--per-node", options.per_node, "Ranks that share the source's states")->capture_default_str();
    app.add_option("--stragglers", options.stragglers, "Share of slow ranks")->capture_default_str();
    app.add_option("--straggler-pace", options.straggler_pace, "How fast they are")->capture_default_str();
    app.add_option("--failures", options.failures, "Ranks that die at random moments")->capture_default_str();
    app.add_flag("--restart", options.restart, "A failure ends the job, which starts again with what is recorded");
    app.add_option("--startup", options.startup_s, "Seconds to load the model and record it")->capture_default_str();
    app.add_option("--pass", options.pass_s, "Seconds of one window through the model (not with --journal)")
        ->capture_default_str();
    app.add_option("--windows", options.windows, "Windows measured on")->capture_default_str();
    app.add_option("--types", options.types, "Types per tensor (default: all)");
    app.add_option("--quantize-rate", options.quantize_rate, "Weights that a rank quantizes per second (0: at once)")
        ->capture_default_str();
    app.add_option("--active-experts", options.active_experts, "Share of expert weights that a token goes through")
        ->capture_default_str();
    app.add_option("--runs", options.runs)->check(CLI::PositiveNumber)->capture_default_str();
    app.add_option("--seed", options.seed)->capture_default_str();
    app.add_option("--at-least", options.at_least, "Fail where the mean efficiency is lower");
    app.add_flag("--json", options.json);
    CLI11_PARSE(app, argc, argv);
    try {
        return run(options);
    } catch (const cerebellum::UsageError& error) {
        fmt::print(stderr, "scale_sim: {}\n", error.what());
        return 2;
    } catch (const std::exception& error) {
        fmt::print(stderr, "scale_sim: {}\n", error.what());
        return 1;
    }
}
