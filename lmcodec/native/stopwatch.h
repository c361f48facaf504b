// Where the time of a session's steps goes, for measurements.
#pragma once

#include <chrono>

namespace lmcodec {

// Adds the time since the last mark to a total.
class Stopwatch {
 public:
  explicit Stopwatch(bool on) : on_(on) {
    if (on_) last_ = Clock::now();
  }
  void mark(double& total) {
    if (!on_) return;
    const Clock::time_point now = Clock::now();
    total += std::chrono::duration<double>(now - last_).count();
    last_ = now;
  }

 private:
  using Clock = std::chrono::steady_clock;
  const bool on_;
  Clock::time_point last_;
};

}  // namespace lmcodec
