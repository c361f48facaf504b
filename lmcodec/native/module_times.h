// What a clock found, as Python sees it.
#pragma once

#include <nanobind/nanobind.h>

#include "phase_clock.h"

namespace lmcodec {

// Seconds by the phase's name; empty without a clock. `clock` is what measuring took, which is in none of the phases.
inline nanobind::dict times_of(const PhaseClock* clock) {
  constexpr const char* kNames[kPhases] = {"network", "lookup", "sums", "predict", "coder", "update", "byte"};
  nanobind::dict times;
  if (!clock) return times;
  for (int i = 0; i < kPhases; ++i) times[kNames[i]] = clock->seconds(static_cast<Phase>(i));
  times["clock"] = clock->own_seconds();
  return times;
}

}  // namespace lmcodec
