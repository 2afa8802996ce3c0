#include "cerebellum/distribute/dealer.h"

#include <algorithm>
#include <cassert>
#include <numeric>
#include <utility>

namespace cerebellum {

namespace {

/// A batch takes at most one in so many shares of what is left, so that several follow and the last ones are small.
constexpr double shares = 3.0;

}  // namespace

Dealer::Dealer(std::vector<double> costs, std::size_t workers)
    : costs_(std::move(costs)), piece_done_(costs_.size(), false), waiting_(costs_.size()), lost_(workers, false) {
    assert(workers > 0);
    std::iota(waiting_.begin(), waiting_.end(), std::size_t{0});
    waiting_cost_ = std::accumulate(costs_.begin(), costs_.end(), 0.0);
}

Dealer::Batch Dealer::hand_out(std::size_t worker, std::vector<std::size_t> pieces, double now_s) {
    Dealt dealt;
    dealt.worker = worker;
    for (const auto piece : pieces) dealt.cost += costs_[piece];
    dealt.since_s = now_s;
    dealt.pieces = pieces;
    dealt_.push_back(std::move(dealt));
    return {dealt_.size() - 1, std::move(pieces)};
}

bool Dealer::overdue(const Dealt& dealt, double now_s) const {
    if (!(paced_cost_ > 0.0)) return false;  // nobody has finished anything yet: there is no pace
    const double expected_s = dealt.cost * paced_s_ / paced_cost_;
    return now_s - dealt.since_s > std::max(overdue_least_s, overdue_factor * expected_s);
}

std::optional<Dealer::Batch> Dealer::deal(std::size_t worker, double now_s) {
    if (lost_[worker] || done()) return std::nullopt;
    if (!waiting_.empty()) {
        const double most = waiting_cost_ / (shares * static_cast<double>(workers_left()));
        std::size_t n = 1;
        double cost = costs_[waiting_.front()];
        while (n < std::min(waiting_.size(), most_pieces) && cost + costs_[waiting_[n]] <= most)
            cost += costs_[waiting_[n++]];
        const auto end = waiting_.begin() + static_cast<std::ptrdiff_t>(n);
        std::vector<std::size_t> pieces(waiting_.begin(), end);
        waiting_.erase(waiting_.begin(), end);
        waiting_cost_ -= cost;
        return hand_out(worker, std::move(pieces), now_s);
    }
    // Everything is somebody's. What one of them is overdue with, another one does as well: the oldest first, and
    // nothing that was dealt anew a short time ago.
    for (const auto& dealt : dealt_) {
        if (!dealt.open || dealt.worker == worker || !overdue(dealt, now_s)) continue;
        std::vector<std::size_t> pieces;
        for (const auto piece : dealt.pieces) {
            const bool with_another = std::ranges::any_of(dealt_, [&](const Dealt& other) {
                return other.open && !overdue(other, now_s) && std::ranges::binary_search(other.pieces, piece);
            });
            if (!piece_done_[piece] && !with_another) pieces.push_back(piece);
        }
        if (!pieces.empty()) return hand_out(worker, std::move(pieces), now_s);
    }
    return std::nullopt;
}

bool Dealer::finish(std::size_t batch, double now_s) {
    auto& dealt = dealt_.at(batch);
    if (!std::exchange(dealt.open, false)) return false;
    paced_cost_ += dealt.cost;
    paced_s_ += now_s - dealt.since_s;
    bool first = false;
    for (const auto piece : dealt.pieces) {
        if (piece_done_[piece]) continue;
        piece_done_[piece] = first = true;
        ++finished_;
        finished_cost_ += costs_[piece];
        // Its first owner was thought lost and has brought it after all.
        if (const auto again = std::ranges::find(waiting_, piece); again != waiting_.end()) {
            waiting_.erase(again);
            waiting_cost_ -= costs_[piece];
        }
    }
    return first;
}

void Dealer::lose(std::size_t worker) {
    lost_[worker] = true;
    for (auto& dealt : dealt_) {
        if (!dealt.open || dealt.worker != worker) continue;
        dealt.open = false;
        for (const auto piece : dealt.pieces) {
            const bool with_another = std::ranges::any_of(dealt_, [&](const Dealt& other) {
                return other.open && std::ranges::binary_search(other.pieces, piece);
            });
            if (piece_done_[piece] || with_another || std::ranges::binary_search(waiting_, piece)) continue;
            waiting_.insert(std::ranges::lower_bound(waiting_, piece), piece);
            waiting_cost_ += costs_[piece];
        }
    }
}

std::size_t Dealer::workers_left() const {
    return static_cast<std::size_t>(std::ranges::count(lost_, false));
}

}  // namespace cerebellum
