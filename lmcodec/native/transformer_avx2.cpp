// AVX2: the transformer's inner loops, 8 floats at a time.
#include "gemm_body.h"
#include "transformer_kernels.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#include <immintrin.h>

#define LMCODEC_AVX2 __attribute__((target("avx2")))
#define LMCODEC_BODY LMCODEC_AVX2 inline
#define LMCODEC_LANE inline __attribute__((always_inline, target("avx2")))

namespace lmcodec {
namespace {

using F = __m256;
using I = __m256i;
constexpr int kLanes = 8;
constexpr int kQueryOffset = 0;
constexpr int kHeads = 4;  // queries whose sums fit the registers

LMCODEC_LANE F load(const float* from) { return _mm256_loadu_ps(from); }
LMCODEC_LANE I load(const std::int32_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
LMCODEC_LANE void store(float* to, F v) { _mm256_storeu_ps(to, v); }
LMCODEC_LANE void store(std::int32_t* to, I v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), v); }
LMCODEC_LANE F set(float v) { return _mm256_set1_ps(v); }
LMCODEC_LANE I set(std::int32_t v) { return _mm256_set1_epi32(v); }
LMCODEC_LANE F add(F a, F b) { return _mm256_add_ps(a, b); }
LMCODEC_LANE F sub(F a, F b) { return _mm256_sub_ps(a, b); }
LMCODEC_LANE F mul(F a, F b) { return _mm256_mul_ps(a, b); }
LMCODEC_LANE F div(F a, F b) { return _mm256_div_ps(a, b); }
LMCODEC_LANE F smaller(F a, F b) { return _mm256_min_ps(a, b); }
LMCODEC_LANE F larger(F a, F b) { return _mm256_max_ps(a, b); }
LMCODEC_LANE F magnitude(F v) { return _mm256_andnot_ps(set(-0.0f), v); }
LMCODEC_LANE F zero_below(F v, float least) {
  return _mm256_and_ps(v, _mm256_cmp_ps(magnitude(v), set(least), _CMP_GE_OQ));
}
LMCODEC_LANE F where_negative(F x, F yes, F no) {
  return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_LT_OQ));
}
LMCODEC_LANE I nearest(F v) { return _mm256_cvtps_epi32(v); }
LMCODEC_LANE F to_float(I v) { return _mm256_cvtepi32_ps(v); }
LMCODEC_LANE F power_of_two(I n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, set(127)), 23));
}
LMCODEC_LANE float square_root(float v) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(v))); }
LMCODEC_LANE float reduce_max(F v) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
}
LMCODEC_LANE std::int32_t reduce_max(I v) {
  __m128i m = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4E));
  return _mm_cvtsi128_si32(_mm_max_epi32(m, _mm_shuffle_epi32(m, 0xB1)));
}
// Lanes of up to 2^31, as a sum of 64 bits.
LMCODEC_LANE std::int64_t reduce_add(I v) {
  const __m256i low = _mm256_and_si256(v, _mm256_set1_epi64x(0xFFFFFFFF));
  const __m256i sum = _mm256_add_epi64(low, _mm256_srli_epi64(v, 32));
  const __m128i half = _mm_add_epi64(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
  return _mm_cvtsi128_si64(_mm_add_epi64(half, _mm_unpackhi_epi64(half, half)));
}
// The upper half is added to the lower one until one lane is left.
LMCODEC_LANE float fold(F v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}
// Pairs (a, b) that are 1, 2, ... n / 2 lanes apart become (a + b, a - b).
LMCODEC_LANE F butterflies(F v, int n) {
  F other = _mm256_permute_ps(v, 0xB1);
  v = _mm256_blend_ps(add(other, v), sub(other, v), 0xAA);
  if (n < 4) return v;
  other = _mm256_permute_ps(v, 0x4E);
  v = _mm256_blend_ps(add(other, v), sub(other, v), 0xCC);
  if (n < 8) return v;
  other = _mm256_permute2f128_ps(v, v, 1);
  return _mm256_blend_ps(add(other, v), sub(other, v), 0xF0);
}
// The lowest bytes of the lanes.
LMCODEC_LANE void store_low_byte(std::uint8_t* to, I v) {
  const __m256i first = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12, -1, -1,
                                         -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m256i four = _mm256_shuffle_epi8(v, first);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to),
                   _mm_unpacklo_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1)));
}
LMCODEC_LANE void store_words(std::uint16_t* to, I v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                   _mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)));
}
LMCODEC_LANE void store_codes(std::uint8_t* to, I v, int offset) { store_low_byte(to, _mm256_add_epi32(v, set(offset))); }
LMCODEC_LANE I imax(I a, I b) { return _mm256_max_epi32(a, b); }
LMCODEC_LANE I isub(I a, I b) { return _mm256_sub_epi32(a, b); }
LMCODEC_LANE I iadd(I a, I b) { return _mm256_add_epi32(a, b); }
LMCODEC_LANE I imul(I a, I b) { return _mm256_mullo_epi32(a, b); }

// 2^24 * 2^(-below / 256), rounded down as FORMAT.md section 6.2 says. A shift by 32 or more gives 0.
struct Exp2 {
  __m256i coarse[2], fine[2];
  LMCODEC_LANE explicit Exp2(const NetworkTables& tables) {
    for (int i = 0; i < 2; ++i) {
      coarse[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(tables.exp2_coarse + 8 * i));
      fine[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(tables.exp2_fine + 8 * i));
    }
  }
  // Entries of a table of 16 by the lower 4 bits of the indices.
  LMCODEC_LANE static I look_up(const __m256i* table, I index) {
    const __m256 low = _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(table[0], index));
    const __m256 high = _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(table[1], index));
    return _mm256_castps_si256(_mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(index, 28))));
  }
  LMCODEC_LANE I operator()(I below) const {
    const I product = imul(look_up(coarse, _mm256_srli_epi32(below, 4)), look_up(fine, below));
    return _mm256_srlv_epi32(_mm256_srli_epi32(product, 7), _mm256_srli_epi32(below, 8));
  }
};

// Pairs of products of what is within +-127 stay within 2 * 127^2 = 32258: |q| with k of q's sign.
template <int kN>
LMCODEC_AVX2 void dots_of_heads(const std::uint8_t* q, int width, const std::int8_t* key, int n_block, std::int32_t* out,
                                std::size_t stride) {
  const __m256i ones = _mm256_set1_epi16(1);
  for (int block = 0; block < n_block; ++block, key += kSlots * width, out += kSlots) {
    __m256i acc[kN][2];
    for (int h = 0; h < kN; ++h) acc[h][0] = acc[h][1] = _mm256_setzero_si256();
    const std::int8_t* k = key;
    for (int i = 0; i < width; i += kQuad, k += kSlots * kQuad) {
      const __m256i keys[2] = {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(k)),
                               _mm256_loadu_si256(reinterpret_cast<const __m256i*>(k + 32))};
      LMCODEC_UNROLL
      for (int h = 0; h < kN; ++h) {
        std::int32_t quad;
        std::memcpy(&quad, q + h * width + i, sizeof quad);
        const __m256i a = set(quad), size = _mm256_abs_epi8(a);
        LMCODEC_UNROLL
        for (int z = 0; z < 2; ++z)
          acc[h][z] = iadd(acc[h][z],
                           _mm256_madd_epi16(_mm256_maddubs_epi16(size, _mm256_sign_epi8(keys[z], a)), ones));
      }
    }
    for (int h = 0; h < kN; ++h) {
      store(out + static_cast<std::size_t>(h) * stride, acc[h][0]);
      store(out + static_cast<std::size_t>(h) * stride + 8, acc[h][1]);
    }
  }
}

// Scalar products of the queries with the keys of some blocks; what begins at `ahead` is fetched unless that is null.
inline void dots(const std::uint8_t* q, int n_head, int width, const std::int8_t* key, int n_block, const std::int32_t*,
                 std::int32_t* out, std::size_t stride, const std::int8_t* ahead) {
  constexpr decltype(&dots_of_heads<1>) kDots[kHeads] = {dots_of_heads<1>, dots_of_heads<2>, dots_of_heads<3>,
                                                         dots_of_heads<4>};
  for (int i = 0; ahead && i < n_block * kSlots * width; i += 64) body::fetch(ahead + i);
  for (int h = 0; h < n_head; h += kHeads)
    kDots[n_head - h < kHeads ? n_head - h - 1 : kHeads - 1](q + h * width, width, key, n_block,
                                                             out + static_cast<std::size_t>(h) * stride, stride);
}

// Of 8 elements: pairs of sums, which are added in the end.
template <int kN>
LMCODEC_AVX2 void weigh_some(const std::uint8_t* p, std::size_t stride, const BlockPlace* places, int n_place,
                             const std::int8_t* value, int width, std::int32_t* mean) {
  __m256i acc[kN][2];
  for (int h = 0; h < kN; ++h) acc[h][0] = acc[h][1] = _mm256_setzero_si256();
  for (int i = 0; i < n_place; ++i) {
    const std::int8_t* v = value + std::ptrdiff_t{places[i].block} * kSlots * width;
    const std::uint8_t* from = p + places[i].at * kSlots;
    for (int quad = 0; quad < kSlots; quad += kQuad, v += kQuad * width) {
      const __m256i values[2] = {_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(v))),
                                 _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(v + 16)))};
      LMCODEC_UNROLL
      for (int h = 0; h < kN; ++h) {
        std::int32_t four;
        std::memcpy(&four, from + static_cast<std::size_t>(h) * stride + static_cast<std::size_t>(quad), sizeof four);
        const __m256i a = _mm256_broadcastq_epi64(_mm_cvtepu8_epi16(_mm_cvtsi32_si128(four)));
        LMCODEC_UNROLL
        for (int z = 0; z < 2; ++z) acc[h][z] = iadd(acc[h][z], _mm256_madd_epi16(a, values[z]));
      }
    }
  }
  for (int h = 0; h < kN; ++h) {
    // hadd: elements 0 1 4 5, 2 3 6 7.
    const __m256i sums = _mm256_permute4x64_epi64(_mm256_hadd_epi32(acc[h][0], acc[h][1]), 0xD8);
    store(mean + h * width, iadd(load(mean + h * width), sums));
  }
}

// Adds to the queries' means the values of some blocks, times bytes of probabilities.
inline void weigh_values(const std::uint8_t* p, std::size_t stride, int n_head, const BlockPlace* places, int n_place,
                         const std::int8_t* value, int width, std::int32_t* mean) {
  constexpr decltype(&weigh_some<1>) kWeigh[kHeads] = {weigh_some<1>, weigh_some<2>, weigh_some<3>, weigh_some<4>};
  for (int h = 0; h < n_head; h += kHeads)
    for (int i = 0; i < width; i += 8)
      kWeigh[n_head - h < kHeads ? n_head - h - 1 : kHeads - 1](p + static_cast<std::size_t>(h) * stride, stride,
                                                                places, n_place, value + i * kQuad, width,
                                                                mean + h * width + i);
}

#include "transformer_body.h"

constexpr TransformerKernels kKernels = kernels("avx2");

}  // namespace

const TransformerKernels* transformer_kernels_avx2() { return &kKernels; }

}  // namespace lmcodec

#else

namespace lmcodec {
const TransformerKernels* transformer_kernels_avx2() { return nullptr; }
}  // namespace lmcodec

#endif
