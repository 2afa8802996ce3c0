#pragma once

#include "cerebellum/core/error.h"

namespace cerebellum {

/// One figure cannot be had: the tensor cannot be stored in that type, or the device could not compute with it. Others
/// can, so that whoever wants many goes on without this one.
class FigureError : public Error {
  public:
    using Error::Error;
};

}  // namespace cerebellum
