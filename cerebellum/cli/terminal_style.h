#pragma once

#include "cerebellum/report/heat_map.h"

namespace cerebellum::cli {

/// Whether lines can be rewritten and coloured there: a terminal, and not TERM=dumb.
bool is_terminal(int descriptor);

/// Columns of the terminal; 80 where it does not say.
int columns_of(int descriptor);

/// How to draw on stdout: its width and colours where it is a terminal that has them, else 80 columns without colour.
/// NO_COLOR and TERM=dumb are obeyed.
TextStyle stdout_style();

}  // namespace cerebellum::cli
