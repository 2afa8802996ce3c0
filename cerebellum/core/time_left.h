#pragma once

#include <optional>
#include <string>

namespace cerebellum {

/// How long a stage will still take, from the share of its work that is done. A new one for each stage.
class TimeLeft {
  public:
    /// `elapsed_s` since the stage began, never less than at the last call; `share` of the work, up to 1. Seconds left;
    /// none as long as too little is done to tell.
    std::optional<double> update(double elapsed_s, double share);

  private:
    std::optional<double> left_s_;  // as it was said last
    double at_s_ = 0.0;
};

/// "3 min 20 s".
std::string format_seconds(double seconds);
/// The same of what is left: never more than anybody would wait for.
std::string format_left(double seconds);

}  // namespace cerebellum
