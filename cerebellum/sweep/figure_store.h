#pragma once

#include <map>
#include <optional>
#include <string>
#include <tuple>

#include "cerebellum/journal/journal.h"

namespace cerebellum {

/// Where what measures looks for what is known already, and puts what it finds: a journal, or the way to a process that
/// has one.
class FigureStore {
  public:
    virtual ~FigureStore() = default;
    virtual std::optional<Measurement> find(const std::string& tensor, const std::string& type, Tier tier) const = 0;
    /// In the place of an earlier one of the same tensor, type and tier.
    virtual void record(const Measurement& measurement) = 0;
};

/// A journal's. It must outlive this.
class JournalFigures final : public FigureStore {
  public:
    explicit JournalFigures(Journal& journal) : journal_(&journal) {}
    std::optional<Measurement> find(const std::string& tensor, const std::string& type, Tier tier) const override {
        return journal_->find(tensor, type, tier);
    }
    void record(const Measurement& measurement) override { journal_->record(measurement); }

  private:
    Journal* journal_;
};

/// Held in memory, for processes without a journal.
class HeldFigures : public FigureStore {
  public:
    std::optional<Measurement> find(const std::string& tensor, const std::string& type, Tier tier) const override {
        const auto found = rows_.find({tensor, type, tier});
        return found == rows_.end() ? std::nullopt : std::optional(found->second);
    }
    void record(const Measurement& measurement) override {
        rows_[{measurement.tensor, measurement.type, measurement.tier}] = measurement;
    }

  private:
    std::map<std::tuple<std::string, std::string, Tier>, Measurement> rows_;
};

}  // namespace cerebellum
