#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cerebellum/core/recipe.h"

namespace cerebellum {

/// What a journal's figures depend on: model fingerprint, hash of the text, context length, seed, versions ... Figures
/// of different identities must not meet in one journal.
struct JournalIdentity {
    std::map<std::string, std::string> fields;
    bool operator==(const JournalIdentity&) const = default;
};

/// A field in which two identities differ; the values as text for a message: in quotes, or "nothing".
struct IdentityDifference {
    std::string field, first, second;
};
std::optional<IdentityDifference> difference(const JournalIdentity& first, const JournalIdentity& second);

/// fast: damage seen at the layer's output, times a gain; full: a replay to the end of the model.
enum class Tier { fast, full };

/// "fast" or "full".
std::string_view tier_name(Tier tier);

/// The measured damage of one tensor in one type. Vectors hold one entry per window of text (sums over the window's
/// scored positions) or are empty where the quantity was not measured.
struct Measurement {
    std::string tensor;
    std::string type;
    Tier tier = Tier::full;
    std::vector<double> counts;        ///< scored positions
    std::vector<double> kld;           ///< Kullback-Leibler divergence from the reference, nats
    std::vector<double> delta_nll;     ///< negative log-likelihood minus the reference's, nats
    std::vector<double> top1_agree;    ///< positions whose likeliest token is the reference's
    std::vector<double> local_energy;  ///< Σ over tokens of ‖h′ − h‖² / ‖h‖² at the layer's output
    std::vector<double> local_counts;  ///< tokens in local_energy
    double wall_s = 0.0;

    /// How many windows it was measured on.
    std::size_t windows() const { return tier == Tier::fast ? local_counts.size() : counts.size(); }

    bool operator==(const Measurement&) const = default;
};

/// Whether all of its figures are numbers.
bool is_finite(const Measurement& measurement);

/// A figure that could not be had in any way that was tried, and why: one line.
struct UnusableFigure {
    std::string tensor;
    std::string type;
    Tier tier = Tier::full;
    std::string reason;

    bool operator==(const UnusableFigure&) const = default;
};

/// Adds what was measured on further windows to a measurement of the same tensor, type and tier.
void extend(Measurement& measurement, const Measurement& by);

/// What a whole mix of types does on a part of the text. The vectors hold one entry per window, sums over its scored
/// positions.
struct MixMeasurement {
    TypeMap types;               ///< tensors that differ from the source; all others keep their type
    std::string part;            ///< of the text: "measured", "search", "confirm", "selection" or "test"
    std::string kind;            ///< why it was measured: "recipe", "contender", "interaction", "trial", "search"
    std::vector<double> counts;  ///< scored positions
    std::vector<double> kld;     ///< Kullback-Leibler divergence from the reference, nats
    std::vector<double> nll;     ///< negative log-likelihood, nats
    std::vector<double> reference_nll;  ///< of the reference, nats
    std::vector<double> top1_agree;     ///< positions whose likeliest token is the reference's
    double wall_s = 0.0;

    bool operator==(const MixMeasurement&) const = default;
};

/// Adds what was measured on further windows to a mix's measurement.
void extend(MixMeasurement& mix, const MixMeasurement& by);

/// Measurements in an SQLite file, keyed by (tensor, type, tier), and those of whole mixes, by (part, types). Each call
/// that writes is durable when it returns: not only kill -9 but also a power cut afterwards loses nothing of it
/// (write-ahead log with synchronous=FULL: one fsync per call, a few milliseconds, against measurements that take far
/// longer).
///
/// One process writes at a time, held by a lock on `<path>.lock`; readers may look in meanwhile. The lock goes with
/// the process, however it ends. Use one object from one thread at a time, and do not carry it across fork().
///
/// Every function throws Error (one line: what, which file, what to do) where the file cannot be read or written, is
/// damaged, is no journal, or was written by a newer Cerebellum.
class Journal {
  public:
    /// Opens for writing; creates the file where there is none. A journal of another identity is refused with an Error
    /// that names the differing field and both values.
    static Journal open(const std::filesystem::path& path, const JournalIdentity& identity);
    /// Opens for reading only; the writing functions throw. Works while another process is writing.
    static Journal open_existing(const std::filesystem::path& path);

    Journal(Journal&&) noexcept;
    Journal& operator=(Journal&&) noexcept;
    ~Journal();

    const std::filesystem::path& path() const;
    const JournalIdentity& identity() const;

    /// Stores a measurement, in the place of an earlier one of the same tensor, type and tier. Throws Error where a
    /// figure of it is no number.
    void record(const Measurement& measurement);
    /// `check` is called before every figure that is recorded; what it throws keeps the figure out.
    void check_before_recording(std::function<void()> check);
    bool has(std::string_view tensor, std::string_view type, Tier tier) const {
        return find(tensor, type, tier).has_value();
    }
    /// None where it holds figures that are no numbers, which early versions stored.
    std::optional<Measurement> find(std::string_view tensor, std::string_view type, Tier tier) const;
    /// All that can be used, sorted by tensor, type and tier (fast before full): numbers, and not of a tensor's type
    /// one of whose figures is unusable.
    std::vector<Measurement> measurements() const;

    /// Stores that a figure is unusable, in the place of an earlier reason.
    void record(const UnusableFigure& figure);
    /// Of a tensor's type, in either tier.
    std::optional<UnusableFigure> find_unusable(std::string_view tensor, std::string_view type) const;
    /// All of them, sorted by tensor, type and tier (fast before full).
    std::vector<UnusableFigure> unusable() const;
    /// What measurements() leaves out because it is no number, though nothing says why: to be measured again.
    std::vector<UnusableFigure> not_numbers() const;

    /// Does several writes as one: they are all there afterwards, durably, or, where one fails, none. Not to be nested.
    void in_one_step(const std::function<void()>& writes);

    /// Stores a mix's measurement, in the place of an earlier one of the same part and types.
    void record(const MixMeasurement& measurement);
    std::optional<MixMeasurement> find_mix(std::string_view part, const TypeMap& types) const;
    /// All of a part, in the order in which they were recorded.
    std::vector<MixMeasurement> mixes(std::string_view part) const;
    /// Of all parts, likewise.
    std::vector<MixMeasurement> mixes() const;

    /// Named byte strings that go with the measurements (tokens, importance matrix, ...); at most 1 GB each.
    void put_artifact(std::string_view name, std::string_view bytes);
    std::optional<std::string> get_artifact(std::string_view name) const;
    std::vector<std::string> artifact_names() const;

    /// Named remarks (when, where, with which settings) that are not part of the identity.
    void put_meta(std::string_view key, std::string_view value);
    std::optional<std::string> get_meta(std::string_view key) const;
    std::map<std::string, std::string> meta() const;

  private:
    struct State;
    explicit Journal(std::unique_ptr<State> state);
    std::unique_ptr<State> state_;
};

}  // namespace cerebellum
