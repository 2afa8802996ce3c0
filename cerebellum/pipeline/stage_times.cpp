#include "cerebellum/pipeline/stage_times.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace cerebellum {

namespace {

struct Part {
    const char* name;
    std::optional<double> StageTime::*seconds;
};
constexpr Part parts[] = {{"quantize_s", &StageTime::quantize_s},
                          {"device_busy_s", &StageTime::device_busy_s},
                          {"waiting_s", &StageTime::waiting_s},
                          {"measured_before_s", &StageTime::measured_before_s}};

}  // namespace

StageTime& StageTimes::stage(std::string_view name) {
    const auto known = std::ranges::find(stages_, name, &StageTime::name);
    if (known != stages_.end()) return *known;
    StageTime added;
    added.name = name;
    return stages_.emplace_back(std::move(added));
}

void StageTimes::stop_clock() {
    const auto now = now_();
    if (!open_.empty()) stages_[open_.back()].wall_s += std::chrono::duration<double>(now - since_).count();
    since_ = now;
}

void StageTimes::begin(std::string_view name) {
    stop_clock();
    open_.push_back(static_cast<std::size_t>(&stage(name) - stages_.data()));
    if (on_begin) on_begin(name);
}

void StageTimes::end() {
    stop_clock();
    if (!open_.empty()) open_.pop_back();
}

std::vector<StageTime> StageTimes::stages() const {
    auto copy = *this;
    copy.stop_clock();
    return copy.stages_;
}

nlohmann::json to_json(const std::vector<StageTime>& stages) {
    auto list = nlohmann::json::array();
    for (const auto& stage : stages) {
        auto& entry = list.emplace_back(nlohmann::json{{"name", stage.name}, {"wall_s", stage.wall_s}});
        for (const auto& part : parts)
            if (stage.*part.seconds) entry[part.name] = *(stage.*part.seconds);
    }
    return list;
}

std::string describe(const std::vector<StageTime>& stages) {
    std::string text;
    for (const auto& stage : stages) {
        text += fmt::format("{}{}: {:.1f} s", text.empty() ? "" : "\n", stage.name, stage.wall_s);
        if (stage.quantize_s) text += fmt::format(", quantizing {:.1f} s", *stage.quantize_s);
        if (stage.device_busy_s) text += fmt::format(", replaying {:.1f} s", *stage.device_busy_s);
        if (stage.waiting_s) text += fmt::format(", the device waiting {:.1f} s", *stage.waiting_s);
        if (stage.measured_before_s) text += fmt::format("; {:.1f} s in earlier runs", *stage.measured_before_s);
    }
    return text;
}

}  // namespace cerebellum
