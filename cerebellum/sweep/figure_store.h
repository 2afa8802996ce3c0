#pragma once

#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <utility>

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
    /// Of a tensor's type, in either tier.
    virtual std::optional<UnusableFigure> find_unusable(const std::string& tensor, const std::string& type) const = 0;
    virtual void record_unusable(const UnusableFigure& figure) = 0;
};

/// A journal's. It must outlive this.
class JournalFigures final : public FigureStore {
  public:
    explicit JournalFigures(Journal& journal) : journal_(&journal) {}
    std::optional<Measurement> find(const std::string& tensor, const std::string& type, Tier tier) const override {
        return journal_->find(tensor, type, tier);
    }
    void record(const Measurement& measurement) override { journal_->record(measurement); }
    std::optional<UnusableFigure> find_unusable(const std::string& tensor, const std::string& type) const override {
        return journal_->find_unusable(tensor, type);
    }
    void record_unusable(const UnusableFigure& figure) override { journal_->record(figure); }

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
    std::optional<UnusableFigure> find_unusable(const std::string& tensor, const std::string& type) const override {
        const auto found = unusable_.find({tensor, type});
        return found == unusable_.end() ? std::nullopt : std::optional(found->second);
    }
    void record_unusable(const UnusableFigure& figure) override { unusable_[{figure.tensor, figure.type}] = figure; }

  private:
    std::map<std::tuple<std::string, std::string, Tier>, Measurement> rows_;
    std::map<std::pair<std::string, std::string>, UnusableFigure> unusable_;
};

}  // namespace cerebellum
