// Portable bodies of the mixer's inner loops, for any instruction set that has none of its own: the compiler turns them
// into that instruction set's vectors. They define the integers that every other version gives.
#pragma once

#include <cstdint>

#include "counter.h"
#include "hashing.h"
#include "mixing.h"

#if defined(__GNUC__) || defined(__clang__)
#define LMCODEC_BODY inline __attribute__((always_inline))
#else
#define LMCODEC_BODY inline
#endif

namespace lmcodec {
namespace body {

LMCODEC_BODY std::int32_t clamped_stretch(std::int32_t x) {
  return x > kStretchMax ? kStretchMax : x < -kStretchMax ? -kStretchMax : x;
}

LMCODEC_BODY std::int32_t clamped_weight(std::int32_t w) {
  return w > kWeightMax ? kWeightMax : w < -kWeightMax ? -kWeightMax : w;
}

// |w * x| < 2^19 * 3072 < 2^31; with n <= 256 the sum of 256 such products >> 8 stays below 2^31.
LMCODEC_BODY std::int32_t mix(const std::int32_t* x, int n, int n_set, const Logistic& logistic, Mixture& mixture) {
  std::int32_t sum = 0;
  for (int k = 0; k < n_set; ++k) {
    const std::int32_t* w = mixture.weights[k];
    std::int32_t total = 0;
    for (int i = 0; i < (n & ~15); ++i) total += (w[i] * x[i]) >> 8;
    const std::int32_t stretch = clamped_stretch(total >> 8);
    mixture.layer[k] = stretch;
    mixture.layer_p[k] = logistic.squash(stretch);
    sum += (mixture.final_weights[k] * stretch) >> 8;
  }
  const std::int32_t stretch = clamped_stretch(sum >> 8);
  mixture.p = logistic.squash(stretch);
  return stretch;
}

// |2^16 * bit - p| < 2^16, rate <= 64: an error is at most 2^18.
LMCODEC_BODY std::int32_t error(int bit, std::uint32_t p, int rate) {
  return ((bit << 16) - static_cast<std::int32_t>(p)) * rate >> 4;
}

// With |x| <= 3072 an error this small moves no weight.
constexpr std::int32_t kSmallError = 32767 / kStretchMax;

// |x * e| <= 3072 * 2^18 < 2^30.
LMCODEC_BODY void move_weights(const std::int32_t* __restrict x, std::int32_t e, std::int32_t* __restrict w, int n) {
  if (e <= kSmallError && e >= -kSmallError) return;
  for (int i = 0; i < n; ++i) w[i] = clamped_weight(w[i] + ((x[i] * e + 0x8000) >> 16));
}

LMCODEC_BODY void learn(const std::int32_t* x, int n, int n_set, int bit, int rate, int final_rate,
                        const Mixture& mixture) {
  for (int k = 0; k < n_set; ++k) move_weights(x, error(bit, mixture.layer_p[k], rate), mixture.weights[k], n & ~15);
  move_weights(mixture.layer, error(bit, mixture.p, final_rate), mixture.final_weights, kMixerSets);
}

LMCODEC_BODY void find_rows(const std::uint32_t* __restrict base, const RowRules& rules, std::uint32_t c0,
                            std::uint32_t n_bit, int n, std::uint32_t* __restrict offset) {
  for (int r = 0; r < (n & ~7); ++r)
    offset[r] = ((base[r] + c0 * rules.per_c0[r] + n_bit * rules.per_bit[r]) & rules.mask[r]) * rules.stride[r];
}

LMCODEC_BODY void mix_hashes(const std::uint32_t* __restrict hash, std::uint32_t added, int n,
                             std::uint32_t* __restrict mixed) {
  for (int i = 0; i < (n & ~15); ++i) mixed[i] = mix32(hash[i] + added);
}

}  // namespace body
}  // namespace lmcodec
