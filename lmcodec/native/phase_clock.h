// Where the time of coding a block goes, for measurements. Nothing that is coded depends on it.
#pragma once

#include <chrono>
#include <cstdint>

namespace lmcodec {

// What a loop over streams does, in the order of a round.
enum class Phase {
  kNetwork,  // the language model's steps
  kLookup,   // contexts' slots are found
  kSums,     // the language model's stretch of a decision
  kPredict,  // from slots and stretch to a probability
  kCoder,    // between the loop's calls: the decision is coded
  kUpdate,   // weights, maps and histories learn the bit
  kByte,     // the byte ends: text features, matches, the way through the trie
};
constexpr int kPhases = 7;

// Gives the time since the last mark to a phase. A mark takes some nanoseconds itself; what runs beside it hides a part.
class PhaseClock {
 public:
  using Steady = std::chrono::steady_clock;

  PhaseClock();
  // All phases are at zero.
  void begin();
  // What has passed since the last mark is nobody's.
  void resume();
  void mark(Phase phase);

  double seconds(Phase phase) const;
  // What its marks took at most: as much as they take with nothing beside them.
  double own_seconds(Phase phase) const;

 private:
  struct Spent {
    std::uint64_t ticks = 0, n_mark = 0;
  };

  const Spent& spent(Phase phase) const { return spent_[static_cast<int>(phase)]; }
  double seconds_per_tick() const;

  Spent spent_[kPhases];
  std::uint64_t last_ = 0;
  std::uint64_t first_;  // ticks when the clock was made,
  Steady::time_point made_;  // and the time then
  double mark_ticks_ = 0;
};

// Where nothing is measured there is no clock.
inline void mark(PhaseClock* clock, Phase phase) {
  if (clock) clock->mark(phase);
}

}  // namespace lmcodec
