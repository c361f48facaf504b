#include "mixing.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // of GCC's own headers (bug 105593)
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#endif

#include "counter.h"

namespace lmcodec {
namespace {

#if defined(__GNUC__) || defined(__clang__)
#define LMCODEC_INLINE inline __attribute__((always_inline))
#else
#define LMCODEC_INLINE inline
#endif

// |w * x| < 2^19 * 3072 < 2^31; with n <= 256 the sum of 256 such products >> 8 stays below 2^31.
LMCODEC_INLINE void dot_products_body(const std::int32_t* x, std::int32_t* const* w, int n_set, int n,
                                      std::int32_t* sum) {
  for (int k = 0; k < n_set; ++k) {
    const std::int32_t* v = w[k];
    std::int32_t total = 0;
    for (int i = 0; i < n; ++i) total += (v[i] * x[i]) >> 8;
    sum[k] = total;
  }
}

// |x * e| <= 3072 * 2^18 < 2^30.
LMCODEC_INLINE void adapt_body(const std::int32_t* __restrict x, std::int32_t* const* w, int n_set, int n,
                               const std::int32_t* e) {
  for (int k = 0; k < n_set; ++k) {
    std::int32_t* __restrict v = w[k];
    const std::int32_t step = e[k];
    for (int i = 0; i < n; ++i) {
      std::int32_t t = v[i] + ((x[i] * step + 0x8000) >> 16);
      t = t > kWeightMax ? kWeightMax : t;
      v[i] = t < -kWeightMax ? -kWeightMax : t;
    }
  }
}

LMCODEC_INLINE void map_inputs_from(int i, const std::uint32_t* maps, const std::uint8_t* states, int n,
                                    const std::int16_t* stretch, std::int32_t* x) {
  for (; i < n; ++i) {
    const std::uint32_t p = maps[i * 256 + states[i]] >> 10;
    x[2 * i] = stretch[p >> 10];
    x[2 * i + 1] = (static_cast<std::int32_t>(p) - static_cast<std::int32_t>(kHalf22)) >> 11;
  }
}

LMCODEC_INLINE void train_maps_from(int i, std::uint32_t* maps, const std::uint8_t* states, int n, int bit,
                                    std::uint32_t limit) {
  for (; i < n; ++i)
    if (states[i]) train_counter(maps[i * 256 + states[i]], bit, limit);
}

void map_inputs_scalar(const std::uint32_t* maps, const std::uint8_t* states, int n, const std::int16_t* stretch,
                       std::int32_t* x) {
  map_inputs_from(0, maps, states, n, stretch, x);
}
void train_maps_scalar(std::uint32_t* maps, const std::uint8_t* states, int n, int bit, std::uint32_t limit) {
  train_maps_from(0, maps, states, n, bit, limit);
}

void dot_products_scalar(const std::int32_t* x, std::int32_t* const* w, int n_set, int n, std::int32_t* sum) {
  dot_products_body(x, w, n_set, n & ~15, sum);
}
void adapt_scalar(const std::int32_t* x, std::int32_t* const* w, int n_set, int n, const std::int32_t* e) {
  adapt_body(x, w, n_set, n & ~15, e);
}

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define LMCODEC_AVX2 __attribute__((target("avx2")))
#define LMCODEC_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")))

LMCODEC_AVX2 void dot_products_avx2(const std::int32_t* x, std::int32_t* const* w, int n_set, int n, std::int32_t* sum) {
  dot_products_body(x, w, n_set, n & ~15, sum);
}
LMCODEC_AVX2 void adapt_avx2(const std::int32_t* x, std::int32_t* const* w, int n_set, int n, const std::int32_t* e) {
  adapt_body(x, w, n_set, n & ~15, e);
}
LMCODEC_AVX512 void dot_products_avx512(const std::int32_t* x, std::int32_t* const* w, int n_set, int n,
                                        std::int32_t* sum) {
  dot_products_body(x, w, n_set, n & ~15, sum);
}
LMCODEC_AVX512 void adapt_avx512(const std::int32_t* x, std::int32_t* const* w, int n_set, int n, const std::int32_t* e) {
  adapt_body(x, w, n_set, n & ~15, e);
}

// A counter's step, (target - p) * reciprocal >> 16, from 32-bit products: of the difference's upper part, and of its
// lower 16 bits, whose product is below 2^32.

LMCODEC_AVX2 void map_inputs_avx2(const std::uint32_t* maps, const std::uint8_t* states, int n,
                                  const std::int16_t* stretch, std::int32_t* x) {
  const __m256i rows = _mm256_setr_epi32(0, 256, 512, 768, 1024, 1280, 1536, 1792);
  int i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(states + i));
    const __m256i at = _mm256_add_epi32(_mm256_cvtepu8_epi32(bytes), rows);
    const __m256i counter = _mm256_i32gather_epi32(reinterpret_cast<const int*>(maps + i * 256), at, 4);
    const __m256i near = _mm256_i32gather_epi32(reinterpret_cast<const int*>(stretch), _mm256_srli_epi32(counter, 20), 2);
    const __m256i s = _mm256_srai_epi32(_mm256_slli_epi32(near, 16), 16);
    const __m256i half = _mm256_set1_epi32(static_cast<int>(kHalf22));
    const __m256i linear = _mm256_srai_epi32(_mm256_sub_epi32(_mm256_srli_epi32(counter, 10), half), 11);
    const __m256i low = _mm256_unpacklo_epi32(s, linear), high = _mm256_unpackhi_epi32(s, linear);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(x + 2 * i), _mm256_permute2x128_si256(low, high, 0x20));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(x + 2 * i + 8), _mm256_permute2x128_si256(low, high, 0x31));
  }
  map_inputs_from(i, maps, states, n, stretch, x);
}

LMCODEC_AVX2 void train_maps_avx2(std::uint32_t* maps, const std::uint8_t* states, int n, int bit, std::uint32_t limit) {
  const __m256i rows = _mm256_setr_epi32(0, 256, 512, 768, 1024, 1280, 1536, 1792);
  const __m256i target = _mm256_set1_epi32(bit ? (1 << kProbabilityBits) - 1 : 0);
  const __m256i most = _mm256_set1_epi32(static_cast<int>(limit));
  int i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(states + i));
    const __m256i at = _mm256_add_epi32(_mm256_cvtepu8_epi32(bytes), rows);
    const __m256i counter = _mm256_i32gather_epi32(reinterpret_cast<const int*>(maps + i * 256), at, 4);
    const __m256i count = _mm256_and_si256(counter, _mm256_set1_epi32(static_cast<int>(kCountMask)));
    const __m256i p = _mm256_srli_epi32(counter, 10), difference = _mm256_sub_epi32(target, p);
    const __m256i rate = _mm256_i32gather_epi32(reinterpret_cast<const int*>(kReciprocals.of), count, 4);
    const __m256i upper = _mm256_mullo_epi32(_mm256_srai_epi32(difference, 16), rate);
    const __m256i lower = _mm256_mullo_epi32(_mm256_and_si256(difference, _mm256_set1_epi32(0xffff)), rate);
    const __m256i moved = _mm256_add_epi32(p, _mm256_add_epi32(upper, _mm256_srli_epi32(lower, 16)));
    const __m256i counted = _mm256_min_epi32(_mm256_add_epi32(count, _mm256_set1_epi32(1)), most);
    alignas(32) std::uint32_t value[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(value), _mm256_or_si256(_mm256_slli_epi32(moved, 10), counted));
    for (int k = 0; k < 8; ++k)
      if (states[i + k]) maps[(i + k) * 256 + states[i + k]] = value[k];
  }
  train_maps_from(i, maps, states, n, bit, limit);
}

LMCODEC_AVX512 void map_inputs_avx512(const std::uint32_t* maps, const std::uint8_t* states, int n,
                                      const std::int16_t* stretch, std::int32_t* x) {
  const __m512i rows = _mm512_slli_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), 8);
  const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i second = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  int i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(states + i));
    const __m512i at = _mm512_add_epi32(_mm512_cvtepu8_epi32(bytes), rows);
    const __m512i counter = _mm512_i32gather_epi32(at, maps + i * 256, 4);
    const __m512i near = _mm512_i32gather_epi32(_mm512_srli_epi32(counter, 20), stretch, 2);
    const __m512i s = _mm512_srai_epi32(_mm512_slli_epi32(near, 16), 16);
    const __m512i half = _mm512_set1_epi32(static_cast<int>(kHalf22));
    const __m512i linear = _mm512_srai_epi32(_mm512_sub_epi32(_mm512_srli_epi32(counter, 10), half), 11);
    _mm512_storeu_si512(x + 2 * i, _mm512_permutex2var_epi32(s, first, linear));
    _mm512_storeu_si512(x + 2 * i + 16, _mm512_permutex2var_epi32(s, second, linear));
  }
  map_inputs_from(i, maps, states, n, stretch, x);
}

LMCODEC_AVX512 void train_maps_avx512(std::uint32_t* maps, const std::uint8_t* states, int n, int bit,
                                      std::uint32_t limit) {
  const __m512i rows = _mm512_slli_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), 8);
  const __m512i target = _mm512_set1_epi32(bit ? (1 << kProbabilityBits) - 1 : 0);
  const __m512i most = _mm512_set1_epi32(static_cast<int>(limit));
  int i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(states + i));
    const __m512i at = _mm512_add_epi32(_mm512_cvtepu8_epi32(bytes), rows);
    const __m512i counter = _mm512_i32gather_epi32(at, maps + i * 256, 4);
    const __m512i count = _mm512_and_si512(counter, _mm512_set1_epi32(static_cast<int>(kCountMask)));
    const __m512i p = _mm512_srli_epi32(counter, 10), difference = _mm512_sub_epi32(target, p);
    const __m512i rate = _mm512_i32gather_epi32(count, kReciprocals.of, 4);
    const __m512i upper = _mm512_mullo_epi32(_mm512_srai_epi32(difference, 16), rate);
    const __m512i lower = _mm512_mullo_epi32(_mm512_and_si512(difference, _mm512_set1_epi32(0xffff)), rate);
    const __m512i moved = _mm512_add_epi32(p, _mm512_add_epi32(upper, _mm512_srli_epi32(lower, 16)));
    const __m512i counted = _mm512_min_epi32(_mm512_add_epi32(count, _mm512_set1_epi32(1)), most);
    _mm512_mask_i32scatter_epi32(maps + i * 256, _mm_test_epi8_mask(bytes, bytes), at,
                                 _mm512_or_si512(_mm512_slli_epi32(moved, 10), counted), 4);
  }
  train_maps_from(i, maps, states, n, bit, limit);
}
#endif

struct Available {
  MixingKernels kernels[3];
  int n = 0;
  Available() {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
      kernels[n++] = {"avx512", dot_products_avx512, adapt_avx512, map_inputs_avx512, train_maps_avx512};
    if (__builtin_cpu_supports("avx2")) kernels[n++] = {"avx2", dot_products_avx2, adapt_avx2, map_inputs_avx2, train_maps_avx2};
#endif
    kernels[n++] = {"scalar", dot_products_scalar, adapt_scalar, map_inputs_scalar, train_maps_scalar};
  }
};

}  // namespace

const MixingKernels* mixing_kernels(int* n) {
  static const Available available;
  *n = available.n;
  return available.kernels;
}

}  // namespace lmcodec
