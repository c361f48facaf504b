// What a clock found, as Python sees it.
#pragma once

#include <nanobind/nanobind.h>

#include "phase_clock.h"

namespace lmcodec {

// Values by the phase's name; empty without a clock.
template <typename Value>
nanobind::dict by_phase(const PhaseClock* clock, Value value) {
  constexpr const char* kNames[kPhases] = {"network", "lookup", "sums", "predict", "coder", "update", "byte"};
  nanobind::dict values;
  for (int i = 0; clock && i < kPhases; ++i) values[kNames[i]] = value(*clock, static_cast<Phase>(i));
  return values;
}

// Seconds of the last block.
inline nanobind::dict times_of(const PhaseClock* clock) {
  return by_phase(clock, [](const PhaseClock& c, Phase phase) { return c.seconds(phase); });
}

// How many of these the clock took itself, at most.
inline nanobind::dict clock_times_of(const PhaseClock* clock) {
  return by_phase(clock, [](const PhaseClock& c, Phase phase) { return c.own_seconds(phase); });
}

}  // namespace lmcodec
