// NEON, which every 64-bit ARM processor has: four lanes, four sets of weights at a time.
#include "mixing.h"

#if defined(__aarch64__) && (defined(__GNUC__) || defined(__clang__))

#include <arm_neon.h>

#include "mixing_body.h"

#define LMCODEC_NEON_INLINE inline __attribute__((always_inline))

namespace lmcodec {
namespace {

constexpr int kVector = 4;  // lanes

LMCODEC_NEON_INLINE int32x4_t clamped(int32x4_t v, std::int32_t most) {
  return vmaxq_s32(vminq_s32(v, vdupq_n_s32(most)), vdupq_n_s32(-most));
}

// Bounds as those of the portable code: a product is below 2^31, and so are the sums.
std::int32_t mix(const std::int32_t* x, int n, int n_set, const Logistic& logistic, Mixture& mixture) {
  constexpr std::int32_t kNumbers[kVector] = {0, 1, 2, 3};
  const int32x4_t number = vld1q_s32(kNumbers);
  int32x4_t sums = vdupq_n_s32(0);
  // Four sets share the inputs that are loaded. Where there are fewer, the last one is taken again and left out.
  for (int k = 0; k < n_set; k += kVector) {
    const int last = n_set - 1;
    const std::int32_t* w0 = mixture.weights[k];
    const std::int32_t* w1 = mixture.weights[k + 1 < last ? k + 1 : last];
    const std::int32_t* w2 = mixture.weights[k + 2 < last ? k + 2 : last];
    const std::int32_t* w3 = mixture.weights[k + 3 < last ? k + 3 : last];
    int32x4_t s0 = vdupq_n_s32(0), s1 = s0, s2 = s0, s3 = s0;
    for (int i = 0; i < (n & ~15); i += kVector) {
      const int32x4_t v = vld1q_s32(x + i);
      s0 = vsraq_n_s32(s0, vmulq_s32(v, vld1q_s32(w0 + i)), 8);
      s1 = vsraq_n_s32(s1, vmulq_s32(v, vld1q_s32(w1 + i)), 8);
      s2 = vsraq_n_s32(s2, vmulq_s32(v, vld1q_s32(w2 + i)), 8);
      s3 = vsraq_n_s32(s3, vmulq_s32(v, vld1q_s32(w3 + i)), 8);
    }
    const int32x4_t four = vpaddq_s32(vpaddq_s32(s0, s1), vpaddq_s32(s2, s3));
    const uint32x4_t there = vcltq_s32(number, vdupq_n_s32(n_set - k));
    const int32x4_t layer =
        vandq_s32(clamped(vshrq_n_s32(four, 8), kStretchMax), vreinterpretq_s32_u32(there));
    vst1q_s32(mixture.layer + k, layer);
    sums = vsraq_n_s32(sums, vmulq_s32(layer, vld1q_s32(mixture.final_weights + k)), 8);
  }
  const std::int32_t stretch = body::clamped_stretch(vaddvq_s32(sums) >> 8);
  mixture.p = logistic.squash(stretch);
  for (int k = 0; k < n_set; ++k) mixture.layer_p[k] = logistic.squash(mixture.layer[k]);
  return stretch;
}

// The shift rounds: it adds the 2^15. |x * e| < 2^30.
LMCODEC_NEON_INLINE void move_weights(const std::int32_t* x, std::int32_t e, std::int32_t* w, int n) {
  if (e <= body::kSmallError && e >= -body::kSmallError) return;
  for (int i = 0; i < n; i += kVector) {
    const int32x4_t moved = vrsraq_n_s32(vld1q_s32(w + i), vmulq_n_s32(vld1q_s32(x + i), e), 16);
    vst1q_s32(w + i, clamped(moved, kWeightMax));
  }
}

void learn(const std::int32_t* x, int n, int n_set, int bit, int rate, int final_rate, const Mixture& mixture) {
  for (int k = 0; k < n_set; ++k)
    move_weights(x, body::error(bit, mixture.layer_p[k], rate), mixture.weights[k], n & ~15);
  move_weights(mixture.layer, body::error(bit, mixture.p, final_rate), mixture.final_weights, kMixerSets);
}

void find_rows(const std::uint32_t* base, const RowRules& rules, std::uint32_t c0, std::uint32_t n_bit, int n,
               std::uint32_t* offset) {
  for (int r = 0; r < (n & ~7); r += kVector) {
    const uint32x4_t of_bits = vmlaq_n_u32(vld1q_u32(base + r), vld1q_u32(rules.per_c0 + r), c0);
    const uint32x4_t row = vmlaq_n_u32(of_bits, vld1q_u32(rules.per_bit + r), n_bit);
    vst1q_u32(offset + r, vmulq_u32(vandq_u32(row, vld1q_u32(rules.mask + r)), vld1q_u32(rules.stride + r)));
  }
}

// mix32() of four.
void mix_hashes(const std::uint32_t* hash, std::uint32_t added, int n, std::uint32_t* mixed) {
  for (int i = 0; i < (n & ~15); i += kVector) {
    uint32x4_t h = vaddq_u32(vld1q_u32(hash + i), vdupq_n_u32(added));
    h = vmulq_n_u32(veorq_u32(h, vshrq_n_u32(h, 15)), kMix32First);
    h = vmulq_n_u32(veorq_u32(h, vshrq_n_u32(h, 12)), kMix32Second);
    vst1q_u32(mixed + i, veorq_u32(h, vshrq_n_u32(h, 15)));
  }
}

LMCODEC_NEON_INLINE uint32x4_t four_at(std::uint32_t* const* at) {
  const uint32x4_t one = vld1q_lane_u32(at[0], vdupq_n_u32(0), 0), two = vld1q_lane_u32(at[1], one, 1);
  return vld1q_lane_u32(at[3], vld1q_lane_u32(at[2], two, 2), 3);
}

// The stretches of four counters.
LMCODEC_NEON_INLINE int32x4_t stretches_of(uint32x4_t counter, const std::int16_t* stretch) {
  const uint32x4_t place = vshrq_n_u32(counter, 20);
  int16x4_t four = vld1_dup_s16(stretch + vgetq_lane_u32(place, 0));
  four = vld1_lane_s16(stretch + vgetq_lane_u32(place, 1), four, 1);
  four = vld1_lane_s16(stretch + vgetq_lane_u32(place, 2), four, 2);
  four = vld1_lane_s16(stretch + vgetq_lane_u32(place, 3), four, 3);
  return vmovl_s16(four);
}

// 65536 / (count + 1.5) of four counts.
LMCODEC_NEON_INLINE uint32x4_t reciprocals_of(uint32x4_t count) {
  uint32x4_t four = vld1q_dup_u32(kReciprocals.of + vgetq_lane_u32(count, 0));
  four = vld1q_lane_u32(kReciprocals.of + vgetq_lane_u32(count, 1), four, 1);
  four = vld1q_lane_u32(kReciprocals.of + vgetq_lane_u32(count, 2), four, 2);
  return vld1q_lane_u32(kReciprocals.of + vgetq_lane_u32(count, 3), four, 3);
}

// -v where opposite is -1, v where it is 0.
LMCODEC_NEON_INLINE int32x4_t turned(int32x4_t v, int32x4_t opposite) {
  return vsubq_s32(veorq_s32(v, opposite), opposite);
}

void read_cells(const Cells& cells, const std::int16_t* stretch, std::uint32_t* value, std::int32_t* x) {
  const int32x4_t half = vdupq_n_s32(static_cast<std::int32_t>(kHalf22));
  for (int i = 0; i < cells.n; i += kVector) {
    const uint32x4_t counter = four_at(cells.at + i);
    vst1q_u32(value + i, counter);
    const int32x4_t opposite = vld1q_s32(cells.opposite + i);
    const int32x4_t p = vreinterpretq_s32_u32(vshrq_n_u32(counter, 10));
    int32x4x2_t inputs;
    inputs.val[0] = turned(stretches_of(counter, stretch), opposite);
    inputs.val[1] = turned(vshrq_n_s32(vsubq_s32(p, half), 11), opposite);
    if (i + kVector <= cells.n) {
      vst2q_s32(x + 2 * i, inputs);
    } else {
      std::int32_t last[2 * kVector];
      vst2q_s32(last, inputs);
      for (int k = 0; k < 2 * (cells.n - i); ++k) x[2 * i + k] = last[k];
    }
  }
}

// A counter's step is (target - p) * reciprocal >> 16, whose products need 64 bits.
void train_cells(const Cells& cells, const std::uint32_t* value, int bit) {
  const int32x4_t ones = vdupq_n_s32(-bit), most = vdupq_n_s32((1 << kProbabilityBits) - 1);
  for (int i = 0; i < cells.n; i += kVector) {
    const uint32x4_t counter = value ? vld1q_u32(value + i) : four_at(cells.at + i);
    const int32x4_t target = vandq_s32(veorq_s32(ones, vld1q_s32(cells.opposite + i)), most);
    const uint32x4_t count = vandq_u32(counter, vdupq_n_u32(kCountMask));
    const int32x4_t p = vreinterpretq_s32_u32(vshrq_n_u32(counter, 10)), difference = vsubq_s32(target, p);
    const int32x4_t rate = vreinterpretq_s32_u32(reciprocals_of(count));
    const int32x2_t low = vshrn_n_s64(vmull_s32(vget_low_s32(difference), vget_low_s32(rate)), 16);
    const int32x2_t high = vshrn_n_s64(vmull_s32(vget_high_s32(difference), vget_high_s32(rate)), 16);
    const uint32x4_t moved = vreinterpretq_u32_s32(vaddq_s32(p, vcombine_s32(low, high)));
    const uint32x4_t counted = vminq_u32(vaddq_u32(count, vdupq_n_u32(1)), vld1q_u32(cells.limit + i));
    const uint32x4_t learned = vorrq_u32(vshlq_n_u32(moved, 10), counted);
    const std::uint32_t learns_of[kVector] = {cells.learns[i], cells.learns[i + 1], cells.learns[i + 2],
                                              cells.learns[i + 3]};
    const uint32x4_t learns = vld1q_u32(learns_of);
    const uint32x4_t after = vbslq_u32(vtstq_u32(learns, learns), learned, counter);
    vst1q_lane_u32(cells.at[i], after, 0);
    vst1q_lane_u32(cells.at[i + 1], after, 1);
    vst1q_lane_u32(cells.at[i + 2], after, 2);
    vst1q_lane_u32(cells.at[i + 3], after, 3);
  }
}

}  // namespace

int add_neon_mixing(MixingKernels* kernels) {
  *kernels = {"neon", mix, learn, find_rows, mix_hashes, read_cells, train_cells};
  return 1;
}

}  // namespace lmcodec

#else

namespace lmcodec {
int add_neon_mixing(MixingKernels*) { return 0; }
}  // namespace lmcodec

#endif
