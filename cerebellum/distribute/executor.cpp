#include "cerebellum/distribute/executor.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <thread>
#include <utility>

#include "cerebellum/core/error.h"
#include "cerebellum/core/json_text.h"
#include "cerebellum/core/quant_type.h"
#include "cerebellum/distribute/dealer.h"

namespace cerebellum {

namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

// What goes over the wire: CBOR, which keeps doubles as they are. Rank 0 says "work", "bytes" and "stop", the others
// "idle", "row", "unusable", "done" and "failed".

std::string pack(const json& message) {
    const auto bytes = json::to_cbor(message);
    return {bytes.begin(), bytes.end()};
}
json unpack(const std::string& bytes) {
    return parse_cbor(bytes, "a message of another rank");
}

json to_json(const Measurement& m) {
    return {m.tensor,    m.type,       tier_name(m.tier), m.counts,       m.kld,
            m.delta_nll, m.top1_agree, m.local_energy,    m.local_counts, m.wall_s};
}
Measurement measurement_from(const json& value) {
    Measurement m;
    value.at(0).get_to(m.tensor);
    value.at(1).get_to(m.type);
    m.tier = value.at(2) == tier_name(Tier::fast) ? Tier::fast : Tier::full;
    value.at(3).get_to(m.counts);
    value.at(4).get_to(m.kld);
    value.at(5).get_to(m.delta_nll);
    value.at(6).get_to(m.top1_agree);
    value.at(7).get_to(m.local_energy);
    value.at(8).get_to(m.local_counts);
    value.at(9).get_to(m.wall_s);
    return m;
}

json to_json(const UnusableFigure& figure) {
    return {figure.tensor, figure.type, tier_name(figure.tier), figure.reason};
}
UnusableFigure unusable_from(const json& value) {
    return {value.at(0).get<std::string>(), value.at(1).get<std::string>(),
            value.at(2) == tier_name(Tier::fast) ? Tier::fast : Tier::full, value.at(3).get<std::string>()};
}

json to_json(const TensorPlan& plan) {
    const auto names = [](const std::vector<Encoding>& types) {
        std::vector<std::string> result;
        for (const auto& type : types) result.push_back(type_name(type));
        return result;
    };
    return {plan.name, names(plan.types), names(plan.anchors), plan.anchor_stride, plan.windows, plan.full_windows};
}
TensorPlan plan_from(const json& value) {
    const auto types = [](const json& names) {
        std::vector<Encoding> result;
        for (const auto& name : names) result.push_back(parse_encoding(name.get<std::string>()).value());
        return result;
    };
    TensorPlan plan;
    value.at(0).get_to(plan.name);
    plan.types = types(value.at(1));
    plan.anchors = types(value.at(2));
    value.at(3).get_to(plan.anchor_stride);
    value.at(4).get_to(plan.windows);
    value.at(5).get_to(plan.full_windows);
    return plan;
}

json to_json(const SweepSummary& s) {
    return {s.fast_measured, s.full_measured, s.resumed,    s.tokens,  s.unmeasured,
            s.replay_flops,  s.replay_s,      s.quantize_s, s.unusable};
}
SweepSummary summary_from(const json& value) {
    SweepSummary s;
    value.at(0).get_to(s.fast_measured);
    value.at(1).get_to(s.full_measured);
    value.at(2).get_to(s.resumed);
    value.at(3).get_to(s.tokens);
    value.at(4).get_to(s.unmeasured);
    value.at(5).get_to(s.replay_flops);
    value.at(6).get_to(s.replay_s);
    value.at(7).get_to(s.quantize_s);
    value.at(8).get_to(s.unusable);
    return s;
}

using Send = std::function<void(const json&)>;

/// Figures on their way to rank 0.
class SentFigures final : public HeldFigures {
  public:
    explicit SentFigures(const Send& send) : send_(send) {}
    void record(const Measurement& measurement) override {
        const auto known = find(measurement.tensor, measurement.type, measurement.tier);
        const bool corrected = known && known->windows() >= measurement.windows();
        HeldFigures::record(measurement);
        send_({{"say", "row"}, {"row", to_json(measurement)}, {"corrected", corrected}});
    }
    void record_unusable(const UnusableFigure& figure) override {
        HeldFigures::record_unusable(figure);
        send_({{"say", "unusable"}, {"figure", to_json(figure)}});
    }

  private:
    const Send& send_;
};

/// Does what a "work" message asks for and says so.
void work(const json& order, const Trial& trial, Progress& progress, const Send& send) {
    SentFigures figures(send);
    for (const auto& row : order.at("known")) figures.HeldFigures::record(measurement_from(row));
    for (const auto& figure : order.at("unusable")) figures.HeldFigures::record_unusable(unusable_from(figure));
    std::vector<TensorPlan> plan;
    for (const auto& tensor : order.at("plan")) plan.push_back(plan_from(tensor));
    const auto summary = trial(plan, figures, progress);
    send({{"say", "done"}, {"round", order.at("round")}, {"batch", order.at("batch")}, {"summary", to_json(summary)}});
}

/// Passes messages for people on, but not how far a part of the work is.
class PartProgress : public Progress {
  public:
    explicit PartProgress(Progress& progress) : progress_(progress) {}
    void begin(std::string_view, double) override {}
    void advance(double, std::string_view) override {}
    void end() override {}
    void warn(std::string_view message) override { progress_.warn(message); }
    void info(std::string_view message) override { progress_.info(message); }
    void detail(std::string_view message) override { progress_.detail(message); }

  private:
    Progress& progress_;
};

/// Lets rank 0 interrupt the work.
class ServingProgress final : public PartProgress {
  public:
    ServingProgress(Group& group, Progress& progress) : PartProgress(progress), group_(group) {}
    void advance(double, std::string_view) override {
        // Whoever works is sent nothing but "stop".
        if (const auto message = group_.poll()) stop_requested = true;
    }

  private:
    Group& group_;
};

/// The worker of rank 0 in a thread of its own, spoken to by the same messages as the others.
class LocalWorker {
  public:
    LocalWorker(const Trial& trial, Progress& progress) : progress_(progress) {
        thread_ = std::thread([this, &trial] { run(trial); });
    }
    ~LocalWorker() {
        {
            const std::lock_guard lock(mutex_);
            leaving_ = true;
        }
        wake_.notify_one();
        // In the middle of a batch only where the round is broken off: then the work is to stop.
        const bool interrupt = working() && !Progress::stop_requested.exchange(true);
        thread_.join();
        if (interrupt) Progress::stop_requested = false;
    }

    void give(json order) {
        {
            const std::lock_guard lock(mutex_);
            order_ = std::move(order);
        }
        wake_.notify_one();
    }
    std::optional<json> hear() {
        const std::lock_guard lock(mutex_);
        if (said_.empty()) {
            if (failure_) std::rethrow_exception(failure_);
            return std::nullopt;
        }
        auto message = std::move(said_.front());
        said_.pop_front();
        return message;
    }

  private:
    bool working() {
        const std::lock_guard lock(mutex_);
        return working_;
    }
    void run(const Trial& trial) {
        const Send send = [this](const json& message) {
            const std::lock_guard lock(mutex_);
            said_.push_back(message);
        };
        try {
            while (true) {
                json order;
                {
                    std::unique_lock lock(mutex_);
                    wake_.wait(lock, [this] { return leaving_ || order_; });
                    if (leaving_) return;
                    order = std::move(*order_);
                    order_.reset();
                    working_ = true;
                }
                work(order, trial, progress_, send);
                const std::lock_guard lock(mutex_);
                working_ = false;
            }
        } catch (...) {
            const std::lock_guard lock(mutex_);
            working_ = false;
            failure_ = std::current_exception();
        }
    }

    PartProgress progress_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::optional<json> order_;
    std::deque<json> said_;
    std::exception_ptr failure_;
    bool working_ = false;
    bool leaving_ = false;
    std::thread thread_;
};

void rest() {
    // MPI's own waiting would keep a core busy.
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

/// Waits for what a rank is told next.
json next_message(Group& group, const Progress& progress) {
    while (true) {
        progress.check();
        if (const auto message = group.poll()) return unpack(message->bytes);
        rest();
    }
}

}  // namespace

/// One plan on its way through the group.
class GroupExecutor::Round {
  public:
    Round(GroupExecutor& executor, std::span<const WorkItem> items, const Trial& trial, FigureStore& figures,
          Progress& progress)
        : executor_(executor),
          group_(executor.group_),
          items_(items),
          figures_(figures),
          progress_(progress),
          dealer_(costs_of(items), static_cast<std::size_t>(executor.group_.size())),
          local_(trial, progress) {
        for (std::size_t rank = 1; rank < executor_.gave_up_.size(); ++rank)
            if (executor_.gave_up_[rank]) dealer_.lose(rank);
        executor_.idle_[0] = true;
    }

    SweepSummary run() {
        double total = 0.0;
        for (const auto& item : items_) total += item.cost;
        progress_.begin("measuring", total);
        while (!dealer_.done()) {
            progress_.check();
            bool quiet = true;
            while (const auto message = local_.hear()) {
                handle(0, *message);
                quiet = false;
            }
            while (const auto message = group_.poll()) {
                handle(static_cast<std::size_t>(message->from), unpack(message->bytes));
                quiet = false;
            }
            for (std::size_t rank = 0; rank < executor_.idle_.size(); ++rank)
                if (executor_.idle_[rank]) deal(rank);
            if (quiet) rest();
        }
        progress_.end();
        return summary_;
    }

  private:
    static std::vector<double> costs_of(std::span<const WorkItem> items) {
        std::vector<double> costs;
        for (const auto& item : items) costs.push_back(item.cost);
        return costs;
    }
    double now_s() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

    void deal(std::size_t rank) {
        const auto batch = dealer_.deal(rank, now_s());
        if (!batch) return;
        json order = {{"say", "work"},         {"round", executor_.rounds_}, {"batch", batch->id},
                      {"plan", json::array()}, {"known", json::array()},     {"unusable", json::array()}};
        for (const auto piece : batch->pieces) {
            if (!dealt_.emplace(piece).second)
                progress_.detail(fmt::format("{} is dealt once more, to rank {}", items_[piece].plan.name, rank));
            order["plan"].push_back(to_json(items_[piece].plan));
            for (const auto type : items_[piece].plan.types) {
                if (const auto known = figures_.find_unusable(items_[piece].plan.name, type_name(type)))
                    order["unusable"].push_back(to_json(*known));
                for (const auto tier : {Tier::fast, Tier::full})
                    if (const auto known = figures_.find(items_[piece].plan.name, type_name(type), tier))
                        order["known"].push_back(to_json(*known));
            }
        }
        executor_.idle_[rank] = false;
        if (rank == 0)
            local_.give(std::move(order));
        else if (!group_.send(static_cast<int>(rank), pack(order)))
            lose(rank, "it cannot be reached");
    }

    void handle(std::size_t rank, const json& message) {
        const auto& say = message.at("say").get_ref<const std::string&>();
        if (say == "row") {
            // Of two ranks that measured the same, the first one counts.
            const auto row = measurement_from(message.at("row"));
            const auto known = figures_.find(row.tensor, row.type, row.tier);
            if (!known || known->windows() < row.windows() || message.at("corrected").get<bool>()) figures_.record(row);
            return;
        }
        if (say == "unusable") {
            figures_.record_unusable(unusable_from(message.at("figure")));
            return;
        }
        if (say == "failed") {
            lose(rank, message.at("why"));
            return;
        }
        executor_.idle_[rank] = !executor_.gave_up_[rank];
        if (say != "done" || message.at("round") != executor_.rounds_) return;
        if (dealer_.finish(message.at("batch"), now_s())) add(summary_, summary_from(message.at("summary")));
        progress_.advance(dealer_.finished_cost(), fmt::format("rank {} has brought a part", rank));
    }

    void lose(std::size_t rank, const std::string& why) {
        executor_.gave_up_[rank] = true;
        executor_.idle_[rank] = false;
        dealer_.lose(rank);
        progress_.warn(fmt::format("rank {} gave up: {}; the others take over its work", rank, why));
    }

    GroupExecutor& executor_;
    Group& group_;
    std::span<const WorkItem> items_;
    FigureStore& figures_;
    Progress& progress_;
    Dealer dealer_;
    std::set<std::size_t> dealt_;
    SweepSummary summary_;
    Clock::time_point start_ = Clock::now();
    LocalWorker local_;
};

GroupExecutor::GroupExecutor(Group& group)
    : group_(group),
      idle_(static_cast<std::size_t>(group.size()), false),
      gave_up_(static_cast<std::size_t>(group.size()), false) {}

GroupExecutor::~GroupExecutor() {
    for (int rank = 1; rank < group_.size(); ++rank) group_.send(rank, pack({{"say", "stop"}}));
}

void GroupExecutor::hand_out(const std::string& bytes) {
    for (int rank = 1; rank < group_.size(); ++rank)
        group_.send(rank, pack({{"say", "bytes"}, {"bytes", json::binary({bytes.begin(), bytes.end()})}}));
}

SweepSummary GroupExecutor::measure(std::span<const WorkItem> items, const Trial& trial, FigureStore& figures,
                                    Progress& progress) {
    if (group_.size() == 1) return trial(plan_of(items), figures, progress);
    ++rounds_;
    return Round(*this, items, trial, figures, progress).run();
}

std::string receive(Group& group, const Progress& progress) {
    const auto content = next_message(group, progress);
    if (content.at("say") == "stop") throw Interrupted("rank 0 has ended the work");
    const auto& bytes = content.at("bytes").get_binary();
    return {bytes.begin(), bytes.end()};
}

void serve(Group& group, const Trial& trial, Progress& progress) {
    const Send send = [&](const json& message) { group.send(0, pack(message)); };
    ServingProgress serving(group, progress);
    send({{"say", "idle"}});
    while (true) {
        const auto order = next_message(group, progress);
        if (order.at("say") == "stop") return;
        work(order, trial, serving, send);
    }
}

void give_up(Group& group, const std::string& why) {
    group.send(0, pack({{"say", "failed"}, {"why", why}}));
    while (!Progress::stop_requested) {
        if (const auto message = group.poll())
            if (unpack(message->bytes).at("say") == "stop") return;
        rest();
    }
}

}  // namespace cerebellum
