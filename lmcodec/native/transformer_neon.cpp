// NEON with the dot product: the transformer's inner loops, 4 floats at a time.
#include "gemm_body.h"
#include "transformer_kernels.h"

#if defined(__aarch64__) && (defined(__ARM_FEATURE_DOTPROD) || ((defined(__linux__) || defined(__APPLE__)) && defined(__GNUC__)))

#include <arm_neon.h>

#if defined(__ARM_FEATURE_DOTPROD)
#define LMCODEC_DOTPROD
#elif defined(__clang__)
#define LMCODEC_DOTPROD __attribute__((target("dotprod")))
#else
#define LMCODEC_DOTPROD __attribute__((target("arch=armv8.2-a+dotprod")))
#endif
#define LMCODEC_BODY LMCODEC_DOTPROD inline
#define LMCODEC_LANE LMCODEC_DOTPROD LMCODEC_ALWAYS_INLINE

namespace lmcodec {
namespace {

using F = float32x4_t;
using I = int32x4_t;
constexpr int kLanes = 4;
constexpr int kQueryOffset = 0;

LMCODEC_LANE F load(const float* from) { return vld1q_f32(from); }
LMCODEC_LANE I load(const std::int32_t* from) { return vld1q_s32(from); }
LMCODEC_LANE void store(float* to, F v) { vst1q_f32(to, v); }
LMCODEC_LANE void store(std::int32_t* to, I v) { vst1q_s32(to, v); }
LMCODEC_LANE F set(float v) { return vdupq_n_f32(v); }
LMCODEC_LANE I set(std::int32_t v) { return vdupq_n_s32(v); }
LMCODEC_LANE F add(F a, F b) { return vaddq_f32(a, b); }
LMCODEC_LANE F sub(F a, F b) { return vsubq_f32(a, b); }
LMCODEC_LANE F mul(F a, F b) { return vmulq_f32(a, b); }
LMCODEC_LANE F div(F a, F b) { return vdivq_f32(a, b); }
LMCODEC_LANE F smaller(F a, F b) { return vminq_f32(a, b); }
LMCODEC_LANE F larger(F a, F b) { return vmaxq_f32(a, b); }
LMCODEC_LANE F magnitude(F v) { return vabsq_f32(v); }
LMCODEC_LANE F zero_below(F v, float least) {
  return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(v), vcageq_f32(v, set(least))));
}
LMCODEC_LANE F where_negative(F x, F yes, F no) { return vbslq_f32(vcltzq_f32(x), yes, no); }
LMCODEC_LANE I nearest(F v) { return vcvtnq_s32_f32(v); }
LMCODEC_LANE F to_float(I v) { return vcvtq_f32_s32(v); }
LMCODEC_LANE F power_of_two(I n) { return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, set(127)), 23)); }
LMCODEC_LANE float square_root(float v) { return vget_lane_f32(vsqrt_f32(vdup_n_f32(v)), 0); }
LMCODEC_LANE float reduce_max(F v) { return vmaxvq_f32(v); }
LMCODEC_LANE std::int32_t reduce_max(I v) { return vmaxvq_s32(v); }
LMCODEC_LANE std::int64_t reduce_add(I v) { return vaddlvq_s32(v); }
// The upper half is added to the lower one until one lane is left.
LMCODEC_LANE float fold(F v) {
  const float32x2_t half = vadd_f32(vget_low_f32(v), vget_high_f32(v));
  return vget_lane_f32(half, 0) + vget_lane_f32(half, 1);
}
// Pairs (a, b) that are 1, 2, ... n / 2 lanes apart become (a + b, a - b).
LMCODEC_LANE F butterflies(F v, int n) {
  const uint32x4_t odd = {0, ~0u, 0, ~0u}, upper = {0, 0, ~0u, ~0u};
  F other = vrev64q_f32(v);
  v = vbslq_f32(odd, sub(other, v), add(other, v));
  if (n < 4) return v;
  other = vextq_f32(v, v, 2);
  return vbslq_f32(upper, sub(other, v), add(other, v));
}
// The lowest bytes of the lanes.
LMCODEC_LANE void store_low_byte(std::uint8_t* to, I v) {
  const uint16x4_t words = vmovn_u32(vreinterpretq_u32_s32(v));
  const std::uint32_t four = vget_lane_u32(vreinterpret_u32_u8(vmovn_u16(vcombine_u16(words, words))), 0);
  std::memcpy(to, &four, sizeof four);
}
LMCODEC_LANE void store_words(std::uint16_t* to, I v) { vst1_u16(to, vmovn_u32(vreinterpretq_u32_s32(v))); }
LMCODEC_LANE void store_codes(std::uint8_t* to, I v, int offset) { store_low_byte(to, vaddq_s32(v, set(offset))); }
LMCODEC_LANE I imax(I a, I b) { return vmaxq_s32(a, b); }
LMCODEC_LANE I isub(I a, I b) { return vsubq_s32(a, b); }
LMCODEC_LANE I iadd(I a, I b) { return vaddq_s32(a, b); }

// 2^24 * 2^(-below / 256), rounded down as FORMAT.md section 6.2 says.
struct Exp2 {
  const NetworkTables& tables;
  explicit Exp2(const NetworkTables& t) : tables(t) {}
  LMCODEC_LANE I operator()(I below) const {
    std::int32_t index[4];
    std::uint32_t product[4];
    store(index, below);
    for (int i = 0; i < 4; ++i)
      product[i] = tables.exp2_coarse[index[i] >> 4 & 15] * tables.exp2_fine[index[i] & 15] >> 7;
    const I shift = vminq_s32(vshrq_n_s32(below, 8), set(31));
    return vreinterpretq_s32_u32(vshlq_u32(vld1q_u32(product), vnegq_s32(shift)));
  }
};

// Scalar products of the queries with the keys of some blocks; what begins at `ahead` is fetched unless that is null.
LMCODEC_BODY void dots(const std::uint8_t* q, int n_head, int width, const std::int8_t* key, int n_block,
                       const std::int32_t*, std::int32_t* out, std::size_t stride, const std::int8_t* ahead) {
  for (int i = 0; ahead && i < n_block * kSlots * width; i += 64) body::fetch(ahead + i);
  for (int block = 0; block < n_block; ++block, key += kSlots * width, out += kSlots)
    for (int h = 0; h < n_head; ++h) {
      int32x4_t acc[4] = {set(0), set(0), set(0), set(0)};
      const std::int8_t* k = key;
      for (int i = 0; i < width; i += kQuad, k += kSlots * kQuad) {
        std::int32_t quad;
        std::memcpy(&quad, q + h * width + i, sizeof quad);
        const int8x16_t a = vreinterpretq_s8_s32(set(quad));
        LMCODEC_UNROLL
        for (int z = 0; z < 4; ++z) acc[z] = vdotq_s32(acc[z], vld1q_s8(k + 16 * z), a);
      }
      LMCODEC_UNROLL
      for (int z = 0; z < 4; ++z) store(out + static_cast<std::size_t>(h) * stride + 4 * z, acc[z]);
    }
}

// Adds to the queries' means the values of some blocks, times bytes of probabilities: 128 less, so that they are signed, and
// 128 times the values.
LMCODEC_BODY void weigh_values(const std::uint8_t* p, std::size_t stride, int n_head, const BlockPlace* places,
                               int n_place, const std::int8_t* value, int width, std::int32_t* mean) {
  const int8x16_t ones = vdupq_n_s8(1);
  for (int e = 0; e < width; e += 4) {
    int32x4_t acc[kQueriesAtOnce], all = set(0);
    for (int h = 0; h < n_head; ++h) acc[h] = set(0);
    for (int i = 0; i < n_place; ++i) {
      const std::int8_t* v = value + std::ptrdiff_t{places[i].block} * kSlots * width + e * kQuad;
      const std::uint8_t* from = p + places[i].at * kSlots;
      for (int quad = 0; quad < kSlots; quad += kQuad, v += kQuad * width) {
        const int8x16_t values = vld1q_s8(v);
        all = vdotq_s32(all, values, ones);
        for (int h = 0; h < n_head; ++h) {
          std::uint32_t four;
          std::memcpy(&four, from + static_cast<std::size_t>(h) * stride + static_cast<std::size_t>(quad), sizeof four);
          acc[h] = vdotq_s32(acc[h], values, vreinterpretq_s8_u32(vdupq_n_u32(four ^ 0x80808080u)));
        }
      }
    }
    for (int h = 0; h < n_head; ++h) {
      std::int32_t* const to = mean + h * width + e;
      store(to, iadd(load(to), iadd(acc[h], vshlq_n_s32(all, 7))));
    }
  }
}

#include "transformer_body.h"

constexpr TransformerKernels kKernels = kernels("neon");

}  // namespace

const TransformerKernels* transformer_kernels_neon() { return &kKernels; }

}  // namespace lmcodec

#else

namespace lmcodec {
const TransformerKernels* transformer_kernels_neon() { return nullptr; }
}  // namespace lmcodec

#endif
