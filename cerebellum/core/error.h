#pragma once

#include <stdexcept>
#include <string>

namespace cerebellum {

/// A problem of the user's input or environment. The message is one line: what failed, where, what to do about it.
/// Ends the program with exit code 1. Our own bugs are assertions, never this.
class Error : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

/// The command line or an argument is not usable as it stands. Exit code 2.
class UsageError : public Error {
  public:
    using Error::Error;
};

/// The model cannot be replayed in slices, or not exactly. It can still be measured, through whole files.
class NotReplayable : public Error {
  public:
    using Error::Error;
};

/// The user asked to stop. Everything finished so far is already durable.
class Interrupted : public Error {
  public:
    using Error::Error;
};

}  // namespace cerebellum
