#include "cerebellum/pipeline/session.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <fnmatch.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <mutex>
#include <nlohmann/json.hpp>
#include <random>
#include <set>

#include "cerebellum/build/build_gguf.h"
#include "cerebellum/calibrate/imatrix.h"
#include "cerebellum/core/compressed_file.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/hash.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/core/listing.h"
#include "cerebellum/core/mapped_memory.h"
#include "cerebellum/core/parallel.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/core/size.h"
#include "cerebellum/core/visible_text.h"
#include "cerebellum/llama/placement.h"
#include "cerebellum/llama/presets.h"
#include "cerebellum/llama/recorder.h"
#include "cerebellum/llama/sampler.h"
#include "cerebellum/pipeline/unusable.h"
#include "cerebellum/quantize/quantize_tensor.h"
#include "cerebellum/replay/topology.h"
#include "cerebellum/sweep/measure_rates.h"
#include "cerebellum/sweep/plan.h"
#include "cerebellum/version.h"

namespace cerebellum {

namespace {

constexpr int default_context = 512;

std::string serialize(const Imatrix& imatrix) {
    nlohmann::json entries = nlohmann::json::object();
    for (const auto& [name, entry] : imatrix.entries) entries[name] = {entry.in_sum2, entry.counts, entry.n_cols};
    const auto bytes = nlohmann::json::to_cbor(nlohmann::json{{"entries", entries},
                                                              {"datasets", imatrix.datasets},
                                                              {"chunk_count", imatrix.chunk_count},
                                                              {"chunk_size", imatrix.chunk_size}});
    return {bytes.begin(), bytes.end()};
}

/// As read_imatrix() checks what comes from a file.
void check_entry(const std::string& name, const ImatrixEntry& entry) {
    const auto is_usable = [](float value) { return std::isfinite(value) && value >= 0.0f; };
    if (entry.n_cols <= 0 || entry.counts.empty() || entry.in_sum2.size() % entry.counts.size() != 0 ||
        static_cast<std::int64_t>(entry.in_sum2.size() / entry.counts.size()) != entry.n_cols ||
        !std::ranges::all_of(entry.in_sum2, is_usable) || !std::ranges::all_of(entry.counts, is_usable))
        throw Error(fmt::format("the importance matrix in the journal is damaged: its entry for {} cannot be used",
                                visible(name)));
}

Imatrix deserialize_imatrix(std::string_view bytes) {
    try {
        const auto json = parse_cbor(bytes, "the importance matrix in the journal");
        Imatrix imatrix;
        for (const auto& [name, value] : as_object(json.at("entries"))) {
            auto& entry = imatrix.entries[name];
            value.at(0).get_to(entry.in_sum2);
            value.at(1).get_to(entry.counts);
            value.at(2).get_to(entry.n_cols);
            check_entry(name, entry);
        }
        json.at("datasets").get_to(imatrix.datasets);
        json.at("chunk_count").get_to(imatrix.chunk_count);
        json.at("chunk_size").get_to(imatrix.chunk_size);
        return imatrix;
    } catch (const nlohmann::json::exception& error) {
        throw Error(fmt::format("the importance matrix in the journal is damaged: {}", json_problem(error)));
    }
}

/// The file that stands for the source, made where it is not there yet. It lies beside the journal.
std::filesystem::path reference_file(const RunOptions& options, const GgufFile& source, Progress& progress) {
    if (!options.baseline.empty()) return options.baseline;
    if (!options.reference || options.dry) return options.model;
    const auto type = *options.reference;
    auto path = std::filesystem::absolute(options.journal).parent_path() /
                fmt::format("{}.reference-{}.gguf", options.model.stem().string(), type_name(type));
    std::error_code ignored;
    if (std::filesystem::exists(path, ignored) &&
        GgufFile::open(path).string_value("cerebellum.source_fingerprint") == source.fingerprint(progress))
        return path;
    Recipe recipe;
    recipe.source_fingerprint = source.fingerprint();
    recipe.source_name = source.path().filename().string();
    for (const auto& name : quantizable_tensors(options.model))
        if (const auto* tensor = source.find(name); tensor != nullptr && type_fits_row(type, tensor->row_length()))
            recipe.types[name] = type;
    BuildOptions build;
    build.threads = options.threads;
    build.overwrite = true;
    progress.info(fmt::format("writing the reference, a {} copy of the source, to {}", type_name(type), path.string()));
    build_gguf(source, recipe, nullptr, path, build, progress);
    return path;
}

/// One part in so many of --memory is for second moments and what is made of them, the rest for replaying.
constexpr std::uint64_t moment_share = 4;

std::uint64_t moment_bytes(const RunOptions& options) {
    constexpr std::uint64_t ample_bytes = std::uint64_t{2} << 30;
    return options.limits.host_bytes > 0 ? options.limits.host_bytes / moment_share : ample_bytes;
}

MemoryLimits replay_limits(const RunOptions& options) {
    auto limits = options.limits;
    if (limits.host_bytes > 0 && options.rounding != RoundingChoice::ggml) limits.host_bytes -= moment_bytes(options);
    return limits;
}

template <typename Value>
void spread(std::vector<Value>& values) {
    std::vector<Value> ordered;
    for (const auto i : spread_order(values.size())) ordered.push_back(std::move(values[i]));
    values = std::move(ordered);
}

/// The device of --device and the RPC servers; these alone where only they are given.
std::vector<std::string> devices_of(const RunOptions& options) {
    std::vector<std::string> devices;
    if (!options.device.empty() || options.rpc.empty()) devices.push_back(options.device);
    devices.insert(devices.end(), options.rpc.begin(), options.rpc.end());
    return devices;
}

/// Each kind once: figures may be compared where these are the same.
std::string kinds_of(const std::vector<std::string>& devices) {
    std::set<std::string> kinds;
    for (const auto& device : devices) kinds.insert(Device::kind_of(device));
    return fmt::format("{}", fmt::join(kinds, " and "));
}

std::vector<Window> record(ReplayEngine& engine, const TokenWindows& windows) {
    std::vector<Window> recorded;
    for (const auto& window : windows) recorded.push_back(engine.prepare(window));
    return recorded;
}

}  // namespace

std::optional<Imatrix> imatrix_from_journal(const Journal& journal) {
    const auto bytes = journal.get_artifact("imatrix");
    return bytes ? std::optional(deserialize_imatrix(*bytes)) : std::nullopt;
}

std::string serialize(std::span<const TensorInfo> tensors) {
    auto list = nlohmann::json::array();
    for (const auto& tensor : tensors)
        list.push_back({{"name", tensor.name},
                        {"type", type_name(tensor.type)},
                        {"shape", tensor.shape},
                        {"dimensions", tensor.n_dims},
                        {"bytes", tensor.size_bytes}});
    return json_to_text(list);
}

namespace {

/// Sizes above zero whose product is no more than any file can hold, and as many bytes as the type takes for them.
bool has_possible_shape(const TensorInfo& tensor) {
    constexpr std::int64_t most_weights = std::int64_t{1} << 48;
    std::int64_t weights = 1;
    for (const auto size : tensor.shape) {
        if (size <= 0 || size > most_weights / weights) return false;
        weights *= size;
    }
    return tensor.n_dims >= 1 && tensor.n_dims <= static_cast<int>(tensor.shape.size()) &&
           type_fits_row(tensor.type, tensor.row_length()) &&
           tensor.size_bytes == type_size_bytes(tensor.type, tensor.row_length(), tensor.n_rows());
}

}  // namespace

std::vector<TensorInfo> tensors_from_journal(const Journal& journal) {
    const auto bytes = journal.get_artifact("tensors");
    if (!bytes)
        throw Error(fmt::format("{} does not hold the model's tensors; run 'cerebellum ablate' with it once more",
                                journal.path().string()));
    std::vector<TensorInfo> tensors;
    try {
        for (const auto& value :
             parse_json(*bytes, journal.path().string() + ": the model's tensors", limits_of_long_json)) {
            auto& tensor = tensors.emplace_back();
            value.at("name").get_to(tensor.name);
            value.at("shape").get_to(tensor.shape);
            value.at("dimensions").get_to(tensor.n_dims);
            value.at("bytes").get_to(tensor.size_bytes);
            const auto type = parse_type(value.at("type").get<std::string>());
            if (!type) throw Error(fmt::format("{}: {} has an unknown type", journal.path().string(), tensor.name));
            tensor.type = *type;
            if (!has_possible_shape(tensor))
                throw Error(fmt::format("{}: the model's tensors are damaged: {} cannot have this shape",
                                        journal.path().string(), visible(tensor.name)));
        }
    } catch (const nlohmann::json::exception& error) {
        throw Error(
            fmt::format("{}: the model's tensors are damaged: {}", journal.path().string(), json_problem(error)));
    }
    return tensors;
}

struct Session::Recorded {
    std::optional<Recorder> recorder;
    std::optional<Topology> topology;
};

Session::Session(RunOptions options, Progress& progress)
    : options_((times_.begin("load and check"), std::move(options))),
      progress_(progress),
      source_(GgufFile::open(options_.model)),
      model_(Model::load(reference_file(options_, source_, progress))) {
    // What loading has touched counts against the limit, and is read again where it is needed.
    if (options_.limits.host_bytes > 0) drop_pages(model_.path());
    if (options_.threads <= 0) options_.threads = physical_cores();
    if (options_.context <= 0) options_.context = std::min(default_context, model_.trained_context());
    if (options_.context < 16)
        throw UsageError(fmt::format("--ctx {} is too small: windows need at least 16 tokens", options_.context));
    if (options_.context > model_.trained_context())
        throw UsageError(fmt::format("--ctx {} is more than the {} tokens that {} was trained for", options_.context,
                                     model_.trained_context(), options_.model.string()));
    if (options_.tokens < options_.context)
        throw UsageError(fmt::format("--tokens {} is less than one window of {} tokens; raise it or lower --ctx",
                                     options_.tokens, options_.context));
    // What cannot be used is refused before there is a journal that would belong to it.
    if (options_.imatrix) {
        imatrix_ = read_imatrix(*options_.imatrix);
        fill_imatrix();
    }
    if (!options_.texts.empty() && !std::filesystem::exists(options_.journal))
        text_ = windows_from_files(model_, options_.texts, options_.context, demand(), options_.domains);
    source_.fingerprint(progress);
    journal_ = std::make_unique<Journal>(Journal::open(options_.journal, identity()));
    journal_->check_before_recording([this] { source_.check_unchanged(); });
    if (imatrix_ && !journal_->get_artifact("imatrix")) journal_->put_artifact("imatrix", serialize(*imatrix_));
    if (text_) keep_text();
    journal_->put_meta("imatrix_name", imatrix_name());
    if (!journal_->get_artifact("tensors")) journal_->put_artifact("tensors", serialize(source_.tensors()));
    times_.end();
}

namespace {

/// ": blk.0.attn_q.weight has weights that are none", of the first few tensors that have; empty where none has.
std::string describe_bad_tensors(const GgufFile& source) {
    std::vector<std::string> bad;
    std::vector<float> row;
    for (const auto& tensor : source.tensors()) {
        if (!type_is_quantizable(tensor.type)) continue;
        const auto bytes = source.data(tensor);
        const auto row_bytes = type_size_bytes(tensor.type, tensor.row_length(), 1);
        row.resize(static_cast<std::size_t>(tensor.row_length()));
        for (std::size_t at = 0; at < bytes.size(); at += row_bytes) {
            dequantize_rows(tensor.type, bytes.subspan(at, row_bytes), row);
            if (std::ranges::all_of(row, [](float weight) { return std::isfinite(weight); })) continue;
            bad.push_back(tensor.name);
            break;
        }
    }
    if (bad.empty()) return "";
    return fmt::format(": weights of {} are not finite", first_few(bad));
}

}  // namespace

Session::~Session() = default;

JournalIdentity Session::identity() const {
    auto fields = identity_fields();
    // Only where it is not the rule, so that other journals say nothing of it.
    if (options_.all_rows) fields["rows"] = "all";
    return {std::move(fields)};
}

std::map<std::string, std::string> Session::identity_fields() const {
    Sha256 text;
    for (const auto& file : options_.texts) text.update(sha256(read_file(file)));
    for (const auto& domain : options_.domains) text.update("domain " + domain + ";");
    std::map<std::string, std::string> fields = {
        {"model", source_.fingerprint()},
        {"text", options_.texts.empty() ? fmt::format("self-sampled, seed {}", options_.seed) : text.finish()},
        {"tokens", std::to_string(options_.tokens)},
        {"context", std::to_string(options_.context)},
        {"imatrix", options_.imatrix ? sha256(read_file(*options_.imatrix)) : "computed from the text"},
        {"llama.cpp", CEREBELLUM_LLAMA_VERSION},
        {"measuring", measuring_version},
        {"reference", options_.baseline.empty()
                          ? reference_name()
                          : fmt::format("baseline {}", GgufFile::open(options_.baseline).fingerprint())},
        {"device", kinds_of(devices_of(options_))},
    };
    // Other efforts than the quick one differ in their tokens alone.
    if (options_.effort == Effort::quick) fields["effort"] = effort_name(options_.effort);
    return fields;
}

TextDemand Session::demand() const {
    const int windows = options_.tokens / options_.context;
    return {calibration_factor * windows, std::max(1, windows / 2), windows};
}

/// What a text means by special tokens is lost on a model that reads them as words; nobody should find that out later.
void Session::warn_of_special_tokens() {
    for (const auto& file : options_.texts) {
        auto tokens = model_.special_tokens_in(read_text(file));
        if (tokens.empty()) continue;
        for (auto& token : tokens) token = visible(token);
        progress_.warn(
            fmt::format("{} holds the model's special tokens {}: they are read as plain text, as llama-perplexity "
                        "reads them; give conversations without such marks, or as the words that they are",
                        file.string(), first_few(tokens)));
    }
}

void Session::keep_text() {
    warn_of_special_tokens();
    if (static_cast<int>(text_->test.size()) < demand().test)
        progress_.warn(fmt::format(
            "the text is shorter than asked for: {} windows to measure on instead of {}; error bars will be wider",
            (text_->calibration.size() + calibration_factor - 1) / calibration_factor, demand().test));
    // Candidates are compared on its first windows first; these are to be spread over the text and its domains.
    spread(text_->selection);
    spread(text_->selection_domains);
    journal_->put_artifact("text", serialize(*text_));
}

RunPlace Session::place() const {
    auto place = place_on(devices_of(options_));
    place.device_bytes = options_.limits.device_bytes;
    return place;
}

template <typename Use>
auto Session::on_place(Use use) const {
    const auto place = this->place();
    if (place.on_cpu()) return use(model_);
    const auto& path = model_.path();
    const auto needed = working_bytes(GgufFile::open(path), options_.context, sampled_side_by_side * options_.context);
    return use(Model::load_to_run(path, fitted(place, path, needed)));
}

const TextParts& Session::text() {
    if (text_) return *text_;
    if (const auto stored = journal_->get_artifact("text")) {
        auto parts = deserialize_text_parts(*stored);
        check_windows(parts, options_.context, model_.n_vocab());
        text_ = std::move(parts);
        return *text_;
    }
    if (options_.texts.empty() && options_.limits.host_bytes > 0 && source_.file_size() > options_.limits.host_bytes)
        throw UsageError(fmt::format(
            "{} ({}) does not fit in --memory {}, so it cannot write its own text in reasonable time; give a --text",
            options_.model.string(), format_bytes(source_.file_size()), format_bytes(options_.limits.host_bytes)));
    const StageTimer timer(times_, "text");
    text_ = options_.texts.empty() ? on_place([&](const Model& model) {
        return windows_from_model(model, options_.context, demand(), options_.seed, options_.threads, progress_);
    })
                                   : windows_from_files(model_, options_.texts, options_.context, demand(),
                                                        options_.domains);
    keep_text();
    return *text_;
}

std::string Session::reference_name() const {
    if (!options_.baseline.empty()) return fmt::format("the baseline {}", options_.baseline_name);
    return options_.reference ? fmt::format("a {} copy of the source", type_name(*options_.reference)) : "the source";
}

bool Session::replays() {
    if (replays_) return *replays_;
    replays_ = !options_.no_replay;
    if (options_.no_replay) return false;
    try {
        engine();
    } catch (const NotReplayable& reason) {
        engine_.reset();
        replays_ = false;
        progress_.warn(
            fmt::format("{}; measuring through whole files that llama.cpp runs instead, which is exact but much slower",
                        reason.what()));
    }
    return *replays_;
}

FileTrials Session::file_trials() {
    TypeMap base;
    if (!options_.baseline.empty()) base = complete_types(GgufFile::open(options_.baseline), {});
    return {source_,
            model_,
            imatrix(),
            tensor_order(),
            std::filesystem::absolute(journal_->path()).parent_path(),
            options_.threads,
            place(),
            std::move(base)};
}

const Topology* Session::topology() {
    if (replays()) return &engine().topology();
    if (!recorded_) {
        recorded_ = std::make_unique<Recorded>();
        try {
            recorded_->recorder.emplace(model_, options_.context);
            recorded_->topology.emplace(recorded_->recorder->graph());
        } catch (const NotReplayable&) {
            recorded_->topology.reset();
        }
    }
    return recorded_->topology ? &*recorded_->topology : nullptr;
}

std::string Session::why_unmeasurable(const std::string& tensor) {
    const auto* graph = topology();
    if (graph == nullptr) return "";
    if (!graph->weights().contains(tensor)) return "it is not read when the model runs";
    return graph->takes_any_type(tensor) ? "" : "ggml cannot use it in other types";
}

ReplayEngine& Session::engine() {
    if (engine_) return *engine_;
    const auto& windows = text().calibration;
    const StageTimer timer(times_, "load and check");
    const auto devices = devices_of(options_);
    engine_ = std::make_unique<ReplayEngine>(model_, options_.context,
                                             EngineOptions{options_.threads,
                                                           devices.front(),
                                                           {devices.begin() + 1, devices.end()},
                                                           replay_limits(options_),
                                                           demand().test});
    progress_.detail(fmt::format("memory on {}: {}", engine_->device_names(), describe(engine_->memory_plan())));
    const TokenWindows some(windows.begin(), windows.begin() + std::min<std::ptrdiff_t>(2, std::ssize(windows)));
    const auto check = engine_->self_check(record(*engine_, some));
    if (!check.finite) {
        engine_.reset();
        throw Error(
            fmt::format("{} computes logits that are no numbers{}; mend the source, nothing can be measured on it",
                        options_.model.string(), describe_bad_tensors(source_)));
    }
    const auto deviation =
        fmt::format("logits differ by up to {:.3g} from llama.cpp's, KLD {:.3g}", check.largest_deviation, check.kld);
    if (engine_->is_host() && check.largest_deviation != 0.0)
        throw NotReplayable(fmt::format("{} ({}) cannot be replayed exactly: {}", options_.model.string(),
                                        source_.architecture(), deviation));
    // Other devices round differently, but not by much: more is another computation.
    constexpr double most_kld = 0.01, most_floor = 1e-4;
    if (!(check.kld <= most_kld))
        throw Error(fmt::format("{} ({}) cannot be measured on {}: {}; use --device CPU", options_.model.string(),
                                source_.architecture(), engine_->device_names(), deviation));
    if (!(check.null_floor_kld <= most_floor))
        throw Error(
            fmt::format("{} disagrees with itself: two replays of the same text differ by {:.3g} nats per token, "
                        "more than most damages; use another --device",
                        engine_->device_names(), check.null_floor_kld));
    journal_->put_meta("null_floor_kld", fmt::format("{:.6g}", check.null_floor_kld));
    if (!engine_->is_host())
        progress_.info(fmt::format(
            "{}: KLD from llama.cpp on the CPU {:.3g}, null floor (the source against itself) {:.3g} nats per token",
            engine_->device_names(), check.kld, check.null_floor_kld));
    return *engine_;
}

double Session::null_floor_kld() const {
    const auto stored = journal_->get_meta("null_floor_kld");
    return stored ? std::stod(*stored) : 0.0;
}

void Session::fill_imatrix() {
    if (const auto gaps = describe_gaps(fill_gaps(*imatrix_)); !gaps.empty()) progress_.warn(gaps);
}

const Imatrix& Session::imatrix() {
    if (imatrix_) return *imatrix_;
    if (auto stored = imatrix_from_journal(*journal_)) {
        imatrix_ = std::move(*stored);
        return *imatrix_;
    }
    const bool replayed = replays();
    text();
    const StageTimer timer(times_, "importance matrix");
    imatrix_ = replayed ? compute_imatrix(engine(), prepare(text().calibration), text().description, progress_)
                        : on_place([&](const Model& model) {
                              return compute_imatrix(model, text().calibration, options_.threads, text().description,
                                                     progress_);
                          });
    fill_imatrix();
    journal_->put_artifact("imatrix", serialize(*imatrix_));
    return *imatrix_;
}

std::string Session::imatrix_name() const {
    return options_.imatrix ? options_.imatrix->filename().string() : "computed by cerebellum";
}

const std::vector<std::string>& Session::quantizable() {
    if (quantizable_.empty()) quantizable_ = quantizable_tensors(options_.model);
    return quantizable_;
}

const std::vector<std::string>& Session::tensor_order() {
    if (tensor_order_.empty())
        tensor_order_ = dry_run(options_.model, {.file_type = *file_type_of(GGML_TYPE_F16)}).order;
    return tensor_order_;
}

const TensorInfo& Session::source_tensor(const std::string& name) const {
    const auto* tensor = source_.find(name);
    if (tensor == nullptr) throw Error(fmt::format("{} has no tensor {}", options_.model.string(), name));
    return *tensor;
}

QuantizedCache& Session::quantized_tensors() {
    if (quantized_) return *quantized_;
    // Enough for what is used soon again; the disk takes a few whole models' worth, but never most of its space.
    constexpr std::uint64_t ample_bytes = std::uint64_t{1} << 30, memory_share = 8, disk_share = 4, models = 4;
    QuantizedCache::Limits limits;
    limits.memory_bytes = options_.limits.host_bytes > 0 ? options_.limits.host_bytes / memory_share : ample_bytes;
    limits.scratch_folder = options_.limits.scratch_folder.empty() ? std::filesystem::temp_directory_path()
                                                                   : options_.limits.scratch_folder;
    std::error_code ignored;
    const auto space = std::filesystem::space(limits.scratch_folder, ignored);
    if (!ignored)
        limits.disk_bytes = std::min<std::uint64_t>(space.available / disk_share, models * source_.file_size());
    quantized_ =
        std::make_unique<QuantizedCache>(limits, [this](std::string_view message) { progress_.warn(message); });
    return *quantized_;
}

namespace {

/// What a whole tensor in a type is called in a session's cache.
std::string cache_key(const std::string& tensor, const Encoding& type) {
    return fmt::format("{} {}", tensor, type_name(type));
}

}  // namespace

SharedBytes Session::known_bytes(const std::string& tensor, const Encoding& type) {
    return quantized_tensors().find(cache_key(tensor, type));
}

Quantizer Session::quantizer() {
    const auto& weights = imatrix();
    const auto rounder = std::make_shared<FeedbackRounder>(moments(), options_.threads);
    // Source, importance matrix and moments are this session's, and do not change: tensor and type say the rest.
    return [this, &weights, rounder, &cache = quantized_tensors()](const std::string& name, const Encoding& type) {
        const auto key = cache_key(name, type);
        if (const auto known = cache.find(key)) return *known;
        const auto& tensor = source_tensor(name);
        auto bytes = quantize_tensor(tensor, source_.data(tensor), type.type, quantization_weights(&weights, tensor),
                                     options_.threads);
        if (type.rounding == Rounding::feedback)
            rounder->improve_rows(tensor, source_.data(tensor), type.type, 0, bytes);
        // libllama has a mapping of its own; two resident copies of the source would be one too many.
        drop_pages(source_.data(tensor));
        cache.put(key, bytes);
        return bytes;
    };
}

RowQuantizer Session::row_quantizer() {
    const auto& weights = imatrix();
    const auto rounder = std::make_shared<FeedbackRounder>(moments(), options_.threads);
    struct Checked {
        std::mutex mutex;
        std::set<std::pair<std::string, ggml_type>> tensors;
    };
    const auto checked = std::make_shared<Checked>();
    // A figure of some rows is worth nothing where the others cannot be stored. One quantized type bounds weights as
    // any other does.
    const auto check = [this, checked](const TensorInfo& tensor, ggml_type type) {
        const std::pair key(tensor.name, ggml_is_quantized(type) ? GGML_TYPE_Q8_0 : type);
        {
            const std::lock_guard lock(checked->mutex);
            if (checked->tensors.contains(key)) return;
        }
        check_all_weights(tensor, source_.data(tensor), type, options_.threads);
        drop_pages(source_.data(tensor));
        const std::lock_guard lock(checked->mutex);
        checked->tensors.insert(key);
    };
    return [this, &weights, rounder, check](const std::string& name, const Encoding& type,
                                            std::span<const std::int64_t> rows) {
        const auto& whole = source_tensor(name);
        // Rows are rounded one by one: those of an anchor that was quantized whole are there already.
        if (const auto known = known_bytes(name, type)) {
            auto quantized = whole;
            quantized.type = type.type;
            return sampled_rows(quantized, *known, rows).bytes;
        }
        check(whole, type.type);
        const auto source = sampled_rows(whole, source_.data(whole), rows);
        auto bytes = quantize_tensor(source.tensor, source.bytes, type.type, quantization_weights(&weights, whole),
                                     options_.threads);
        if (type.rounding == Rounding::feedback)
            rounder->improve_rows(source.tensor, source.bytes, type.type, 0, bytes);
        return bytes;
    };
}

SweepOptions Session::sweep_options() {
    auto options = estimated_options();
    if (options.quantize_rows) options.quantize_rows = row_quantizer();
    return options;
}

/// As far as an estimate needs them: nothing is quantized with these.
SweepOptions Session::estimated_options() const {
    SweepOptions options;
    if (options_.all_rows) return options;
    options.quantize_rows = [](const std::string&, const Encoding&, std::span<const std::int64_t>) {
        return std::vector<std::byte>();
    };
    // Where a device replays, it waits for whatever is quantized. On the CPU a replay takes as long as most types do,
    // but for those with codebooks, which are the ones without a codec of their own.
    if (kinds_of(devices_of(options_)) == "CPU")
        options.is_slow = [](const Encoding& type) {
            return ggml_is_quantized(type.type) && !takes_feedback(type.type);
        };
    return options;
}

RoundingChoice Session::rounding() {
    if (options_.rounding != RoundingChoice::automatic || replays()) return options_.rounding;
    return RoundingChoice::ggml;
}

bool Session::rounds_with_feedback(const TensorInfo& tensor, ggml_type type) {
    return takes_feedback(tensor, type) && moment_file().inputs().contains(tensor.name);
}

MomentFile& Session::moment_file() {
    if (moments_) return *moments_;
    if (!replays())
        throw UsageError(
            "--rounding feedback needs the model to be replayed, which was not possible or not wanted; use "
            "--rounding auto or ggml");
    std::set<std::string> weights;
    for (const auto& name : quantizable())
        if (const auto* tensor = source_.find(name);
            tensor != nullptr && is_measurable(name) && InputMetric::admits(tensor->row_length()))
            weights.insert(name);
    auto inputs = find_inputs(engine().topology(), weights);
    const auto too_large = [&](const auto& entry) {
        return InputMetric::size_bytes(entry.second.n_cols) > moment_bytes(options_);
    };
    if (const auto first = std::ranges::find_if(inputs, too_large); first != inputs.end()) {
        const auto needed = InputMetric::size_bytes(first->second.n_cols);
        const auto problem = fmt::format("rounding {} with feedback takes {}; raise --memory to {}", first->first,
                                         format_bytes(needed), format_bytes(moment_share * needed));
        if (options_.rounding == RoundingChoice::feedback)
            throw UsageError(fmt::format("{} or use --rounding auto or ggml", problem));
        const auto dropped = std::erase_if(inputs, too_large);
        progress_.warn(fmt::format("{}. {} matrices are rounded as ggml does", problem, dropped));
    }
    moments_ = MomentFile::open(MomentFile::beside(options_.journal), identity());
    if (moments_->inputs().empty()) moments_->set_inputs(std::move(inputs));
    return *moments_;
}

const MomentFile& Session::collected_moments() {
    auto& file = moment_file();
    if (moments_ready_) return file;
    if (!file.complete()) {
        const StageTimer timer(times_, "second moments");
        // Not from the windows that damage is measured on, or feedback would look better than it is.
        TokenWindows windows;
        const auto& calibration = text().calibration;
        for (std::size_t i = 0; i < calibration.size(); ++i)
            if (i % calibration_factor != 0) windows.push_back(calibration[i]);
        if (windows.empty()) windows = calibration;
        collect_second_moments(engine(), prepare(windows), file.inputs(), moment_bytes(options_), options_.threads,
                               file, progress_);
    }
    journal_->put_meta("moments_sha256", file.digest());
    moments_ready_ = true;
    return file;
}

MomentReader Session::moments() {
    if (rounding() == RoundingChoice::ggml) return {};
    return [this](const std::string& weight, std::int64_t matrix) { return collected_moments().read(weight, matrix); };
}

void Session::rest() {
    worker_.reset();
    measured_.clear();
    engine_.reset();
}

void Session::adopt(const TextParts& text, Imatrix imatrix) {
    text_ = text;
    journal_->put_artifact("text", serialize(*text_));
    imatrix_ = std::move(imatrix);
    journal_->put_artifact("imatrix", serialize(*imatrix_));
}

std::vector<Window> Session::prepare(const TokenWindows& windows) {
    return record(engine(), windows);
}

std::vector<std::string> Session::wanted_tensors() {
    auto names = quantizable();
    const auto matches = [](const std::string& name, const std::string& glob) {
        return fnmatch(glob.c_str(), name.c_str(), 0) == 0;
    };
    for (const auto& glob : options_.tensors)
        if (std::ranges::none_of(names, [&](const auto& name) { return matches(name, glob); }))
            throw UsageError(
                fmt::format("no tensor that can be quantized is called '{}'; 'cerebellum inspect {}' lists them", glob,
                            options_.model.string()));
    if (!options_.tensors.empty())
        std::erase_if(names, [&](const auto& name) {
            return std::ranges::none_of(options_.tensors, [&](const auto& glob) { return matches(name, glob); });
        });
    return names;
}

std::vector<TensorPlan> Session::plan() {
    const auto& matrix = imatrix();
    return make_plan(source_, wanted_tensors(), [&](const std::string& name) { return matrix.entries.contains(name); },
                     {options_.types, options_.full, options_.effort == Effort::quick, rounding(),
                      [this](const TensorInfo& tensor, ggml_type type) { return rounds_with_feedback(tensor, type); }});
}

std::vector<TensorPlan> Session::measurable_plan() {
    auto wanted = plan();
    std::erase_if(wanted, [&](const TensorPlan& tensor) {
        const auto why = why_unmeasurable(tensor.name);
        if (!why.empty()) progress_.warn(fmt::format("{} is not measured and keeps its type: {}", tensor.name, why));
        return !why.empty();
    });
    return wanted;
}

std::vector<WorkItem> Session::work_items(std::span<const TensorPlan> plan) {
    if (!replays()) return split_plan(plan);
    return split_plan(SweepMap(engine().topology()), plan, measured_windows().size());
}

SweepSummary Session::measure() {
    const auto plan = measurable_plan();
    return measure(options_.shard ? plan_of(items_of(*options_.shard, work_items(plan))) : plan);
}

SweepSummary Session::measure(std::span<const TensorPlan> wanted) {
    const auto summary = measure_quietly(wanted);
    if (summary.unusable > 0 || !warned_of_unusable_) warn_of_unusable(*journal_, progress_);
    warned_of_unusable_ = true;
    return summary;
}

SweepSummary Session::measure_quietly(std::span<const TensorPlan> wanted) {
    const auto measured = measured_windows();
    JournalFigures figures(*journal_);
    if (executor_ != nullptr) {
        const StageTimer timer(times_, "measuring");
        auto items = work_items(wanted);
        // Where the source's states are shared, any order costs the same, and the dearest parts first leave small ones
        // for the end. Where each rank takes the states along, it should not have to go back.
        if (neighbours_.count > 1)
            std::ranges::stable_sort(items, std::greater<>{}, &WorkItem::cost);
        else
            std::ranges::stable_sort(items, {}, &WorkItem::position);
        return executor_->measure(items, trial(), figures, progress_);
    }
    if (!replays()) {
        const StageTimer timer(times_, "measuring");
        return measure_through_files(file_trials(), wanted, measured, figures, progress_);
    }
    const auto windows = prepare(measured);
    const auto quantize = quantizer();
    const auto expected = estimate(wanted, {});
    if (rounding() != RoundingChoice::ggml && expected.fast + expected.full > 0) collected_moments();
    const StageTimer timer(times_, "measuring");
    if (!times_.stage("measuring").measured_before_s) {
        double before_s = 0.0;
        for (const auto& row : journal_->measurements()) before_s += row.wall_s;
        times_.stage("measuring").measured_before_s = before_s;
    }
    // Measuring the rates takes a second: more than some sweeps do.
    constexpr double worth_rates_s = 20.0;
    Rates known;
    if (expected.seconds > worth_rates_s) known = rates(wanted);
    const auto start = StageTimes::Clock::now();
    const auto summary = run_sweep(engine(), windows, wanted, quantize, *journal_, progress_, sweep_options(), known);
    const std::chrono::duration<double> wall = StageTimes::Clock::now() - start;
    const auto add = [](std::optional<double>& sum, double seconds) { sum = sum.value_or(0.0) + seconds; };
    auto& stage = times_.stage("measuring");
    add(stage.quantize_s, summary.quantize_s);
    add(stage.device_busy_s, summary.replay_s);
    add(stage.waiting_s,
        std::max(0.0, wall.count() - summary.replay_s - (engine().is_host() ? summary.quantize_s : 0.0)));
    return summary;
}

SweepEstimate Session::estimate(std::span<const TensorPlan> wanted, const Rates& rates) {
    JournalFigures figures(*journal_);
    return estimate_sweep(engine(), measured_windows().size(), wanted, figures, estimated_options(), rates);
}

const Rates& Session::rates(std::span<const TensorPlan> wanted) {
    const auto is_known = [&](const TensorPlan& tensor) {
        return std::ranges::all_of(tensor.types,
                                   [&](const Encoding& type) { return rates_->quantize_s.contains(type.type); });
    };
    if (!rates_ || !std::ranges::all_of(wanted, is_known)) {
        const auto window = prepare({text().calibration.front()}).front();
        const StageTimer timer(times_, "timing");
        rates_ = measure_rates(engine(), window, source_, imatrix(), wanted, options_.threads, progress_);
    }
    return *rates_;
}

Neighbours Session::neighbours_of(const Group& group, const std::string& job) const {
    return {options_.limits.scratch_folder, job, static_cast<std::size_t>(group.local_rank()),
            static_cast<std::size_t>(group.local_size())};
}

Trial Session::trial() {
    if (!replays())
        return [this](std::span<const TensorPlan> plan, FigureStore& figures, Progress& progress) {
            return measure_through_files(file_trials(), plan, measured_windows(), figures, progress);
        };
    if (!worker_) {
        measured_ = prepare(measured_windows());
        worker_ = std::make_unique<SweepWorker>(engine(), measured_, quantizer(), neighbours_, sweep_options());
        worker_->share_states(progress_);
    }
    return [this](std::span<const TensorPlan> plan, FigureStore& figures, Progress& progress) {
        return worker_->measure(plan, figures, progress);
    };
}

void Session::distribute(GroupExecutor& executor) {
    imatrix();
    text();
    neighbours_ = neighbours_of(executor.group(), fmt::format("{:08x}{:08x}", std::random_device()(), ::getpid()));
    const auto artifact = [this](const char* name) {
        const auto bytes = journal_->get_artifact(name).value();
        return nlohmann::json::binary({bytes.begin(), bytes.end()});
    };
    const auto bytes = nlohmann::json::to_cbor(nlohmann::json{{"identity", journal_->identity().fields},
                                                              {"replays", replays()},
                                                              {"job", neighbours_.job},
                                                              {"text", artifact("text")},
                                                              {"imatrix", artifact("imatrix")}});
    executor.hand_out({bytes.begin(), bytes.end()});
    executor_ = &executor;
}

void Session::take_part(Group& group) {
    const auto bytes = receive(group, progress_);
    const auto of_rank_0 = parse_cbor(bytes, "what rank 0 hands out");
    JournalIdentity theirs;
    of_rank_0.at("identity").get_to(theirs.fields);
    if (const auto differs = difference(theirs, journal_->identity()))
        throw Error(
            fmt::format("rank 0 measures with {} = {}, this rank with {}; figures of both cannot be put together",
                        differs->field, differs->first, differs->second));
    for (const auto* name : {"text", "imatrix"}) {
        const auto& artifact = of_rank_0.at(name).get_binary();
        journal_->put_artifact(name, {reinterpret_cast<const char*>(artifact.data()), artifact.size()});
    }
    text_.reset();
    imatrix_.reset();
    neighbours_ = neighbours_of(group, of_rank_0.at("job"));
    if (of_rank_0.at("replays").get<bool>() != replays())
        throw Error("the model can be replayed exactly on rank 0 or on this rank, but not on both");
    serve(group, trial(), progress_);
}

}  // namespace cerebellum
