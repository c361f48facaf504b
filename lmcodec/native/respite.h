// When a second thread is left alone: where the processors are busy with other programs, it has none when it is waited for.
#pragma once

#include <algorithm>
#include <chrono>

namespace lmcodec {

// Nothing is given to the other thread for kRest times as long as was lost by it, and for twice as long each time that
// this happens again soon after: a busy machine costs a sixteenth of the time at first, then next to nothing.
class Respite {
 public:
  using Clock = std::chrono::steady_clock;

  // So much was lost by waiting, or by asking in vain.
  void lost(Clock::duration time) { lost(time, Clock::now()); }
  void lost(Clock::duration time, Clock::time_point now) {
    factor_ = now - until_ < kSoon * length_ ? std::min(2 * factor_, kMostFactor) : 1;
    length_ = std::min<Clock::duration>(kRest * factor_ * time, kMost);
    until_ = now + length_;
    is_on_ = true;
  }

  bool is_on() {
    if (is_on_ && Clock::now() >= until_) is_on_ = false;
    return is_on_;
  }

 private:
  static constexpr int kRest = 16, kSoon = 4, kMostFactor = 64;
  static constexpr std::chrono::milliseconds kMost{2000};

  bool is_on_ = false;
  int factor_ = 1;
  Clock::duration length_{};
  Clock::time_point until_;
};

}  // namespace lmcodec
