#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "cerebellum/calibrate/second_moments.h"
#include "cerebellum/journal/journal.h"

namespace cerebellum {

/// Second moments in a file beside the journal, of the same make: resumable, one writer at a time, refused where it is
/// of another identity. As large as the squares of the matrices' columns, halved, for every different input. The
/// functions throw as Journal's do.
class MomentFile final : public MomentSink {
  public:
    /// The file that belongs to a journal.
    static std::filesystem::path beside(const std::filesystem::path& journal);

    static MomentFile open(const std::filesystem::path& path, const JournalIdentity& identity);
    static MomentFile open_existing(const std::filesystem::path& path);

    /// Which weights there are moments for, or are to be.
    const std::map<std::string, InputMoments>& inputs() const { return inputs_; }
    void set_inputs(std::map<std::string, InputMoments> inputs);

    bool has(const std::string& input, std::int64_t matrix) const override;
    void put(const std::string& input, std::int64_t matrix, std::span<const float> lower_triangle) override;
    bool complete() const;

    /// The lower triangle for one matrix of a weight; empty where there is none.
    std::vector<float> read(const std::string& weight, std::int64_t matrix) const;
    /// SHA-256 over everything stored: what a recipe names as the moments it was made with. Needs complete().
    std::string digest() const;

  private:
    explicit MomentFile(Journal file);

    Journal file_;
    std::map<std::string, InputMoments> inputs_;
};

}  // namespace cerebellum
