#include "cerebellum/journal/merge.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <system_error>
#include <tuple>
#include <utility>
#include <vector>

#include "cerebellum/core/error.h"
#include "cerebellum/journal/journal.h"

namespace cerebellum {
namespace {

namespace fs = std::filesystem;

/// Whether the shorter list is how the longer one begins.
bool agree(const std::vector<double>& a, const std::vector<double>& b) {
    const auto n = static_cast<std::ptrdiff_t>(std::min(a.size(), b.size()));
    return std::equal(a.begin(), a.begin() + n, b.begin());
}

template <typename Row, std::size_t n>
bool agree(const Row& a, const Row& b, const std::vector<double> Row::*const (&columns)[n]) {
    return std::ranges::all_of(columns, [&](const auto column) {
        // A quantity that only one of them has is no beginning of the other.
        return (a.*column).empty() == (b.*column).empty() && agree(a.*column, b.*column);
    });
}

constexpr const std::vector<double> Measurement::*measurement_columns[] = {
    &Measurement::counts,     &Measurement::kld,          &Measurement::delta_nll,
    &Measurement::top1_agree, &Measurement::local_energy, &Measurement::local_counts};
constexpr const std::vector<double> MixMeasurement::*mix_columns[] = {
    &MixMeasurement::counts, &MixMeasurement::kld, &MixMeasurement::nll, &MixMeasurement::reference_nll,
    &MixMeasurement::top1_agree};

std::string describe(const Measurement& m) {
    return fmt::format("the {} measurement of {} as {}", tier_name(m.tier), m.tensor, m.type);
}
std::string describe(const MixMeasurement& m) {
    return fmt::format("the measurement of a mix ({}, {} tensors changed) on the part '{}' of the text", m.kind,
                       m.types.size(), m.part);
}

std::size_t windows(const Measurement& m) {
    return m.windows();
}
std::size_t windows(const MixMeasurement& m) {
    return m.counts.size();
}

/// What has been read so far and which of the journals it came from.
class Merged {
  public:
    MergedJournal add(const Journal& journal) {
        MergedJournal report;
        report.path = journal.path();
        paths_.push_back(journal.path());
        if (!identity_) identity_ = journal.identity();
        if (const auto differs = difference(journal.identity(), *identity_))
            refuse(0, fmt::format("the former was measured with {} = {}, the latter with {}; measure both with the "
                                  "same settings",
                                  differs->field, differs->first, differs->second));
        for (const auto& name : journal.artifact_names()) add_artifact(name, *journal.get_artifact(name));
        for (const auto& [key, value] : journal.meta()) meta_.try_emplace(key, value);
        for (auto& m : journal.measurements()) {
            const std::tuple key(m.tensor, m.type, m.tier);
            add(rows_, key, std::move(m), measurement_columns, report);
        }
        for (auto& figure : journal.unusable())
            unusable_.try_emplace({figure.tensor, figure.type}, Found<UnusableFigure>{figure, paths_.size() - 1, 0});
        for (auto& m : journal.mixes()) {
            const std::tuple key(m.part, m.types);
            add(mixes_, key, std::move(m), mix_columns, report);
        }
        return report;
    }

    const JournalIdentity& identity() const { return *identity_; }

    /// Writes what came from the journals but the first `there`.
    void write(Journal& output, std::size_t there) const {
        output.in_one_step([&] {
            for (const auto& [name, found] : artifacts_)
                if (found.from >= there) output.put_artifact(name, found.value);
            for (const auto& [key, value] : meta_) output.put_meta(key, value);
            for (const auto* row : in_order(rows_, there)) output.record(*row);
            for (const auto& [pair, found] : unusable_)
                if (found.from >= there) output.record(found.value);
            for (const auto* mix : in_order(mixes_, there)) output.record(*mix);
        });
    }

  private:
    template <typename Value>
    struct Found {
        Value value;
        std::size_t from = 0;   // of paths_
        std::size_t order = 0;  // in which it was found
    };
    template <typename Key, typename Value>
    using Rows = std::map<Key, Found<Value>>;

    template <typename Key, typename Value>
    static std::vector<const Value*> in_order(const Rows<Key, Value>& rows, std::size_t there) {
        std::vector<const Found<Value>*> found;
        for (const auto& [key, row] : rows)
            if (row.from >= there) found.push_back(&row);
        std::ranges::sort(found, {}, &Found<Value>::order);
        std::vector<const Value*> values;
        for (const auto* row : found) values.push_back(&row->value);
        return values;
    }

    /// The journal that was read last does not go with an earlier one.
    [[noreturn]] void refuse(std::size_t earlier, const std::string& why) const {
        throw Error(fmt::format("cannot merge {} with {}: {}", paths_.back().string(), paths_[earlier].string(), why));
    }

    void add_artifact(const std::string& name, std::string bytes) {
        const auto known = artifacts_.find(name);
        if (known == artifacts_.end())
            artifacts_.emplace(name, Found<std::string>{std::move(bytes), paths_.size() - 1, artifacts_.size()});
        else if (known->second.value != bytes)
            refuse(known->second.from,
                   fmt::format("their artifacts '{}' differ, so their figures stand on different things; begin all "
                               "shards with copies of one journal, made by 'ablate --prepare'",
                               name));
    }

    template <typename Key, typename Row, std::size_t n>
    void add(Rows<Key, Row>& rows, const Key& key, Row row, const std::vector<double> Row::*const (&columns)[n],
             MergedJournal& report) {
        const auto known = rows.find(key);
        if (known == rows.end()) {
            rows.emplace(key, Found<Row>{std::move(row), paths_.size() - 1, rows.size()});
            ++report.added;
            return;
        }
        if (!agree(known->second.value, row, columns))
            refuse(known->second.from,
                   fmt::format("{} differs; leave out the journal whose machine is not to be trusted", describe(row)));
        if (windows(row) > windows(known->second.value)) {
            known->second.value = std::move(row);
            known->second.from = paths_.size() - 1;
            ++report.extended;
        } else {
            ++report.duplicate;
        }
    }

    std::vector<fs::path> paths_;  // of the journals read so far
    std::optional<JournalIdentity> identity_;
    Rows<std::string, std::string> artifacts_;
    std::map<std::string, std::string> meta_;
    Rows<std::tuple<std::string, std::string, Tier>, Measurement> rows_;
    Rows<std::tuple<std::string, TypeMap>, MixMeasurement> mixes_;
    Rows<std::pair<std::string, std::string>, UnusableFigure> unusable_;
};

}  // namespace

std::vector<MergedJournal> merge_journals(const fs::path& output, std::span<const fs::path> inputs) {
    std::error_code ignored;
    const bool existed = fs::exists(output, ignored);
    Merged merged;
    if (existed) merged.add(Journal::open_existing(output));
    std::vector<MergedJournal> reports;
    for (const auto& input : inputs) {
        if (existed && fs::equivalent(input, output, ignored))
            throw Error(fmt::format("cannot merge {} with itself; name it once, in front", output.string()));
        reports.push_back(merged.add(Journal::open_existing(input)));
    }
    auto journal = Journal::open(output, merged.identity());
    try {
        merged.write(journal, existed ? 1 : 0);
    } catch (...) {
        // Nothing half-merged: a file that had to be made is not left behind without its figures.
        if (!existed) fs::remove(output, ignored);
        throw;
    }
    return reports;
}

}  // namespace cerebellum
