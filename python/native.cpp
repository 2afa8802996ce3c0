// What python/cerebellum/__init__.py is made of: the stages, with plain arguments and JSON as results. The GIL is
// released while they work.
#include <nanobind/nanobind.h>
#include <nanobind/stl/filesystem.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>

#include "cerebellum/build/build_gguf.h"
#include "cerebellum/build/recipe.h"
#include "cerebellum/build/recipe_build.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/core/size.h"
#include "cerebellum/core/stats.h"
#include "cerebellum/gguf/inspection.h"
#include "cerebellum/journal/journal.h"
#include "cerebellum/llama/log.h"
#include "cerebellum/pipeline/goal.h"
#include "cerebellum/pipeline/measured_model.h"
#include "cerebellum/pipeline/quantize.h"
#include "cerebellum/pipeline/run_files.h"
#include "cerebellum/pipeline/session.h"
#include "cerebellum/pipeline/verify.h"
#include "cerebellum/predict/damage_rows.h"
#include "cerebellum/version.h"

namespace nb = nanobind;
namespace fs = std::filesystem;

namespace cerebellum {

namespace {

/// Passes progress on to a Python function, warnings to Python's own, and asks Python ten times a second whether
/// somebody pressed Ctrl-C. An exception of any of these stops the work and is raised at its end.
class CallProgress final : public Progress {
  public:
    explicit CallProgress(nb::object callback) : callback_(std::move(callback)) {}

    void begin(std::string_view stage, double total) override {
        {
            const std::lock_guard lock(mutex_);
            stage_ = stage;
            total_ = total;
        }
        report(0.0, "");
    }
    void advance(double done, std::string_view detail) override {
        {
            const std::lock_guard lock(mutex_);
            const auto now = std::chrono::steady_clock::now();
            if (now - reported_ < std::chrono::milliseconds(100)) return;
            reported_ = now;
        }
        report(done, detail);
    }
    void end() override { report(total_, ""); }
    void warn(std::string_view message) override {
        const nb::gil_scoped_acquire gil;
        if (PyErr_WarnEx(PyExc_UserWarning, std::string(message).c_str(), 1) != 0) keep_error();
    }
    void info(std::string_view) override {}
    void detail(std::string_view) override {}

    /// Raises what was kept. With the GIL.
    void raise_error() {
        if (!error_) return;
        stop_requested = false;
        auto error = std::move(*error_);
        error_.reset();
        throw error;
    }

  private:
    void report(double done, std::string_view detail) {
        const nb::gil_scoped_acquire gil;
        if (PyErr_CheckSignals() != 0) {
            keep_error();
            return;
        }
        if (callback_.is_none()) return;
        try {
            const auto share = total_ > 0.0 ? nb::object(nb::float_(std::min(1.0, done / total_))) : nb::none();
            callback_(nb::str(stage_.data(), stage_.size()), share, nb::str(detail.data(), detail.size()));
        } catch (nb::python_error& error) {
            error.restore();
            keep_error();
        }
    }
    /// Python's current error. With the GIL.
    void keep_error() {
        if (!error_)
            error_.emplace();
        else
            PyErr_Clear();
        stop_requested = true;
    }

    nb::object callback_;
    std::mutex mutex_;
    std::string stage_;
    double total_ = 0.0;
    std::chrono::steady_clock::time_point reported_;
    std::optional<nb::python_error> error_;
};

/// Runs `work` without the GIL.
template <typename Work>
auto call(CallProgress& progress, Work&& work) {
    using Result = decltype(work());
    std::optional<Result> result;
    try {
        const nb::gil_scoped_release release;
        result.emplace(work());
    } catch (const Interrupted&) {
        progress.raise_error();
        throw;
    }
    progress.raise_error();
    return std::move(*result);
}

/// What the stages that look at a model are told.
struct Settings {
    fs::path model, journal;
    std::vector<fs::path> texts;
    std::vector<std::string> domains, types, tensors;
    int tokens = 0, context = 0, threads = 0;  // tokens 0: as the effort has it
    std::string effort = "default";
    std::uint64_t seed = 1;
    bool full = false;
    std::string device, memory, device_memory;
};

std::vector<ggml_type> parse_types(const std::vector<std::string>& names) {
    std::vector<ggml_type> types;
    for (const auto& name : names) {
        const auto type = parse_type(name);
        if (!type || !type_is_quantizable(*type)) throw UsageError("'" + name + "' is not a quantization type");
        types.push_back(*type);
    }
    return types;
}

std::size_t parse_memory(const std::string& text) {
    return text.empty() ? 0 : parse_size(text).bytes(0);
}

RunOptions run_options(const Settings& settings) {
    RunOptions options;
    options.model = settings.model;
    options.journal = settings.journal;
    options.texts = settings.texts;
    options.domains = settings.domains;
    options.types = parse_types(settings.types);
    options.tensors = settings.tensors;
    const auto effort = parse_effort(settings.effort);
    if (!effort) throw UsageError("effort '" + settings.effort + "': it can be quick, default or thorough");
    options.effort = *effort;
    options.tokens = settings.tokens > 0 ? settings.tokens : effort_tokens(*effort, settings.context);
    options.context = settings.context;
    options.threads = settings.threads;
    options.seed = settings.seed;
    options.full = settings.full;
    options.device = settings.device;
    options.limits = {parse_memory(settings.memory), parse_memory(settings.device_memory), {}};
    return options;
}

AllocationRequest request_of(const std::string& size, double max_kld, const std::vector<std::string>& pins) {
    AllocationRequest request;
    if (size.empty() == !(max_kld > 0.0)) throw UsageError("give either a size or max_kld");
    if (max_kld > 0.0) {
        request.goal.kind = AllocationGoal::Kind::max_kld;
        request.goal.max_kld = max_kld;
        request.goal.text = "max_kld " + std::to_string(max_kld);
    } else {
        request.goal.size = parse_size(size);
        request.goal.text = "size " + size;
    }
    for (const auto& pin : pins) request.constraints.all.push_back(parse_rule(Constraint::Kind::pin, "pins", pin));
    return request;
}

std::string inspect(const fs::path& file) {
    const nb::gil_scoped_release release;
    return inspection(GgufFile::open(file)).dump();
}

std::string ablate(const Settings& settings, nb::object progress) {
    CallProgress report(std::move(progress));
    return call(report, [&] {
        Session session(run_options(settings), report);
        const auto summary = session.measure();
        return nlohmann::json{{"fast_measured", summary.fast_measured},
                              {"full_measured", summary.full_measured},
                              {"resumed", summary.resumed},
                              {"unmeasured", summary.unmeasured},
                              {"null_floor_kld", session.null_floor_kld()},
                              {"reference", session.reference_name()}}
            .dump();
    });
}

std::string recipe_for(const fs::path& model, const fs::path& journal, const std::string& size, double max_kld,
                       const std::vector<std::string>& pins) {
    const nb::gil_scoped_release release;
    const auto request = request_of(size, max_kld, pins);
    const auto measured = open_measured(model, journal);
    const auto solved = solve_goal(measured.source, measured.problem, request);
    return recipe_to_json(make_recipe(measured.source, measured.journal, solved));
}

std::uint64_t build(const fs::path& model, const std::string& recipe_json, const fs::path& output,
                    const std::optional<fs::path>& journal, const std::optional<fs::path>& imatrix, int threads,
                    bool overwrite, nb::object progress) {
    CallProgress report(std::move(progress));
    return call(report, [&] {
        const auto source = GgufFile::open(model);
        const auto recipe = recipe_from_json(recipe_json, "the recipe");
        std::optional<Imatrix> weights;
        if (imatrix)
            weights = read_imatrix(*imatrix);
        else if (journal)
            weights = imatrix_from_journal(Journal::open_existing(*journal));
        BuildOptions options;
        options.threads = threads;
        options.overwrite = overwrite;
        obey_recipe(recipe, model, imatrix.value_or(fs::path()), options, report);
        return build_gguf(source, recipe, weights ? &*weights : nullptr, output, options, report);
    });
}

std::string verify(const Settings& settings, const std::vector<fs::path>& files, nb::object progress) {
    CallProgress report(std::move(progress));
    return call(report, [&] {
        Session session(run_options(settings), report);
        return to_json(verify_files(session, files, report)).dump();
    });
}

std::string quantize(const Settings& settings, const fs::path& output, const std::string& size, double max_kld,
                     const std::vector<std::string>& pins, bool overwrite, const std::string& compare,
                     nb::object progress) {
    CallProgress report(std::move(progress));
    return call(report, [&] {
        if (compare != "auto" && compare != "all") throw UsageError("compare is \"auto\" or \"all\"");
        QuantizeOptions options;
        options.compare_all = compare == "all";
        options.request = request_of(size, max_kld, pins);
        options.output = output;
        options.overwrite = overwrite;
        const auto run = run_options(settings);
        auto lock = files_of_job(run, options).lock();
        options.lock = &*lock;
        Session session(run, report);
        return to_json(quantize_model(session, options, report)).dump();
    });
}

std::string damage(const fs::path& journal) {
    const nb::gil_scoped_release release;
    return damage_rows(Journal::open_existing(journal).measurements()).dump();
}

std::string identity(const fs::path& journal) {
    const nb::gil_scoped_release release;
    return nlohmann::json(Journal::open_existing(journal).identity().fields).dump();
}

/// One row for each measurement and window.
std::string windows(const fs::path& path) {
    const nb::gil_scoped_release release;
    auto rows = nlohmann::json::array();
    for (const auto& m : Journal::open_existing(path).measurements())
        for (std::size_t w = 0; w < m.windows(); ++w) {
            nlohmann::json row = {{"tensor", m.tensor}, {"type", m.type}, {"tier", tier_name(m.tier)}, {"window", w}};
            const auto add = [&](const char* name, const std::vector<double>& values) {
                if (w < values.size()) row[name] = values[w];
            };
            add("counts", m.counts);
            add("kld", m.kld);
            add("delta_nll", m.delta_nll);
            add("top1_agree", m.top1_agree);
            add("local_energy", m.local_energy);
            add("local_counts", m.local_counts);
            rows.push_back(std::move(row));
        }
    return rows.dump();
}

/// One row for each whole mix that was measured, with its mean figures.
std::string mixes(const fs::path& path) {
    const nb::gil_scoped_release release;
    const auto journal = Journal::open_existing(path);
    auto rows = nlohmann::json::array();
    for (const auto* part : {"measured", "selection", "test"})
        for (const auto& mix : journal.mixes(part)) {
            const auto kld = clustered_mean(mix.kld, mix.counts);
            auto types = nlohmann::json::object();
            for (const auto& [tensor, type] : mix.types) types[tensor] = type_name(type);
            rows.push_back({{"part", part},
                            {"kind", mix.kind},
                            {"kld", kld.mean},
                            {"kld_error", std::isfinite(kld.error) ? nlohmann::json(kld.error) : nlohmann::json()},
                            {"nll", clustered_mean(mix.nll, mix.counts).mean},
                            {"reference_nll", clustered_mean(mix.reference_nll, mix.counts).mean},
                            {"top1_agree", clustered_mean(mix.top1_agree, mix.counts).mean},
                            {"windows", mix.counts.size()},
                            {"types", std::move(types)}});
        }
    return rows.dump();
}

}  // namespace

}  // namespace cerebellum

NB_MODULE(_native, m) {
    using namespace nb::literals;
    using namespace cerebellum;
    silence_llama_log();
    m.attr("__version__") = CEREBELLUM_VERSION;
    m.attr("llama_version") = CEREBELLUM_LLAMA_VERSION;

    // The one that was registered last is asked first.
    const auto error = nb::exception<Error>(m, "Error");
    nb::exception<UsageError>(m, "UsageError", error);
    nb::exception<Interrupted>(m, "Interrupted", error);

    nb::class_<Settings>(m, "Settings")
        .def(nb::init<>())
        .def_rw("model", &Settings::model)
        .def_rw("journal", &Settings::journal)
        .def_rw("texts", &Settings::texts)
        .def_rw("domains", &Settings::domains)
        .def_rw("types", &Settings::types)
        .def_rw("tensors", &Settings::tensors)
        .def_rw("tokens", &Settings::tokens)
        .def_rw("effort", &Settings::effort)
        .def_rw("context", &Settings::context)
        .def_rw("threads", &Settings::threads)
        .def_rw("seed", &Settings::seed)
        .def_rw("full", &Settings::full)
        .def_rw("device", &Settings::device)
        .def_rw("memory", &Settings::memory)
        .def_rw("device_memory", &Settings::device_memory);

    m.def("inspect", &inspect, "file"_a);
    m.def("ablate", &ablate, "settings"_a, "progress"_a.none());
    m.def("allocate", &recipe_for, "model"_a, "journal"_a, "size"_a, "max_kld"_a, "pins"_a);
    m.def("build", &build, "model"_a, "recipe"_a, "output"_a, "journal"_a.none(), "imatrix"_a.none(), "threads"_a,
          "overwrite"_a, "progress"_a.none());
    m.def("verify", &verify, "settings"_a, "files"_a, "progress"_a.none());
    m.def("quantize", &quantize, "settings"_a, "output"_a, "size"_a, "max_kld"_a, "pins"_a, "overwrite"_a, "compare"_a,
          "progress"_a.none());
    m.def("damage", &damage, "journal"_a);
    m.def("identity", &identity, "journal"_a);
    m.def("windows", &windows, "journal"_a);
    m.def("mixes", &mixes, "journal"_a);
}
