#include "cerebellum/pipeline/job_plan.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <system_error>

#include "cerebellum/build/build_gguf.h"
#include "cerebellum/calibrate/second_moments.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/leftovers.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/llama/presets.h"
#include "cerebellum/llama/sampler.h"
#include "cerebellum/pipeline/whole_prediction.h"
#include "cerebellum/quantize/input_metric.h"
#include "cerebellum/sweep/sweep_map.h"

namespace cerebellum {

namespace fs = std::filesystem;

namespace {

/// A folder that is gone with the object.
class ScratchFolder {
  public:
    explicit ScratchFolder(const fs::path& where)
        : path_((where.empty() ? fs::temp_directory_path() : where) /
                fmt::format("cerebellum-plan-{}-{:08x}", ::getpid(), std::random_device()())) {
        std::error_code error;
        fs::create_directories(path_, error);
        if (error) throw Error(fmt::format("cannot make the folder {}: {}", path_.string(), error.message()));
    }
    ~ScratchFolder() {
        std::error_code ignored;
        fs::remove_all(path_, ignored);
    }
    ScratchFolder(const ScratchFolder&) = delete;
    ScratchFolder& operator=(const ScratchFolder&) = delete;
    const fs::path& path() const { return path_; }

  private:
    fs::path path_;
    Leftover leftover_{path_};
};

void copy_journal(const fs::path& from, const fs::path& to) {
    const auto source = Journal::open_existing(from);
    auto copy = Journal::open(to, source.identity());
    copy.in_one_step([&] {
        for (const auto& row : source.measurements()) copy.record(row);
        for (const auto& mix : source.mixes()) copy.record(mix);
        for (const auto& name : source.artifact_names()) copy.put_artifact(name, source.get_artifact(name).value());
        for (const auto& [key, value] : source.meta()) copy.put_meta(key, value);
    });
}

bool moments_are_complete(const fs::path& journal) {
    const auto path = MomentFile::beside(journal);
    std::error_code ignored;
    return fs::exists(path, ignored) && MomentFile::open_existing(path).complete();
}

TextParts made_up_text(const Model& model, int context, const TextDemand& demand) {
    std::mt19937 random(1);
    std::uniform_int_distribution<Token> token(0, model.n_vocab() - 1);
    const auto windows = [&](int count) {
        TokenWindows result(static_cast<std::size_t>(count));
        for (auto& window : result) {
            window.push_back(model.first_token());
            while (static_cast<int>(window.size()) < context) window.push_back(token(random));
        }
        return result;
    };
    TextParts parts;
    parts.calibration = windows(demand.calibration);
    parts.selection = windows(demand.selection);
    parts.test = windows(demand.test);
    parts.description = "made up";
    return parts;
}

/// Of every matrix that is multiplied by, with as good as no importance.
Imatrix made_up_imatrix(Session& session) {
    const auto& topology = session.engine().topology();
    Imatrix imatrix;
    for (const auto& name : session.quantizable()) {
        const auto* tensor = session.source().find(name);
        if (tensor == nullptr || !topology.weights().contains(name) || topology.only_looked_up(name)) continue;
        auto& entry = imatrix.entries[name];
        entry.n_cols = tensor->row_length();
        entry.counts.assign(static_cast<std::size_t>(tensor->shape[2]), 1.0f);
        entry.in_sum2.assign(static_cast<std::size_t>(tensor->shape[2] * tensor->row_length()), 1.0f);
    }
    return imatrix;
}

/// Seconds per token of text that the model writes, `count` sequences in all.
double sampling_rate(Session& session, int count) {
    constexpr int length = 9, side_by_side = 32;
    const int n = std::min(count, side_by_side);
    NoProgress progress;
    const auto start = std::chrono::steady_clock::now();
    sample_sequences(session.model(), n, std::min(length, session.context()), 1, session.threads(), progress);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    return seconds.count() / (n * (length - 1));
}

/// What has to be quantized for mixes of types, each tensor and type once.
class WeightsOfMixes {
  public:
    explicit WeightsOfMixes(const GgufFile& source) : source_(source) {}
    void add(const TypeMap& types) {
        for (const auto& [name, type] : types)
            if (const auto* tensor = source_.find(name); tensor != nullptr && tensor->type != type.type)
                wanted_.insert({name, type});
    }
    double weights() const {
        double sum = 0.0;
        for (const auto& [name, type] : wanted_) sum += static_cast<double>(source_.find(name)->n_weights());
        return sum;
    }
    double bytes() const {
        double sum = 0.0;
        for (const auto& [name, type] : wanted_) sum += static_cast<double>(source_.find(name)->size_bytes);
        return sum;
    }
    double seconds(const Rates& rates) const {
        double sum = 0.0;
        for (const auto& [name, type] : wanted_) {
            const auto* tensor = source_.find(name);
            sum += rates.quantizing(type, static_cast<double>(tensor->n_weights()),
                                    static_cast<double>(tensor->row_length()));
        }
        return sum;
    }

  private:
    const GgufFile& source_;
    std::set<std::pair<std::string, Encoding>> wanted_;
};

class Planner {
  public:
    Planner(Session& session, const JobRequest& request, const Rates& rates)
        : session_(session),
          request_(request),
          rates_(rates),
          topology_(session.engine().topology()),
          map_(topology_),
          overlaps_(!session.engine().is_host()) {
        body_flops_ = map_.flops(0, topology_.head_cut());
        head_flops_ = map_.flops(topology_.head_cut(), topology_.n_nodes());
    }

    JobPlan plan() {
        plan_.effort = session_.options().effort;
        plan_.rates = rates_;
        const auto& needs = session_.engine().memory_plan();
        plan_.memory = describe(needs);
        plan_.memory_bytes = memory_bytes(needs);
        measuring();
        if (!request_.whole) return std::move(plan_);
        plan_.output_bytes = request_.budget_bytes;
        recipes();
        competing();
        building();
        return std::move(plan_);
    }

  private:
    double replaying_s(double windows) const { return windows * body_flops_ * rates_.replay_s; }
    double scoring_s(double windows) const { return windows * head_flops_ * rates_.head_s; }
    double together(double quantizing_s, double replays_s) const {
        return overlaps_ ? std::max(quantizing_s, replays_s) : quantizing_s + replays_s;
    }
    double windows_of(const TokenWindows& part) const { return static_cast<double>(part.size()); }

    std::uint64_t memory_bytes(const MemoryPlan& memory) const {
        const auto& limits = session_.options().limits;
        constexpr std::uint64_t program_bytes = std::uint64_t{128} << 20;
        const auto& needs = memory.needs;
        auto bytes = program_bytes + needs.largest_weight_bytes / 2 * 3 + memory.wave_bytes +
                     3 * needs.state_bytes * static_cast<std::uint64_t>(needs.n_windows) + needs.temporary_bytes;
        if (memory.resident) bytes += needs.weight_bytes;
        return limits.host_bytes > 0 ? std::min<std::uint64_t>(bytes, limits.host_bytes) : bytes;
    }

    void measuring() {
        const auto wanted = session_.plan();
        std::vector<TensorPlan> measurable;
        std::ranges::copy_if(wanted, std::back_inserter(measurable),
                             [&](const TensorPlan& tensor) { return session_.is_measurable(tensor.name); });
        const auto estimate = session_.estimate(measurable, rates_);
        auto& stage = add("measuring");
        stage.fast = estimate.fast;
        stage.full = estimate.full;
        stage.resumed = estimate.resumed;
        stage.quantized_weights = estimate.quantized_weights;
        stage.replay_flops = estimate.replay_flops;
        stage.seconds = estimate.seconds;
        const auto& source = session_.source();
        stage.read_bytes = estimate.quantized_weights * static_cast<double>(source.file_size()) /
                           static_cast<double>(source.n_weights());
        for (const auto& tensor : measurable)
            for (const auto& type : tensor.types) types_.insert(type);
    }

    /// The types of a file of the budget's size are about as large as its mean weight.
    double rate_at_budget() const {
        const double bits =
            8.0 * static_cast<double>(request_.budget_bytes) / static_cast<double>(session_.source().n_weights());
        double sum = 0.0, n = 0.0;
        constexpr double near_bits = 1.0;
        for (const auto& [type, rate] : rates_.quantize_s)
            if (types_.contains(type) && std::fabs(bits_per_weight(type.type) - bits) < near_bits) {
                sum += rate;
                n += 1.0;
            }
        return n > 0.0 ? sum / n : rates_.quantize_default_s;
    }

    /// Recipes of neighbouring sizes calibrate the prediction.
    void recipes() {
        // They share most of their tensors' types, and none is quantized twice.
        constexpr double own_share = 0.25;
        const auto n_recipes =
            static_cast<double>(neighbouring_budgets(request_.budget_bytes, session_.options().effort).size());
        auto& stage = add("allocating");
        const auto& text = session_.text();
        const double windows = windows_of(session_.measured_windows()) + windows_of(text.selection);
        stage.mixes = static_cast<std::size_t>(n_recipes);
        const auto weights = static_cast<double>(session_.source().n_weights());
        stage.quantized_weights = (1.0 + own_share * (n_recipes - 1.0)) * weights;
        stage.replay_flops = windows * (n_recipes + 1.0) * body_flops_ + 2.0 * windows * n_recipes * head_flops_;
        const double mixes_s =
            together(stage.quantized_weights * rate_at_budget(),
                     replaying_s(windows * (n_recipes + 1.0)) + scoring_s(2.0 * windows * n_recipes));
        // A round measures as many mixes again, and the changed tensors.
        stage.seconds = mixes_s * (1.0 + request_.rounds) + request_.search_seconds;
    }

    /// Our mix, which has been quantized before, and of the stock mixes of up to the first one above the budget those
    /// that are replayed: all, or the largest that fits, since most often no other could be better.
    void competing() {
        const auto& source = session_.source();
        struct Mix {
            std::uint64_t bytes;
            TypeMap types;
        };
        std::vector<Mix> mixes;
        for (const auto& preset : stock_presets()) {
            auto types = dry_run(source.path(), {.file_type = preset.file_type, .has_imatrix = true}).types;
            mixes.push_back({predicted_file_bytes(source, types, std::nullopt, Provenance::none), std::move(types)});
        }
        std::ranges::sort(mixes, {}, &Mix::bytes);
        const auto larger =
            std::ranges::find_if(mixes, [&](const Mix& mix) { return mix.bytes > request_.budget_bytes; });
        if (larger != mixes.end()) mixes.erase(larger + 1, mixes.end());
        neighbours_ = std::min<std::size_t>(2, mixes.size());
        plan_.scratch_bytes = request_.budget_bytes;
        for (std::size_t i = mixes.size() - neighbours_; i < mixes.size(); ++i) plan_.scratch_bytes += mixes[i].bytes;
        above_ = above_s_ = 0.0;
        if (!mixes.empty() && mixes.back().bytes > request_.budget_bytes) {
            WeightsOfMixes above(source);
            above.add(mixes.back().types);
            above_ = above.weights();
            above_s_ = above.seconds(rates_);
            if (!request_.compare_all) mixes.pop_back();
        }
        if (!request_.compare_all && !mixes.empty()) mixes.erase(mixes.begin(), mixes.end() - 1);
        WeightsOfMixes weights(source);
        for (const auto& mix : mixes) weights.add(mix.types);
        auto& stage = add("competing");
        stage.mixes = mixes.size() + 1;
        const auto n = static_cast<double>(stage.mixes);
        const double windows = windows_of(session_.text().selection) + windows_of(session_.text().test);
        stage.quantized_weights = weights.weights();
        stage.read_bytes = weights.bytes();
        stage.replay_flops = windows * (n + 1.0) * body_flops_ + 2.0 * windows * n * head_flops_;
        stage.seconds =
            together(weights.seconds(rates_), replaying_s(windows * (n + 1.0)) + scoring_s(2.0 * windows * n));
    }

    /// The file and the stock mixes next to it in size, made and run. What was replayed has been quantized before.
    void building() {
        const auto files = static_cast<double>(neighbours_ + 1);
        const auto& source = session_.source();
        auto& built = add("building");
        built.quantized_weights = request_.compare_all ? 0.0 : above_;
        built.read_bytes = files * static_cast<double>(source.file_size());
        built.seconds =
            (request_.compare_all ? 0.0 : above_s_) + static_cast<double>(plan_.scratch_bytes) * rates_.write_s;
        auto& verified = add("verifying");
        const double windows = (files + 1.0) * windows_of(session_.text().test);
        verified.replay_flops = windows * (body_flops_ + head_flops_);
        verified.seconds = replaying_s(windows) + scoring_s(windows);
        add("writing").seconds = 0.0;
    }

    PlannedStage& add(const char* name) {
        auto& stage = plan_.stages.emplace_back();
        stage.name = name;
        return stage;
    }

    Session& session_;
    const JobRequest& request_;
    const Rates& rates_;
    const Topology& topology_;
    const SweepMap map_;
    bool overlaps_;
    double body_flops_ = 0.0, head_flops_ = 0.0;
    std::set<Encoding> types_;
    double above_ = 0.0, above_s_ = 0.0;  // the stock mix above the budget: weights, and the time to quantize them
    std::size_t neighbours_ = 0;
    JobPlan plan_;
};

/// What there is to do before anything is measured.
std::vector<PlannedStage> first_stages(Session& session, bool has_text, bool has_imatrix, bool has_moments,
                                       double load_s, const Rates& rates) {
    const auto& topology = session.engine().topology();
    const double body = SweepMap(topology).flops(0, topology.head_cut());
    const auto calibration = static_cast<double>(session.text().calibration.size());
    const auto stage = [&](const char* name, double flops, double seconds) {
        PlannedStage result;
        result.name = name;
        result.replay_flops = flops;
        result.seconds = seconds;
        return result;
    };
    std::vector<PlannedStage> stages = {stage("load and check", 0.0, load_s)};
    stages.front().read_bytes = static_cast<double>(session.source().file_size());
    const double tokens = has_text ? 0.0 : static_cast<double>(session.demand().total() * session.context());
    stages.push_back(stage("text", 0.0, tokens * rates.sample_s));
    const double windows = has_imatrix ? 0.0 : calibration;
    stages.push_back(stage("importance matrix", windows * body, windows * body * rates.replay_s));
    if (session.rounding() == RoundingChoice::ggml) return stages;
    double squares = 0.0;
    std::set<std::string> weights;
    for (const auto& name : session.quantizable())
        if (const auto* tensor = session.source().find(name);
            tensor != nullptr && topology.weights().contains(name) && InputMetric::admits(tensor->row_length()))
            weights.insert(name);
    std::set<std::string> inputs;
    for (const auto& [weight, input] : find_inputs(topology, weights))
        if (inputs.insert(input.input).second)
            squares += static_cast<double>(input.n_cols) * static_cast<double>(input.n_cols);
    const double replayed = has_moments ? 0.0 : calibration * (calibration_factor - 1) / calibration_factor;
    const double flops = replayed * (body + squares * session.context());
    stages.push_back(stage("second moments", flops, flops * rates.replay_s));
    return stages;
}

}  // namespace

double JobPlan::seconds() const {
    double sum = 0.0;
    for (const auto& stage : stages) sum += stage.seconds.value_or(0.0);
    return sum;
}

double JobPlan::seconds_after(std::string_view name) const {
    double sum = 0.0;
    for (auto stage = std::ranges::find(stages, name, &PlannedStage::name); stage != stages.end(); ++stage)
        sum += stage->name == name ? 0.0 : stage->seconds.value_or(0.0);
    return sum;
}

JobPlan plan_job(Session& session, const JobRequest& request, const Rates& rates) {
    auto plan = Planner(session, request, rates).plan();
    plan.journal = session.journal().path().string();
    return plan;
}

JobPlan plan_ahead(const RunOptions& options, const JobRequest& request, Progress& progress) {
    const ScratchFolder folder(options.limits.scratch_folder);
    auto dry = options;
    dry.dry = true;
    dry.journal = folder.path() / options.journal.filename();
    std::error_code ignored;
    const bool has_journal = fs::exists(options.journal, ignored);
    if (has_journal) copy_journal(options.journal, dry.journal);
    Session session(dry, progress);
    const bool has_text = !options.texts.empty() || session.journal().get_artifact("text").has_value();
    const auto imatrix = imatrix_from_journal(session.journal());
    double sample_s = Rates().sample_s;
    if (!has_text) {
        sample_s = sampling_rate(session, session.demand().total());
        session.adopt(made_up_text(session.model(), session.context(), session.demand()), imatrix.value_or(Imatrix()));
    }
    if (!session.replays())
        throw Error(
            fmt::format("{} cannot be replayed: how long measuring through whole files takes is not known "
                        "beforehand; run it without --dry-run",
                        options.model.string()));
    const auto times = session.times().stages();
    const double load_s = times.empty() ? 0.0 : times.front().wall_s;
    if (!imatrix) session.adopt(session.text(), made_up_imatrix(session));
    auto rates = session.rates(session.plan());
    rates.sample_s = sample_s;
    const auto after = session.times().stages();
    const auto timing = std::ranges::find(after, "timing", &StageTime::name);
    const double timing_s = timing == after.end() ? 0.0 : timing->wall_s;
    auto plan = plan_job(session, request, rates);
    auto stages = first_stages(session, has_text, imatrix.has_value(),
                               has_journal && moments_are_complete(options.journal), load_s, rates);
    // The job times samples too, and so builds the tables of types with codebooks, which takes far longer.
    stages.emplace_back().name = "timing";
    stages.back().seconds = timing_s;
    plan.stages.insert(plan.stages.begin(), std::make_move_iterator(stages.begin()),
                       std::make_move_iterator(stages.end()));
    plan.journal = options.journal.string();
    return plan;
}

nlohmann::json to_json(const JobPlan& plan) {
    auto stages = nlohmann::json::array();
    for (const auto& stage : plan.stages)
        stages.push_back({{"name", stage.name},
                          {"seconds", stage.seconds ? nlohmann::json(*stage.seconds) : nlohmann::json()},
                          {"fast_measurements", stage.fast},
                          {"full_measurements", stage.full},
                          {"in_journal", stage.resumed},
                          {"mixes", stage.mixes},
                          {"quantized_weights", stage.quantized_weights},
                          {"replay_flops", stage.replay_flops},
                          {"read_bytes", stage.read_bytes}});
    nlohmann::json quantizing;
    for (const auto& [type, seconds] : plan.rates.quantize_s) quantizing[type_name(type)] = 1.0 / seconds;
    return {{"plan", true},
            {"effort", effort_name(plan.effort)},
            {"journal", plan.journal},
            {"stages", stages},
            {"seconds", plan.seconds()},
            {"memory_bytes", plan.memory_bytes},
            {"memory", plan.memory},
            {"output_bytes", plan.output_bytes},
            {"scratch_bytes", plan.scratch_bytes},
            {"rates",
             {{"quantize_weights_per_s", quantizing},
              {"replay_flops_per_s", 1.0 / plan.rates.replay_s},
              {"head_flops_per_s", 1.0 / plan.rates.head_s}}}};
}

}  // namespace cerebellum
