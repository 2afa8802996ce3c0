#include "cerebellum/core/name_pattern.h"

#include <fmt/format.h>

#include <utility>
#include <vector>

#include "cerebellum/core/error.h"

namespace cerebellum {

namespace {

constexpr std::size_t longest = 1000;  // std::regex takes stack for each bracket
constexpr int most_repetitions = 3, most_optional = 4;

bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

/// Why a pattern is not tried; empty where it is. What is no regular expression is left to std::regex.
class Check {
  public:
    explicit Check(std::string_view pattern) : pattern_(pattern) {}

    std::string_view why_not() {
        if (pattern_.size() > longest) return "it has more than 1,000 characters";
        std::string_view reason;
        while (reason.empty() && at_ < pattern_.size()) reason = step();
        return reason;
    }

  private:
    std::string_view step() {
        const char c = pattern_[at_++];
        const bool behind_group = std::exchange(behind_group_, false);
        switch (c) {
            case '\\':
                if (at_ < pattern_.size() && is_digit(pattern_[at_])) return "it refers to a group";
                ++at_;
                return "";
            case '[':
                skip_set();
                return "";
            case '(':
                if (pattern_.substr(at_).starts_with('?')) at_ += 2;  // (?: (?= (?!
                many_ways_.push_back(false);
                return "";
            case ')':
                close_group();
                return "";
            case '|':
                many_ways_.back() = true;
                return "";
            case '?':
                many_ways_.back() = true;
                return ++optional_ > most_optional ? "it has more than 4 '?'" : "";
            case '*':
            case '+':
            case '{':
                many_ways_.back() = true;
                if (behind_group && closed_many_ways_) return "it repeats a group that has repetitions or alternatives";
                return ++repetitions_ > most_repetitions ? "it has more than 3 repetitions" : "";
            default:
                return "";
        }
    }

    void close_group() {
        closed_many_ways_ = many_ways_.size() > 1 && many_ways_.back();
        if (many_ways_.size() > 1) many_ways_.pop_back();
        if (closed_many_ways_) many_ways_.back() = true;
        behind_group_ = true;
    }

    void skip_set() {
        if (at_ < pattern_.size() && pattern_[at_] == '^') ++at_;
        for (; at_ < pattern_.size() && pattern_[at_] != ']'; ++at_)
            if (pattern_[at_] == '\\') ++at_;
        ++at_;
    }

    std::string_view pattern_;
    std::size_t at_ = 0;
    /// Of every open group, and of the one that was closed last: whether it has repetitions or alternatives, so that
    /// repeating it takes more than one way through the same text.
    std::vector<bool> many_ways_ = {false};
    bool closed_many_ways_ = false;
    bool behind_group_ = false;
    int repetitions_ = 0, optional_ = 0;
};

}  // namespace

std::regex name_pattern(std::string_view pattern) {
    if (const auto reason = Check(pattern).why_not(); !reason.empty())
        throw Error(fmt::format("'{}' is not taken as a pattern of names: {}", pattern.substr(0, 80), reason));
    try {
        return std::regex(pattern.begin(), pattern.end());
    } catch (const std::regex_error&) {
        throw Error(fmt::format("'{}' is no regular expression", pattern));
    }
}

}  // namespace cerebellum
