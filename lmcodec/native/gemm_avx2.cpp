// AVX2: pairs of products in 16 bits (vpmaddubsw), 16 outputs of up to 4 rows at a time in 8 registers.
#include "gemm_body.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#include <immintrin.h>

#include "cpu.h"

#define LMCODEC_AVX2 __attribute__((target("avx2")))
#define LMCODEC_AVX2_INLINE inline __attribute__((always_inline, target("avx2")))

namespace lmcodec {
namespace {

constexpr int kOffset = 128;
constexpr int kRows = 4;
constexpr int kStrip = 16;  // outputs: 2 registers
constexpr int kOdd = 0xAA;

LMCODEC_AVX2_INLINE __m256i load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
LMCODEC_AVX2_INLINE void store(void* to, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(to), v); }

// A rounding shift right of 64-bit numbers, of which the lower 32 bits are wanted. There is only a logical shift, so
// 2^(shift + lift) makes the number positive and 2^lift is taken off the result, which is below 2^lift: below 2^30
// for a shift of at most 32, and for a larger one (of a number below 2^48) below 2^(48 - shift).
struct Shift {
  __m256i add;
  __m256i off;
  __m128i count;
  LMCODEC_AVX2_INLINE explicit Shift(int shift) {
    const int lift = shift <= 32 ? 30 : 62 - shift;
    add = _mm256_set1_epi64x((std::int64_t{1} << (shift - 1)) + (std::int64_t{1} << (shift + lift)));
    off = _mm256_set1_epi32(1 << lift);
    count = _mm_cvtsi32_si128(shift);
  }
};

LMCODEC_AVX2_INLINE __m256i rescale(__m256i v, __m256i m, const Shift& by) {
  const __m256i even = _mm256_srl_epi64(_mm256_add_epi64(_mm256_mul_epi32(v, m), by.add), by.count);
  const __m256i odd = _mm256_srl_epi64(
      _mm256_add_epi64(_mm256_mul_epi32(_mm256_srli_epi64(v, 32), _mm256_srli_epi64(m, 32)), by.add), by.count);
  return _mm256_sub_epi32(_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), kOdd), by.off);
}

LMCODEC_AVX2_INLINE __m256i clip(__m256i v, std::int32_t low, std::int32_t high) {
  return _mm256_min_epi32(_mm256_max_epi32(v, _mm256_set1_epi32(low)), _mm256_set1_epi32(high));
}

// The 8 lanes, each within an int8, as bytes that are `offset` (0 or 128) above them.
LMCODEC_AVX2_INLINE void store_bytes(void* to, __m256i v, int offset) {
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  const __m128i bytes = _mm_xor_si128(_mm_packs_epi16(words, words), _mm_set1_epi8(static_cast<char>(offset)));
  _mm_storel_epi64(static_cast<__m128i*>(to), bytes);
}

LMCODEC_AVX2_INLINE void add_to_maxima(const __m256i* value, const std::int32_t* out, int left, std::int32_t* max) {
  if (left >= kStrip) {
    for (int z = 0; z < 2; ++z) store(max + 8 * z, _mm256_max_epi32(load(max + 8 * z), value[z]));
  } else {
    for (int i = 0; i < left; ++i) max[i] = out[i] > max[i] ? out[i] : max[i];
  }
}

// Held within +-2^40; 0 where it is smaller than 2^-60.
LMCODEC_AVX2_INLINE __m256 hold(__m256 x) {
  x = _mm256_min_ps(_mm256_max_ps(x, _mm256_set1_ps(-body::kLargest)), _mm256_set1_ps(body::kLargest));
  const __m256 size = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x);
  return _mm256_and_ps(x, _mm256_cmp_ps(size, _mm256_set1_ps(body::kSmallest), _CMP_GE_OQ));
}

LMCODEC_AVX2_INLINE void finish_floats(const __m256i* sums, int row, int first, const PackedLinear& linear,
                                       const Finished& to) {
  const std::size_t at = static_cast<std::size_t>(row) * to.stride + static_cast<std::size_t>(first);
  const __m256 row_scale = _mm256_set1_ps(to.row_scale[row]);
  __m256 value[2];
  LMCODEC_UNROLL
  for (int z = 0; z < 2; ++z) {
    __m256 y = _mm256_mul_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(sums[z]), _mm256_loadu_ps(linear.scale + first + 8 * z)),
                             row_scale);
    if (linear.float_bias) y = _mm256_add_ps(y, _mm256_loadu_ps(linear.float_bias + first + 8 * z));
    value[z] = hold(y);
  }
  if (to.finish == Finish::kFloatLogits) {
    std::int32_t* out = static_cast<std::int32_t*>(to.out) + at;
    __m256i logits[2];
    for (int z = 0; z < 2; ++z) {
      const __m256 y = _mm256_mul_ps(value[z], _mm256_set1_ps(to.logit_scale));
      logits[z] = _mm256_cvtps_epi32(
          _mm256_min_ps(_mm256_max_ps(y, _mm256_set1_ps(-body::kLogitMax)), _mm256_set1_ps(body::kLogitMax)));
      store(out + 8 * z, logits[z]);
    }
    add_to_maxima(logits, out, linear.n - first, to.max + row * kMaxLanes);
    return;
  }
  float* out = static_cast<float*>(to.out) + at;
  for (int z = 0; z < 2; ++z) {
    if (to.finish == Finish::kFloatAdd) value[z] = hold(_mm256_add_ps(_mm256_loadu_ps(out + 8 * z), value[z]));
    _mm256_storeu_ps(out + 8 * z, value[z]);
  }
}

// Requantises the sums of one row and 16 outputs from `first` on.
LMCODEC_AVX2_INLINE void finish(const __m256i* sums, int row, int first, const PackedLinear& linear, const Shift& by,
                                const Finished& to) {
  if (makes_floats(to.finish)) {
    finish_floats(sums, row, first, linear, to);
    return;
  }
  const std::size_t at = static_cast<std::size_t>(row) * to.stride + static_cast<std::size_t>(first);
  __m256i value[2];
  LMCODEC_UNROLL
  for (int z = 0; z < 2; ++z) value[z] = rescale(sums[z], load(linear.multiplier + first + 8 * z), by);
  if (to.finish == Finish::kClip) {
    for (int z = 0; z < 2; ++z)
      store_bytes(static_cast<std::int8_t*>(to.out) + at + 8 * z,
                  clip(value[z], -body::kActivationMax, body::kActivationMax), 0);
  } else if (to.finish == Finish::kRelu2) {
    for (int z = 0; z < 2; ++z) {
      const __m256i m = clip(value[z], 0, body::kActivationMax);
      const __m256i square = _mm256_madd_epi16(m, m);  // of the lower 16 bits: the upper are zero
      store_bytes(static_cast<std::uint8_t*>(to.out) + at + 8 * z,
                  _mm256_srli_epi32(_mm256_add_epi32(square, _mm256_set1_epi32(64)), 7), 0);
    }
  } else if (to.finish == Finish::kAdd) {
    std::int32_t* out = static_cast<std::int32_t*>(to.out) + at;
    for (int z = 0; z < 2; ++z)
      store(out + 8 * z, clip(_mm256_add_epi32(load(out + 8 * z), value[z]), -body::kStreamMax, body::kStreamMax));
  } else {
    std::int32_t* out = static_cast<std::int32_t*>(to.out) + at;
    for (int z = 0; z < 2; ++z) store(out + 8 * z, value[z]);
    add_to_maxima(value, out, linear.n - first, to.max + row * kMaxLanes);
  }
}

// Pairs of products stay within 2 * 255 * 63 = 32130: vpmaddubsw does not saturate.
template <int kN>
LMCODEC_AVX2 void tile(const std::uint8_t* u, std::size_t stride, int row, const std::int8_t* w, int first,
                       const PackedLinear& linear, const Shift& by, const Finished& to) {
  __m256i acc[kN][2];
  LMCODEC_UNROLL
  for (int r = 0; r < kN; ++r) {
    acc[r][0] = load(linear.bias + first);
    acc[r][1] = load(linear.bias + first + 8);
  }
  const __m256i ones = _mm256_set1_epi16(1);
  for (int q = 0; q < linear.n_quad; ++q, u += kQuad, w += kPanel * kQuad) {
    const __m256i weight[2] = {load(w), load(w + 32)};
    LMCODEC_UNROLL
    for (int r = 0; r < kN; ++r) {
      std::int32_t quad;
      std::memcpy(&quad, u + static_cast<std::size_t>(r) * stride, sizeof quad);
      const __m256i a = _mm256_set1_epi32(quad);
      LMCODEC_UNROLL
      for (int z = 0; z < 2; ++z)
        acc[r][z] = _mm256_add_epi32(acc[r][z], _mm256_madd_epi16(_mm256_maddubs_epi16(a, weight[z]), ones));
    }
  }
  LMCODEC_UNROLL
  for (int r = 0; r < kN; ++r) finish(acc[r], row + r, first, linear, by, to);
}

LMCODEC_AVX2 void product(const std::uint8_t* u, std::size_t stride, int n_row, const PackedLinear& linear,
                          const Finished& to) {
  constexpr decltype(&tile<1>) kTiles[kRows] = {tile<1>, tile<2>, tile<3>, tile<4>};
  const Shift by(linear.shift);
  const std::size_t panel_nbytes = static_cast<std::size_t>(linear.n_quad) * (kPanel * kQuad);
  for (int panel = 0; panel < linear.n_panel; ++panel) {
    const std::int8_t* w = linear.weight + static_cast<std::size_t>(panel) * panel_nbytes;
    for (int strip = 0; strip < kPanel; strip += kStrip)
      for (int row = 0; row < n_row; row += kRows)
        kTiles[(n_row - row < kRows ? n_row - row : kRows) - 1](u + static_cast<std::size_t>(row) * stride, stride, row,
                                                                w + strip * kQuad, panel * kPanel + strip, linear, by, to);
  }
}

LMCODEC_AVX2 void embed(const std::int8_t* w, int n, std::int32_t multiplier, int shift, std::int32_t* x) {
  body::embed(w, n, multiplier, shift, x);
}

LMCODEC_AVX2 void normalise(const std::int32_t* x, int n, int dim, const NetworkTables& tables, std::uint8_t* out) {
  __m256i total = _mm256_setzero_si256();
  for (int i = 0; i < n; i += 8) {
    const __m256i v = load(x + i), high = _mm256_srli_epi64(v, 32);
    total = _mm256_add_epi64(total, _mm256_add_epi64(_mm256_mul_epi32(v, v), _mm256_mul_epi32(high, high)));
  }
  std::uint64_t part[4];
  store(part, total);
  const body::NormFactor by = body::norm_factor(part[0] + part[1] + part[2] + part[3], dim, tables);
  const Shift shift(by.shift);
  const __m256i factor = _mm256_set1_epi32(by.factor);
  for (int i = 0; i < n; i += 8)
    store_bytes(out + i, clip(rescale(load(x + i), factor, shift), -body::kActivationMax, body::kActivationMax), kOffset);
}

LMCODEC_AVX2 void recur(const std::int8_t* z, const std::int8_t* v, const std::int8_t* o, int n,
                        const NetworkTables& tables, std::int32_t* h, std::uint8_t* out) {
  const __m256i half = _mm256_set1_epi64x(1 << (body::kStateShift - 1));
  const __m256i round = _mm256_set1_epi64x(1 << (body::kGateShift - 1));
  for (int i = 0; i < n; i += 8) {
    std::int32_t a8[8], s8[8], gate8[8];
    for (int k = 0; k < 8; ++k) {
      a8[k] = tables.decay[z[i + k] + 127];
      s8[k] = tables.input_scale[z[i + k] + 127] + 1;
      gate8[k] = tables.decay[o[i + k] + 127];
    }
    const __m256i a = load(a8), s = load(s8), gate = load(gate8), before = load(h + i);
    const __m256i input = _mm256_slli_epi32(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(v + i))), 12);
    // Bits 16 to 47 of a sum hold the state, bits 29 to 60 of a gated state the output.
    const __m256i even = _mm256_add_epi64(_mm256_mul_epi32(a, before), _mm256_mul_epi32(s, input));
    const __m256i odd = _mm256_add_epi64(
        _mm256_mul_epi32(_mm256_srli_epi64(a, 32), _mm256_srli_epi64(before, 32)),
        _mm256_mul_epi32(_mm256_srli_epi64(s, 32), _mm256_srli_epi64(input, 32)));
    const __m256i after =
        _mm256_blend_epi32(_mm256_srli_epi64(_mm256_add_epi64(even, half), body::kStateShift),
                           _mm256_slli_epi64(_mm256_add_epi64(odd, half), 32 - body::kStateShift), kOdd);
    store(h + i, after);
    const __m256i low = _mm256_add_epi64(_mm256_mul_epi32(after, gate), round);
    const __m256i high =
        _mm256_add_epi64(_mm256_mul_epi32(_mm256_srli_epi64(after, 32), _mm256_srli_epi64(gate, 32)), round);
    const __m256i gated = _mm256_blend_epi32(_mm256_srli_epi64(low, body::kGateShift),
                                             _mm256_slli_epi64(high, 32 - body::kGateShift), kOdd);
    store_bytes(out + i, clip(gated, -body::kActivationMax, body::kActivationMax), kOffset);
  }
}

// Entries of a table of 16 by the lower 4 bits of the indices.
LMCODEC_AVX2_INLINE __m256i look_up(const std::uint32_t* table, __m256i index) {
  const __m256i low = _mm256_permutevar8x32_epi32(load(table), index);
  const __m256i high = _mm256_permutevar8x32_epi32(load(table + 8), index);
  const __m256i upper = _mm256_slli_epi32(index, 28);  // bit 3 chooses
  return _mm256_castps_si256(
      _mm256_blendv_ps(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high), _mm256_castsi256_ps(upper)));
}

LMCODEC_AVX2_INLINE std::uint32_t reduce_add(__m256i v) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4E));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xB1));
  return static_cast<std::uint32_t>(_mm_cvtsi128_si32(s));
}

LMCODEC_AVX2 void weigh(const std::int32_t* logits, const std::int32_t* max, int n, const NetworkTables& tables,
                        std::uint32_t* freq, std::uint64_t* cum) {
  std::int32_t most = max[0];
  for (int i = 1; i < kMaxLanes; ++i) most = max[i] > most ? max[i] : most;
  const __m256i top = _mm256_set1_epi32(most), one = _mm256_set1_epi32(1);
  std::uint64_t total = 0;
  const int n_block = (n + kPanel - 1) / kPanel;
  for (int b = 0; b < n_block; ++b) {
    __m256i sum = _mm256_setzero_si256();
    for (int i = b * kPanel; i < (b + 1) * kPanel; i += 8) {
      const __m256i below = _mm256_sub_epi32(top, load(logits + i));
      const __m256i product = _mm256_mullo_epi32(look_up(tables.exp2_coarse, _mm256_srli_epi32(below, 4)),
                                                 look_up(tables.exp2_fine, below));
      const __m256i shifted = _mm256_srlv_epi32(_mm256_srli_epi32(product, 7), _mm256_srli_epi32(below, 8));
      __m256i f = _mm256_max_epu32(shifted, one);
      if (i + 8 > n)
        f = _mm256_and_si256(f, _mm256_cmpgt_epi32(_mm256_set1_epi32(n - i), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)));
      store(freq + i, f);
      sum = _mm256_add_epi32(sum, f);
    }
    cum[b] = total;
    total += reduce_add(sum);
  }
  cum[n_block] = total;
}

LMCODEC_AVX2 std::uint32_t sum(const std::uint32_t* freq, int n) {
  __m256i total = _mm256_setzero_si256();
  int i = 0;
  for (; i + 8 <= n; i += 8) total = _mm256_add_epi32(total, load(freq + i));
  std::uint32_t rest = reduce_add(total);
  for (; i < n; ++i) rest += freq[i];
  return rest;
}

}  // namespace

int add_avx2_kernels(NetworkKernels* kernels) {
  if (!cpu().avx2) return 0;
  *kernels = {"avx2", kOffset, 1, product, embed, normalise, recur, weigh, sum};
  return 1;
}

}  // namespace lmcodec

#else

namespace lmcodec {
int add_avx2_kernels(NetworkKernels*) { return 0; }
}  // namespace lmcodec

#endif
