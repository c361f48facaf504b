// What the AVX-512 kernels share: requantising of sums, 16 lanes at a time. For x86-64 with GCC or Clang alone.
#pragma once

#include "gemm_body.h"

#if defined(__GNUC__) && !defined(__clang__)
// GCC's own header passes results that a full mask hides as undefined operands (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#define LMCODEC_VNNI __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")))
#define LMCODEC_VNNI_INLINE inline __attribute__((always_inline, target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")))

namespace lmcodec {
namespace avx512 {

constexpr int kVectors = kPanel / 16;
constexpr __mmask16 kOdd = 0xAAAA;

// (v * m + round) >> shift in each lane; the low 32 bits of the result.
LMCODEC_VNNI_INLINE __m512i rescale(__m512i v, __m512i m, __m512i round, __m128i shift) {
  const __m512i even = _mm512_sra_epi64(_mm512_add_epi64(_mm512_mul_epi32(v, m), round), shift);
  const __m512i odd = _mm512_sra_epi64(
      _mm512_add_epi64(_mm512_mul_epi32(_mm512_srli_epi64(v, 32), _mm512_srli_epi64(m, 32)), round), shift);
  return _mm512_mask_shuffle_epi32(even, kOdd, odd, _MM_PERM_CDAB);
}

LMCODEC_VNNI_INLINE __m512i clip(__m512i v, std::int32_t low, std::int32_t high) {
  return _mm512_min_epi32(_mm512_max_epi32(v, _mm512_set1_epi32(low)), _mm512_set1_epi32(high));
}

LMCODEC_VNNI_INLINE void store_bytes(void* to, __m512i v) {
  _mm_storeu_si128(static_cast<__m128i*>(to), _mm512_cvtepi32_epi8(v));
}

LMCODEC_VNNI_INLINE __m512i load(const void* from) { return _mm512_loadu_si512(from); }

// Lanes of a panel's 16 outputs from `first` on that are outputs, and not there to fill it up.
inline __mmask16 outputs(const PackedLinear& linear, int first) {
  const int left = linear.n - first;
  return left >= 16 ? 0xFFFF : left > 0 ? static_cast<__mmask16>((1 << left) - 1) : 0;
}

// Held within +-2^40; 0 where it is smaller than 2^-60.
LMCODEC_VNNI_INLINE __m512 hold(__m512 x) {
  x = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-body::kLargest)), _mm512_set1_ps(body::kLargest));
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(_mm512_abs_ps(x), _mm512_set1_ps(body::kSmallest), _CMP_GE_OQ), x);
}

// Of 16 sums.
LMCODEC_VNNI_INLINE __m512 scaled(__m512i sum, __m512 scale, float row_scale, bool biased, __m512 bias) {
  const __m512 y = _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum), scale), _mm512_set1_ps(row_scale));
  return hold(biased ? _mm512_add_ps(y, bias) : y);
}

LMCODEC_VNNI inline void finish_floats(const __m512i* sums, int n_row, int first_row, int panel,
                                       const PackedLinear& linear, const Finished& to) {
  for (int z = 0; z < kVectors; ++z) {
    const int first = panel * kPanel + z * 16;
    const __m512 scale = _mm512_loadu_ps(linear.scale + first);
    const bool biased = linear.float_bias != nullptr;
    const __m512 bias = biased ? _mm512_loadu_ps(linear.float_bias + first) : _mm512_setzero_ps();
    const std::size_t at = static_cast<std::size_t>(first_row) * to.stride + static_cast<std::size_t>(first);
    const __m512i* sum = sums + z;
    const float* row_scale = to.row_scale + first_row;
    if (to.finish == Finish::kFloat) {
      float* out = static_cast<float*>(to.out) + at;
      for (int r = 0; r < n_row; ++r, out += to.stride) _mm512_storeu_ps(out, scaled(sum[r * kVectors], scale, row_scale[r], biased, bias));
    } else if (to.finish == Finish::kFloatAdd) {
      float* out = static_cast<float*>(to.out) + at;
      for (int r = 0; r < n_row; ++r, out += to.stride)
        _mm512_storeu_ps(out, hold(_mm512_add_ps(_mm512_loadu_ps(out), scaled(sum[r * kVectors], scale, row_scale[r], biased, bias))));
    } else {
      std::int32_t* out = static_cast<std::int32_t*>(to.out) + at;
      std::int32_t* max = to.max + first_row * kMaxLanes;
      const __mmask16 mask = outputs(linear, first);
      const __m512 most = _mm512_set1_ps(body::kLogitMax), least = _mm512_set1_ps(-body::kLogitMax);
      for (int r = 0; r < n_row; ++r, out += to.stride, max += kMaxLanes) {
        const __m512 y = _mm512_mul_ps(scaled(sum[r * kVectors], scale, row_scale[r], biased, bias), _mm512_set1_ps(to.logit_scale));
        const __m512i logit = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(y, least), most));
        _mm512_storeu_si512(out, logit);
        const __m512i before = load(max);
        _mm512_storeu_si512(max, _mm512_mask_max_epi32(before, mask, before, logit));
      }
    }
  }
}

// Requantises the sums of n_row rows and one panel: (n_row, 64), in vectors.
LMCODEC_VNNI inline void finish(const __m512i* sums, int n_row, int first_row, int panel, const PackedLinear& linear,
                                const Finished& to) {
  if (makes_floats(to.finish)) {
    finish_floats(sums, n_row, first_row, panel, linear, to);
    return;
  }
  const __m512i round = _mm512_set1_epi64(std::int64_t{1} << (linear.shift - 1));
  const __m128i shift = _mm_cvtsi32_si128(linear.shift);
  for (int z = 0; z < kVectors; ++z) {
    const int first = panel * kPanel + z * 16;
    const __m512i multiplier = load(linear.multiplier + first);
    const std::size_t at = static_cast<std::size_t>(first_row) * to.stride + static_cast<std::size_t>(first);
    const __m512i* sum = sums + z;
    if (to.finish == Finish::kClip) {
      std::int8_t* out = static_cast<std::int8_t*>(to.out) + at;
      for (int r = 0; r < n_row; ++r, sum += kVectors, out += to.stride)
        store_bytes(out, clip(rescale(*sum, multiplier, round, shift), -body::kActivationMax, body::kActivationMax));
    } else if (to.finish == Finish::kRelu2) {
      std::uint8_t* out = static_cast<std::uint8_t*>(to.out) + at;
      for (int r = 0; r < n_row; ++r, sum += kVectors, out += to.stride) {
        const __m512i m = clip(rescale(*sum, multiplier, round, shift), 0, body::kActivationMax);
        const __m512i square = _mm512_madd_epi16(m, m);  // of the lower 16 bits: the upper are zero
        store_bytes(out, _mm512_srli_epi32(_mm512_add_epi32(square, _mm512_set1_epi32(64)), 7));
      }
    } else if (to.finish == Finish::kAdd) {
      std::int32_t* out = static_cast<std::int32_t*>(to.out) + at;
      for (int r = 0; r < n_row; ++r, sum += kVectors, out += to.stride) {
        const __m512i added = _mm512_add_epi32(load(out), rescale(*sum, multiplier, round, shift));
        _mm512_storeu_si512(out, clip(added, -body::kStreamMax, body::kStreamMax));
      }
    } else {
      std::int32_t* out = static_cast<std::int32_t*>(to.out) + at;
      std::int32_t* max = to.max + first_row * kMaxLanes;
      const __mmask16 mask = outputs(linear, first);
      for (int r = 0; r < n_row; ++r, sum += kVectors, out += to.stride, max += kMaxLanes) {
        const __m512i value = rescale(*sum, multiplier, round, shift);
        _mm512_storeu_si512(out, value);
        const __m512i before = load(max);
        _mm512_storeu_si512(max, _mm512_mask_max_epi32(before, mask, before, value));
      }
    }
  }
}

// NetworkKernels::product of AVX-512 VNNI.
void product(const std::uint8_t* u, std::size_t stride, int n_row, const PackedLinear& linear, const Finished& to);

}  // namespace avx512
}  // namespace lmcodec
