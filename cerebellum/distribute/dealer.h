#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <vector>

namespace cerebellum {

/// Who does what: deals pieces of work with estimated costs to workers as these ask for it, and deals anew what a
/// worker has been lost with or is overdue with. Pure bookkeeping, without messages and without a clock of its own;
/// times are seconds since any moment.
///
/// Pieces are dealt in their order, several at a time while there is much left and one at a time in the end (guided
/// self-scheduling: Polychronopoulos and Kuck, 1987).
class Dealer {
  public:
    /// `costs` in any unit, not negative. The order of the pieces should let the dearest come first.
    Dealer(std::vector<double> costs, std::size_t workers);

    struct Batch {
        std::size_t id = 0;
        std::vector<std::size_t> pieces;  // ascending
    };
    /// What a worker that has nothing to do should do; none where there is nothing for it at the moment. Ask again
    /// until done().
    std::optional<Batch> deal(std::size_t worker, double now_s);
    /// A worker has finished a batch. Whether it was the first to do so.
    bool finish(std::size_t batch, double now_s);
    /// A worker is gone: what it has not finished will be dealt to others.
    void lose(std::size_t worker);
    bool is_lost(std::size_t worker) const { return lost_[worker]; }
    /// Whether somebody has finished every piece.
    bool done() const { return finished_ == costs_.size(); }
    std::size_t workers_left() const;
    /// Costs of all finished pieces.
    double finished_cost() const { return finished_cost_; }

    /// A batch is overdue after this many times the time that it should take at the pace of all finished ones.
    static constexpr double overdue_factor = 4.0;
    static constexpr double overdue_least_s = 10.0;
    /// Most pieces of a batch.
    static constexpr std::size_t most_pieces = 16;

  private:
    struct Dealt {
        std::size_t worker = 0;
        std::vector<std::size_t> pieces;
        double cost = 0.0;
        double since_s = 0.0;
        bool open = true;
    };
    Batch hand_out(std::size_t worker, std::vector<std::size_t> pieces, double now_s);
    bool overdue(const Dealt& dealt, double now_s) const;

    std::vector<double> costs_;
    std::vector<bool> piece_done_;
    std::vector<std::size_t> waiting_;  // pieces that nobody has, ascending
    double waiting_cost_ = 0.0;
    std::vector<Dealt> dealt_;  // by batch
    std::vector<bool> lost_;    // by worker
    std::size_t finished_ = 0;
    double finished_cost_ = 0.0;
    double paced_cost_ = 0.0, paced_s_ = 0.0;  // of all finished batches
};

}  // namespace cerebellum
