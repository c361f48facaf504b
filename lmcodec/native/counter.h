// Adaptive counters: a probability of 22 bits above a count of 10. FORMAT.md section 5.2.
#pragma once

#include <cstdint>

#include "logistic.h"

namespace lmcodec {

constexpr std::uint32_t kCountMask = 1023;  // low bits of a counter: how often it was updated
constexpr std::int32_t kWeightMax = (1 << 19) - 1;  // of a mixer, Q16: +-8

struct Reciprocals {
  std::uint32_t of[kCountMask + 1];  // 65536 / (n + 1.5)
  Reciprocals() {
    for (std::uint32_t n = 0; n <= kCountMask; ++n) of[n] = 131072 / (2 * n + 3);
  }
};

inline const Reciprocals kReciprocals;

// Moves a counter towards the bit by 1 / (count + 1.5), the count at most limit.
inline void train_counter(std::uint32_t& counter, int bit, std::uint32_t limit) {
  const std::uint32_t n = counter & kCountMask;
  const std::int32_t p = static_cast<std::int32_t>(counter >> 10);
  const std::int32_t target = bit ? (1 << kProbabilityBits) - 1 : 0;
  // |target - p| < 2^22 and the reciprocal is < 2^16: the product needs 64 bits.
  const std::int32_t step =
      static_cast<std::int32_t>((static_cast<std::int64_t>(target - p) * kReciprocals.of[n]) >> 16);
  counter = static_cast<std::uint32_t>(p + step) << 10 | (n < limit ? n + 1 : limit);
}

}  // namespace lmcodec
