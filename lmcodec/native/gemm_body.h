// Portable bodies of the network's inner loops, for any instruction set that has none of its own.
//
// Bounds. |activation| <= 127 (a byte 0 to 255), |w| <= 63, K <= 2096: sums stay below 255 * 63 * 2096 < 2^25.01, the
// folded bias below 2^24 + 128 * 63 * 2096 < 2^25.01, their true sum below 2^25; times a multiplier below 2^41.
//
// Where sums become floats K <= 65536 and the bias only undoes the offset: it is at most 128 * 63 * 65536 < 2^29, the
// sums of bytes at most 255 * 63 * 65536 < 2^30, so that no partial sum reaches 2^31 in size.
#pragma once

#include <cstdint>
#include <cstring>

#include "gemm.h"

#if defined(__GNUC__) || defined(__clang__)
#define LMCODEC_ALWAYS_INLINE inline __attribute__((always_inline))
#else
#define LMCODEC_ALWAYS_INLINE inline
#endif

#if defined(__clang__)
#define LMCODEC_UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define LMCODEC_UNROLL _Pragma("GCC unroll 16")
#else
#define LMCODEC_UNROLL
#endif

namespace lmcodec {
namespace body {

// Begins to fetch the line of an address, which need not be one's own, for some microseconds later.
LMCODEC_ALWAYS_INLINE void fetch(const void* address) {
#if defined(__GNUC__) || defined(__clang__)
  __builtin_prefetch(address, 0, 2);
#else
  static_cast<void>(address);
#endif
}

constexpr std::int32_t kActivationMax = 127;
constexpr std::int32_t kStreamMax = (1 << 23) - 1;
constexpr std::int64_t kNormEps = 17;
constexpr int kStateShift = 16;  // a state's sum is in steps of 2^-33
constexpr int kGateShift = 29;

LMCODEC_ALWAYS_INLINE std::int32_t clip(std::int32_t value, std::int32_t low, std::int32_t high) {
  value = value < low ? low : value;
  return value > high ? high : value;
}

LMCODEC_ALWAYS_INLINE std::int32_t rescale(std::int32_t value, std::int32_t multiplier, int shift) {
  return static_cast<std::int32_t>(
      (static_cast<std::int64_t>(value) * multiplier + (std::int64_t{1} << (shift - 1))) >> shift);
}

constexpr float kLargest = 1099511627776.0f;             // 2^40
constexpr float kSmallest = 8.673617379884035472e-19f;  // 2^-60
constexpr float kLogitMax = 4194304.0f;                  // 2^22

// Held within +-2^40; 0 where it is smaller than 2^-60.
LMCODEC_ALWAYS_INLINE float hold(float x) {
  x = x < -kLargest ? -kLargest : x > kLargest ? kLargest : x;
  return x < kSmallest && x > -kSmallest ? 0.0f : x;
}

// To the nearest integer, ties to even, |x| <= 2^23: by a sum whose last bit is worth 1.
LMCODEC_ALWAYS_INLINE std::int32_t nearest(float x) {
  constexpr float kUnits = 8388608.0f;  // 2^23
  return static_cast<std::int32_t>(x < 0 ? (x - kUnits) + kUnits : (x + kUnits) - kUnits);
}

LMCODEC_ALWAYS_INLINE void finish_floats(const std::int32_t* sums, int row, int panel, const PackedLinear& linear,
                                         const Finished& to) {
  const float* scale = linear.scale + panel * kPanel;
  const float* bias = linear.float_bias ? linear.float_bias + panel * kPanel : nullptr;
  const float row_scale = to.row_scale[row];
  const std::size_t at = static_cast<std::size_t>(row) * to.stride + static_cast<std::size_t>(panel * kPanel);
  float value[kPanel];
  for (int i = 0; i < kPanel; ++i) {
    const float y = (static_cast<float>(sums[i]) * scale[i]) * row_scale;
    value[i] = hold(bias ? y + bias[i] : y);
  }
  if (to.finish == Finish::kFloat) {
    std::memcpy(static_cast<float*>(to.out) + at, value, sizeof value);
  } else if (to.finish == Finish::kFloatAdd) {
    float* out = static_cast<float*>(to.out) + at;
    for (int i = 0; i < kPanel; ++i) out[i] = hold(out[i] + value[i]);
  } else {
    std::int32_t* out = static_cast<std::int32_t*>(to.out) + at;
    std::int32_t* max = to.max + row * kMaxLanes;
    const int n = linear.n - panel * kPanel < kPanel ? linear.n - panel * kPanel : kPanel;
    for (int i = 0; i < kPanel; ++i) {
      const float y = value[i] * to.logit_scale;
      out[i] = nearest(y < -kLogitMax ? -kLogitMax : y > kLogitMax ? kLogitMax : y);
    }
    for (int i = 0; i < n; ++i)
      if (out[i] > max[i % kMaxLanes]) max[i % kMaxLanes] = out[i];
  }
}

// Requantises the sums of one row and one panel, and puts them where they belong.
LMCODEC_ALWAYS_INLINE void finish(const std::int32_t* sums, int row, int panel, const PackedLinear& linear,
                                  const Finished& to) {
  if (makes_floats(to.finish)) {
    finish_floats(sums, row, panel, linear, to);
    return;
  }
  const std::int32_t* multiplier = linear.multiplier + panel * kPanel;
  const std::size_t at = static_cast<std::size_t>(row) * to.stride + static_cast<std::size_t>(panel * kPanel);
  std::int32_t value[kPanel];
  for (int i = 0; i < kPanel; ++i) value[i] = rescale(sums[i], multiplier[i], linear.shift);
  if (to.finish == Finish::kClip) {
    std::int8_t* out = static_cast<std::int8_t*>(to.out) + at;
    for (int i = 0; i < kPanel; ++i) out[i] = static_cast<std::int8_t>(clip(value[i], -kActivationMax, kActivationMax));
  } else if (to.finish == Finish::kRelu2) {
    std::uint8_t* out = static_cast<std::uint8_t*>(to.out) + at;
    for (int i = 0; i < kPanel; ++i) {
      const std::int32_t m = clip(value[i], 0, kActivationMax);
      out[i] = static_cast<std::uint8_t>((m * m + 64) >> 7);
    }
  } else if (to.finish == Finish::kAdd) {
    std::int32_t* out = static_cast<std::int32_t*>(to.out) + at;
    for (int i = 0; i < kPanel; ++i) out[i] = clip(out[i] + value[i], -kStreamMax, kStreamMax);
  } else {
    std::int32_t* out = static_cast<std::int32_t*>(to.out) + at;
    std::memcpy(out, value, sizeof value);
    std::int32_t* max = to.max + row * kMaxLanes;
    const int n = linear.n - panel * kPanel < kPanel ? linear.n - panel * kPanel : kPanel;
    for (int i = 0; i < n; ++i)
      if (value[i] > max[i % kMaxLanes]) max[i % kMaxLanes] = value[i];
  }
}

LMCODEC_ALWAYS_INLINE void embed(const std::int8_t* w, int n, std::int32_t multiplier, int shift, std::int32_t* x) {
  // |w * multiplier| < 2^22: from a shift of 24 on it rounds to 0.
  if (shift >= 24) {
    for (int i = 0; i < n; ++i) x[i] = 0;
    return;
  }
  const std::int32_t half = shift ? 1 << (shift - 1) : 0;
  for (int i = 0; i < n; ++i) x[i] = (w[i] * multiplier + half) >> shift;
}

struct NormFactor {
  std::int32_t factor;  // < 2^25
  int shift;            // 18 to 42
};

LMCODEC_ALWAYS_INLINE int bit_length(std::uint64_t value) {
#if defined(__GNUC__) || defined(__clang__)
  return 64 - __builtin_clzll(value);
#else
  int n = 0;
  for (; value; value >>= 1) ++n;
  return n;
#endif
}

// s: the sum of dim squares, each below 2^46.
LMCODEC_ALWAYS_INLINE NormFactor norm_factor(std::uint64_t s, int dim, const NetworkTables& tables) {
  s += static_cast<std::uint64_t>(kNormEps * dim);  // 2^8 < s < 2^58
  const int bits = bit_length(s);
  const int e = bits >= 31 ? (bits - 31) / 2 * 2 : -((32 - bits) / 2 * 2);  // the even number at most bits - 31
  const std::uint64_t m = e >= 0 ? s >> e : s << -e;                         // 2^30 <= m < 2^32
  const std::int64_t root = tables.rsqrt[(m >> 18) - 4096];
  return {static_cast<std::int32_t>((root * tables.norm_scale + 128) >> 8), 29 + e / 2};
}

template <int kOffset>
LMCODEC_ALWAYS_INLINE void normalise(const std::int32_t* x, int n, int dim, const NetworkTables& tables,
                                     std::uint8_t* out) {
  std::int64_t s = 0;
  for (int i = 0; i < n; ++i) s += static_cast<std::int64_t>(x[i]) * x[i];
  const NormFactor by = norm_factor(static_cast<std::uint64_t>(s), dim, tables);
  for (int i = 0; i < n; ++i)
    out[i] = static_cast<std::uint8_t>(clip(rescale(x[i], by.factor, by.shift), -kActivationMax, kActivationMax) + kOffset);
}

template <int kOffset>
LMCODEC_ALWAYS_INLINE void recur(const std::int8_t* z, const std::int8_t* v, const std::int8_t* o, int n,
                                 const NetworkTables& tables, std::int32_t* h, std::uint8_t* out) {
  for (int i = 0; i < n; ++i) {
    const std::int64_t a = tables.decay[z[i] + 127];
    const std::int64_t fresh = (std::int64_t{tables.input_scale[z[i] + 127]} + 1) * v[i] * 4096;
    h[i] = static_cast<std::int32_t>((a * h[i] + fresh + (1 << (kStateShift - 1))) >> kStateShift);
    const std::int32_t gated = rescale(h[i], tables.decay[o[i] + 127], kGateShift);
    out[i] = static_cast<std::uint8_t>(clip(gated, -kActivationMax, kActivationMax) + kOffset);
  }
}

LMCODEC_ALWAYS_INLINE void weigh(const std::int32_t* logits, const std::int32_t* max, int n,
                                 const NetworkTables& tables, std::uint32_t* freq, std::uint64_t* cum) {
  std::int32_t top = max[0];
  for (int i = 1; i < kMaxLanes; ++i) top = max[i] > top ? max[i] : top;
  std::uint64_t total = 0;
  const int n_block = (n + kPanel - 1) / kPanel;
  for (int b = 0; b < n_block; ++b) {
    cum[b] = total;
    std::uint32_t sum = 0;  // at most 64 * 2^25
    const int low = b * kPanel;
    const int high = n < low + kPanel ? n : low + kPanel;
    for (int i = low; i < high; ++i) {
      const std::uint32_t below = static_cast<std::uint32_t>(top - logits[i]);  // < 2^30
      const std::uint32_t value = tables.exp2_coarse[below >> 4 & 15] * tables.exp2_fine[below & 15] >> 7;
      const std::uint32_t shift = below >> 8 < 31 ? below >> 8 : 31;
      const std::uint32_t shifted = value >> shift;
      freq[i] = shifted ? shifted : 1;
      sum += freq[i];
    }
    for (int i = high; i < low + kPanel; ++i) freq[i] = 0;
    total += sum;
  }
  cum[n_block] = total;
}

LMCODEC_ALWAYS_INLINE std::uint32_t sum(const std::uint32_t* freq, int n) {
  std::uint32_t total = 0;
  for (int i = 0; i < n; ++i) total += freq[i];
  return total;
}

}  // namespace body
}  // namespace lmcodec
