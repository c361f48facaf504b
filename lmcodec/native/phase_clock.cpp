#include "phase_clock.h"

#include <algorithm>

#if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
#include <x86intrin.h>
#define LMCODEC_TSC 1
#elif defined(_MSC_VER) && (defined(_M_X64) || defined(_M_IX86))
#include <intrin.h>
#define LMCODEC_TSC 1
#endif

namespace lmcodec {
namespace {

// The time stamp counter takes a third of what the steady clock does, and its rate is constant on every machine of the last
// fifteen years.
std::uint64_t ticks() {
#ifdef LMCODEC_TSC
  return __rdtsc();
#else
  return static_cast<std::uint64_t>(PhaseClock::Steady::now().time_since_epoch().count());
#endif
}

}  // namespace

PhaseClock::PhaseClock() : first_(ticks()), made_(Steady::now()) {
  constexpr int kBatches = 64, kMarks = 256;
  std::uint64_t least = ~std::uint64_t{0};
  for (int batch = 0; batch < kBatches; ++batch) {
    const std::uint64_t from = ticks();
    for (int i = 0; i < kMarks; ++i) mark(Phase::kNetwork);
    least = std::min(least, ticks() - from);
  }
  mark_ticks_ = static_cast<double>(least) / kMarks;
  begin();
}

void PhaseClock::begin() {
  for (Spent& spent : spent_) spent = Spent();
  resume();
}

void PhaseClock::resume() { last_ = ticks(); }

void PhaseClock::mark(Phase phase) {
  const std::uint64_t now = ticks();
  Spent& spent = spent_[static_cast<int>(phase)];
  spent.ticks += now - last_;
  ++spent.n_mark;
  last_ = now;
}

double PhaseClock::seconds_per_tick() const {
  const std::uint64_t passed = std::max<std::uint64_t>(ticks() - first_, 1);
  return std::chrono::duration<double>(Steady::now() - made_).count() / static_cast<double>(passed);
}

double PhaseClock::seconds(Phase phase) const { return static_cast<double>(spent(phase).ticks) * seconds_per_tick(); }

double PhaseClock::own_seconds(Phase phase) const {
  const double own = static_cast<double>(spent(phase).n_mark) * mark_ticks_;
  return std::min(own, static_cast<double>(spent(phase).ticks)) * seconds_per_tick();
}

}  // namespace lmcodec
