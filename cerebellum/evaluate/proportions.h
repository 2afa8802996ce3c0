#pragma once

#include "cerebellum/core/stats.h"

namespace cerebellum {

/// Wilson's 95 % score interval of a proportion. [0, 1] without trials.
Interval wilson_interval(int successes, int trials);

/// McNemar's exact test of two answers to the same questions: only those count that exactly one of both got right,
/// `only_first` and `only_second` of them. Two-sided p-value: binomial with ½; 1 without such questions.
double mcnemar_p(int only_first, int only_second);

}  // namespace cerebellum
