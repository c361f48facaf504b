#include "mixing.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // of GCC's own headers (bug 105593)
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#endif

#include "counter.h"
#include "hashing.h"

namespace lmcodec {
namespace {

#if defined(__GNUC__) || defined(__clang__)
#define LMCODEC_INLINE inline __attribute__((always_inline))
#else
#define LMCODEC_INLINE inline
#endif

LMCODEC_INLINE std::int32_t clamped_stretch(std::int32_t x) {
  return x > kStretchMax ? kStretchMax : x < -kStretchMax ? -kStretchMax : x;
}

LMCODEC_INLINE std::int32_t clamped_weight(std::int32_t w) {
  return w > kWeightMax ? kWeightMax : w < -kWeightMax ? -kWeightMax : w;
}

// |w * x| < 2^19 * 3072 < 2^31; with n <= 256 the sum of 256 such products >> 8 stays below 2^31.
LMCODEC_INLINE std::int32_t mix_body(const std::int32_t* x, int n, int n_set, const Logistic& logistic, Mixture& mixture) {
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

// |2^16 * bit - p| < 2^16, rate <= 64: e is at most 2^18.
LMCODEC_INLINE std::int32_t error(int bit, std::uint32_t p, int rate) {
  return ((bit << 16) - static_cast<std::int32_t>(p)) * rate >> 4;
}

// With |x| <= 3072 an error this small moves no weight.
constexpr std::int32_t kSmallError = 32767 / kStretchMax;

// |x * e| <= 3072 * 2^18 < 2^30.
LMCODEC_INLINE void move_weights(const std::int32_t* __restrict x, std::int32_t e, std::int32_t* __restrict w, int n) {
  if (e <= kSmallError && e >= -kSmallError) return;
  for (int i = 0; i < n; ++i) w[i] = clamped_weight(w[i] + ((x[i] * e + 0x8000) >> 16));
}

LMCODEC_INLINE void learn_body(const std::int32_t* x, int n, int n_set, int bit, int rate, int final_rate,
                               const Mixture& mixture) {
  for (int k = 0; k < n_set; ++k) move_weights(x, error(bit, mixture.layer_p[k], rate), mixture.weights[k], n & ~15);
  move_weights(mixture.layer, error(bit, mixture.p, final_rate), mixture.final_weights, kMixerSets);
}

LMCODEC_INLINE void find_rows_body(const std::uint32_t* __restrict base, const RowRules& rules, std::uint32_t c0,
                                   std::uint32_t n_bit, int n, std::uint32_t* __restrict offset) {
  for (int r = 0; r < (n & ~7); ++r)
    offset[r] = ((base[r] + c0 * rules.per_c0[r] + n_bit * rules.per_bit[r]) & rules.mask[r]) * rules.stride[r];
}

LMCODEC_INLINE void mix_hashes_body(const std::uint32_t* __restrict hash, std::uint32_t added, int n,
                                    std::uint32_t* __restrict mixed) {
  for (int i = 0; i < (n & ~15); ++i) mixed[i] = mix32(hash[i] + added);
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

#define LMCODEC_MIXING(isa, attributes)                                                                               \
  attributes std::int32_t mix_##isa(const std::int32_t* x, int n, int n_set, const Logistic& logistic,                \
                                    Mixture& mixture) {                                                               \
    return mix_body(x, n, n_set, logistic, mixture);                                                                  \
  }                                                                                                                   \
  attributes void learn_##isa(const std::int32_t* x, int n, int n_set, int bit, int rate, int final_rate,             \
                              const Mixture& mixture) {                                                               \
    learn_body(x, n, n_set, bit, rate, final_rate, mixture);                                                          \
  }                                                                                                                   \
  attributes void find_rows_##isa(const std::uint32_t* base, const RowRules& rules, std::uint32_t c0,                 \
                                  std::uint32_t n_bit, int n, std::uint32_t* offset) {                                \
    find_rows_body(base, rules, c0, n_bit, n, offset);                                                                \
  }                                                                                                                   \
  attributes void mix_hashes_##isa(const std::uint32_t* hash, std::uint32_t added, int n, std::uint32_t* mixed) {     \
    mix_hashes_body(hash, added, n, mixed);                                                                           \
  }

LMCODEC_MIXING(scalar, )

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define LMCODEC_AVX2 __attribute__((target("avx2")))
#define LMCODEC_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")))

LMCODEC_MIXING(avx2, LMCODEC_AVX2)

LMCODEC_AVX512 void find_rows_avx512(const std::uint32_t* base, const RowRules& rules, std::uint32_t c0,
                                     std::uint32_t n_bit, int n, std::uint32_t* offset) {
  find_rows_body(base, rules, c0, n_bit, n, offset);
}

LMCODEC_AVX512 void mix_hashes_avx512(const std::uint32_t* hash, std::uint32_t added, int n, std::uint32_t* mixed) {
  mix_hashes_body(hash, added, n, mixed);
}

// Sums of four vectors' lanes.
LMCODEC_AVX512 LMCODEC_INLINE __m128i sums_of(__m512i a, __m512i b, __m512i c, __m512i d) {
  const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
  const __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
  const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
  return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

LMCODEC_AVX512 std::int32_t mix_avx512(const std::int32_t* x, int n, int n_set, const Logistic& logistic,
                                       Mixture& mixture) {
  const __m512i most = _mm512_set1_epi32(kStretchMax), least = _mm512_set1_epi32(-kStretchMax);
  __m512i sums = _mm512_setzero_si512();
  // Four sets share the inputs that are loaded. Where there are fewer, the last one is taken again and left out.
  for (int k = 0; k < n_set; k += 4) {
    const int last = n_set - 1;
    const std::int32_t* w0 = mixture.weights[k];
    const std::int32_t* w1 = mixture.weights[k + 1 < last ? k + 1 : last];
    const std::int32_t* w2 = mixture.weights[k + 2 < last ? k + 2 : last];
    const std::int32_t* w3 = mixture.weights[k + 3 < last ? k + 3 : last];
    __m512i s0 = _mm512_setzero_si512(), s1 = s0, s2 = s0, s3 = s0;
    for (int i = 0; i < (n & ~15); i += 16) {
      const __m512i v = _mm512_loadu_si512(x + i);
      s0 = _mm512_add_epi32(s0, _mm512_srai_epi32(_mm512_mullo_epi32(v, _mm512_loadu_si512(w0 + i)), 8));
      s1 = _mm512_add_epi32(s1, _mm512_srai_epi32(_mm512_mullo_epi32(v, _mm512_loadu_si512(w1 + i)), 8));
      s2 = _mm512_add_epi32(s2, _mm512_srai_epi32(_mm512_mullo_epi32(v, _mm512_loadu_si512(w2 + i)), 8));
      s3 = _mm512_add_epi32(s3, _mm512_srai_epi32(_mm512_mullo_epi32(v, _mm512_loadu_si512(w3 + i)), 8));
    }
    const __m512i four = _mm512_broadcast_i32x4(sums_of(s0, s1, s2, s3));
    sums = _mm512_mask_mov_epi32(sums, static_cast<__mmask16>(15u << k), four);
  }
  const __mmask16 sets = static_cast<__mmask16>((1u << n_set) - 1);
  __m512i layer = _mm512_srai_epi32(_mm512_maskz_mov_epi32(sets, sums), 8);
  layer = _mm512_max_epi32(_mm512_min_epi32(layer, most), least);
  _mm512_store_si512(mixture.layer, layer);
  const __m512i weighed = _mm512_mullo_epi32(layer, _mm512_loadu_si512(mixture.final_weights));
  const std::int32_t stretch = clamped_stretch(_mm512_reduce_add_epi32(_mm512_srai_epi32(weighed, 8)) >> 8);
  mixture.p = logistic.squash(stretch);
  // One by one: few of sixteen are wanted, and gathering takes longer.
  for (int k = 0; k < n_set; ++k) mixture.layer_p[k] = logistic.squash(mixture.layer[k]);
  return stretch;
}

LMCODEC_AVX512 LMCODEC_INLINE void move_weights_avx512(const std::int32_t* x, std::int32_t e, std::int32_t* w, int n) {
  const __m512i error = _mm512_set1_epi32(e), half = _mm512_set1_epi32(0x8000);
  const __m512i most = _mm512_set1_epi32(kWeightMax), least = _mm512_set1_epi32(-kWeightMax);
  for (int i = 0; i < n; i += 16) {
    const __m512i step = _mm512_add_epi32(_mm512_mullo_epi32(_mm512_loadu_si512(x + i), error), half);
    const __m512i moved = _mm512_add_epi32(_mm512_loadu_si512(w + i), _mm512_srai_epi32(step, 16));
    _mm512_storeu_si512(w + i, _mm512_max_epi32(_mm512_min_epi32(moved, most), least));
  }
}

LMCODEC_AVX512 void learn_avx512(const std::int32_t* x, int n, int n_set, int bit, int rate, int final_rate,
                                 const Mixture& mixture) {
  const __m512i target = _mm512_set1_epi32(bit << 16), small = _mm512_set1_epi32(kSmallError);
  const __m512i distance = _mm512_sub_epi32(target, _mm512_load_si512(mixture.layer_p));
  const __m512i errors = _mm512_srai_epi32(_mm512_mullo_epi32(distance, _mm512_set1_epi32(rate)), 4);
  alignas(64) std::int32_t e[kMixerSets];
  _mm512_store_si512(e, errors);
  unsigned large = _mm512_cmpgt_epi32_mask(_mm512_abs_epi32(errors), small) & ((1u << n_set) - 1);
  for (; large; large &= large - 1) {
    const int k = __builtin_ctz(large);
    move_weights_avx512(x, e[k], mixture.weights[k], n & ~15);
  }
  const std::int32_t final_error = error(bit, mixture.p, final_rate);
  if (final_error > kSmallError || final_error < -kSmallError)
    move_weights_avx512(mixture.layer, final_error, mixture.final_weights, kMixerSets);
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

// What is left of fewer than a vector is done one by one: gathers take as long for few as for many.
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
    const __m512i learned = _mm512_or_si512(_mm512_slli_epi32(moved, 10), counted);
    alignas(64) std::uint32_t value[16];
    _mm512_store_si512(value, _mm512_mask_mov_epi32(counter, _mm_test_epi8_mask(bytes, bytes), learned));
    for (int k = 0; k < 16; ++k) maps[(i + k) * 256 + states[i + k]] = value[k];
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
      kernels[n++] = {"avx512",          mix_avx512,        learn_avx512,     find_rows_avx512,
                      mix_hashes_avx512, map_inputs_avx512, train_maps_avx512};
    if (__builtin_cpu_supports("avx2"))
      kernels[n++] = {"avx2",          mix_avx2,        learn_avx2,     find_rows_avx2,
                      mix_hashes_avx2, map_inputs_avx2, train_maps_avx2};
#endif
    kernels[n++] = {"scalar",          mix_scalar,        learn_scalar,     find_rows_scalar,
                    mix_hashes_scalar, map_inputs_scalar, train_maps_scalar};
  }
};

}  // namespace

const MixingKernels* mixing_kernels(int* n) {
  static const Available available;
  *n = available.n;
  return available.kernels;
}

}  // namespace lmcodec
