// AVX-512 with VNNI: the transformer's inner loops, 16 floats at a time. Queries' bytes are unsigned.
#include "gemm_body.h"
#include "transformer_kernels.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#include "gemm_avx512.h"

#define LMCODEC_BODY LMCODEC_VNNI inline
#define LMCODEC_LANE LMCODEC_VNNI_INLINE

namespace lmcodec {
namespace {

using F = __m512;
using I = __m512i;
constexpr int kLanes = 16;
constexpr int kQueryOffset = 128;
// How far ahead keys (blocks) and values (bytes) are fetched: a step streams them from memory, a few KB a microsecond.
constexpr int kKeysAhead = 12;
constexpr int kAhead = 12288;

LMCODEC_LANE F load(const float* from) { return _mm512_loadu_ps(from); }
LMCODEC_LANE I load(const std::int32_t* from) { return _mm512_loadu_si512(from); }
LMCODEC_LANE void store(float* to, F v) { _mm512_storeu_ps(to, v); }
LMCODEC_LANE void store(std::int32_t* to, I v) { _mm512_storeu_si512(to, v); }
LMCODEC_LANE F set(float v) { return _mm512_set1_ps(v); }
LMCODEC_LANE I set(std::int32_t v) { return _mm512_set1_epi32(v); }
LMCODEC_LANE F add(F a, F b) { return _mm512_add_ps(a, b); }
LMCODEC_LANE F sub(F a, F b) { return _mm512_sub_ps(a, b); }
LMCODEC_LANE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
LMCODEC_LANE F div(F a, F b) { return _mm512_div_ps(a, b); }
LMCODEC_LANE F smaller(F a, F b) { return _mm512_min_ps(a, b); }
LMCODEC_LANE F larger(F a, F b) { return _mm512_max_ps(a, b); }
LMCODEC_LANE F magnitude(F v) { return _mm512_abs_ps(v); }
LMCODEC_LANE F zero_below(F v, float least) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(magnitude(v), set(least), _CMP_GE_OQ), v);
}
LMCODEC_LANE F where_negative(F x, F yes, F no) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ), no, yes);
}
LMCODEC_LANE I nearest(F v) { return _mm512_cvtps_epi32(v); }
LMCODEC_LANE F to_float(I v) { return _mm512_cvtepi32_ps(v); }
LMCODEC_LANE F power_of_two(I n) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, set(127)), 23));
}
LMCODEC_LANE float square_root(float v) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(v))); }
LMCODEC_LANE float reduce_max(F v) { return _mm512_reduce_max_ps(v); }
LMCODEC_LANE std::int32_t reduce_max(I v) { return _mm512_reduce_max_epi32(v); }
// Lanes of up to 2^31, as a sum of 64 bits.
LMCODEC_LANE std::int64_t reduce_add(I v) {
  return _mm512_reduce_add_epi64(_mm512_add_epi64(_mm512_cvtepu32_epi64(_mm512_castsi512_si256(v)),
                                                  _mm512_cvtepu32_epi64(_mm512_extracti64x4_epi64(v, 1))));
}
// The upper half is added to the lower one until one lane is left.
LMCODEC_LANE float fold(F v) {
  v = add(v, _mm512_shuffle_f32x4(v, v, 0x4E));
  v = add(v, _mm512_shuffle_f32x4(v, v, 0xB1));
  v = add(v, _mm512_permute_ps(v, 0x4E));
  return _mm512_cvtss_f32(add(v, _mm512_permute_ps(v, 0xB1)));
}
// Pairs (a, b) that are 1, 2, ... n / 2 lanes apart become (a + b, a - b).
LMCODEC_LANE F butterflies(F v, int n) {
  F other = _mm512_permute_ps(v, 0xB1);
  v = _mm512_mask_sub_ps(add(other, v), 0xAAAA, other, v);
  if (n < 4) return v;
  other = _mm512_permute_ps(v, 0x4E);
  v = _mm512_mask_sub_ps(add(other, v), 0xCCCC, other, v);
  if (n < 8) return v;
  other = _mm512_shuffle_f32x4(v, v, 0xB1);
  v = _mm512_mask_sub_ps(add(other, v), 0xF0F0, other, v);
  if (n < 16) return v;
  other = _mm512_shuffle_f32x4(v, v, 0x4E);
  return _mm512_mask_sub_ps(add(other, v), 0xFF00, other, v);
}
LMCODEC_LANE void store_codes(std::uint8_t* to, I v, int offset) {
  avx512::store_bytes(to, _mm512_add_epi32(v, set(offset)));
}
LMCODEC_LANE I imax(I a, I b) { return _mm512_max_epi32(a, b); }
LMCODEC_LANE I isub(I a, I b) { return _mm512_sub_epi32(a, b); }
LMCODEC_LANE I iadd(I a, I b) { return _mm512_add_epi32(a, b); }
LMCODEC_LANE void store_words(std::uint16_t* to, I v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(v));
}

// Of n shares (t * by) >> 16, as two bytes each, and their sum. `bits` of a block: 1 if any is not 0, and 2 if any is above
// 255.
#define LMCODEC_OWN_SPLIT
LMCODEC_BODY std::int32_t split_shares(const std::uint16_t* shares, int n, std::uint32_t by, std::uint8_t* low,
                                       std::uint8_t* high, std::uint8_t* bits) {
  const __m512i factor = _mm512_set1_epi16(static_cast<short>(by)), ones = _mm512_set1_epi16(1);
  __m512i of = _mm512_setzero_si512();
  for (int i = 0; i < n; i += 2 * kSlots) {
    const __mmask32 some = n - i >= 2 * kSlots ? 0xFFFFFFFF : 0xFFFF;
    const __m512i p = _mm512_mulhi_epu16(_mm512_maskz_loadu_epi16(some, shares + i), factor);
    const __m512i upper = _mm512_srli_epi16(p, 8);
    of = _mm512_add_epi32(of, _mm512_madd_epi16(p, ones));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(low + i), _mm512_cvtepi16_epi8(p));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(high + i), _mm512_cvtepi16_epi8(upper));
    const std::uint32_t any = _mm512_test_epi16_mask(p, p), large = _mm512_test_epi16_mask(upper, upper);
    bits[i / kSlots] = static_cast<std::uint8_t>(((any & 0xFFFF) != 0) | ((large & 0xFFFF) != 0) << 1);
    bits[i / kSlots + 1] = static_cast<std::uint8_t>((any >> 16 != 0) | (large >> 16 != 0) << 1);
  }
  return _mm512_reduce_add_epi32(of);
}

// 2^24 * 2^(-below / 256), rounded down as FORMAT.md section 6.2 says. A permute takes the lower 4 bits of its indices; a
// shift by 32 or more gives 0.
struct Exp2 {
  __m512i coarse, fine;
  LMCODEC_LANE explicit Exp2(const NetworkTables& tables)
      : coarse(_mm512_loadu_si512(tables.exp2_coarse)), fine(_mm512_loadu_si512(tables.exp2_fine)) {}
  LMCODEC_LANE I operator()(I below) const {
    const __m512i c = _mm512_permutexvar_epi32(_mm512_srli_epi32(below, 4), coarse);
    const __m512i f = _mm512_permutexvar_epi32(below, fine);
    return _mm512_srlv_epi32(_mm512_srli_epi32(_mm512_mullo_epi32(c, f), 7), _mm512_srli_epi32(below, 8));
  }
};

// kFetches: as many bytes are fetched from `ahead` on as there are of keys.
template <int kHeads, int kBlocks, bool kFetches>
LMCODEC_LANE void dots_of(const std::uint8_t* q, int width, const std::int8_t* key, const std::int32_t* key_sum,
                          std::int32_t* out, std::size_t stride, const std::int8_t* ahead) {
  __m512i acc[kHeads][kBlocks];
  LMCODEC_UNROLL
  for (int z = 0; z < kBlocks; ++z) {
    LMCODEC_UNROLL
    for (int h = 0; h < kHeads; ++h) acc[h][z] = load(key_sum + z * kSlots);
  }
  for (int i = 0; i < width; i += kQuad, key += kSlots * kQuad, ahead += kFetches ? kSlots * kQuad : 0) {
    __m512i k[kBlocks];
    LMCODEC_UNROLL
    for (int z = 0; z < kBlocks; ++z) {
      k[z] = _mm512_loadu_si512(key + z * kSlots * width);
      if (kBlocks > 1)
        _mm_prefetch(reinterpret_cast<const char*>(key) + kKeysAhead * (kSlots * width) + z * kSlots * width,
                     _MM_HINT_T0);
      if (kFetches) body::fetch(ahead + z * kSlots * width);
    }
    LMCODEC_UNROLL
    for (int h = 0; h < kHeads; ++h) {
      std::int32_t quad;
      std::memcpy(&quad, q + h * width + i, sizeof quad);
      const __m512i a = set(quad);
      LMCODEC_UNROLL
      for (int z = 0; z < kBlocks; ++z) acc[h][z] = _mm512_dpbusd_epi32(acc[h][z], a, k[z]);
    }
  }
  LMCODEC_UNROLL
  for (int h = 0; h < kHeads; ++h) {
    LMCODEC_UNROLL
    for (int z = 0; z < kBlocks; ++z) store(out + static_cast<std::size_t>(h) * stride + z * kSlots, acc[h][z]);
  }
}

template <int kHeads, bool kFetches>
LMCODEC_VNNI void dots_of_heads(const std::uint8_t* q, int width, const std::int8_t* key, int n_block,
                                const std::int32_t* key_sum, std::int32_t* out, std::size_t stride,
                                const std::int8_t* ahead) {
  constexpr int kBlocks = kHeads > 6 ? 3 : 4;  // in 24 registers
  int block = 0;
  for (; block + kBlocks <= n_block; block += kBlocks, ahead += kFetches ? kBlocks * kSlots * width : 0)
    dots_of<kHeads, kBlocks, kFetches>(q, width, key + block * kSlots * width, key_sum + block * kSlots,
                                       out + block * kSlots, stride, ahead);
  for (; block < n_block; ++block, ahead += kFetches ? kSlots * width : 0)
    dots_of<kHeads, 1, kFetches>(q, width, key + block * kSlots * width, key_sum + block * kSlots, out + block * kSlots,
                                 stride, ahead);
}

// Scalar products of the queries with the keys of some blocks; what begins at `ahead` is fetched unless that is null.
inline void dots(const std::uint8_t* q, int n_head, int width, const std::int8_t* key, int n_block,
                 const std::int32_t* key_sum, std::int32_t* out, std::size_t stride, const std::int8_t* ahead) {
  constexpr decltype(&dots_of_heads<1, false>) kDots[2][kQueriesAtOnce] = {
      {dots_of_heads<1, false>, dots_of_heads<2, false>, dots_of_heads<3, false>, dots_of_heads<4, false>,
       dots_of_heads<5, false>, dots_of_heads<6, false>, dots_of_heads<7, false>, dots_of_heads<8, false>},
      {dots_of_heads<1, true>, dots_of_heads<2, true>, dots_of_heads<3, true>, dots_of_heads<4, true>,
       dots_of_heads<5, true>, dots_of_heads<6, true>, dots_of_heads<7, true>, dots_of_heads<8, true>}};
  kDots[ahead ? 1 : 0][n_head - 1](q, width, key, n_block, key_sum, out, stride, ahead);
}

template <int kHeads, int kVectors>
LMCODEC_VNNI void weigh_some(const std::uint8_t* p, std::size_t stride, const BlockPlace* places, int n_place,
                             const std::int8_t* value, int width, std::int32_t* mean) {
  __m512i acc[kHeads][kVectors];
  LMCODEC_UNROLL
  for (int h = 0; h < kHeads; ++h) {
    LMCODEC_UNROLL
    for (int z = 0; z < kVectors; ++z) acc[h][z] = load(mean + h * width + 16 * z);
  }
  for (int i = 0; i < n_place; ++i) {
    const std::int8_t* v = value + std::ptrdiff_t{places[i].block} * kSlots * width;
    const std::uint8_t* from = p + places[i].at * kSlots;
    for (int quad = 0; quad < kSlots; quad += kQuad, v += kQuad * width) {
      __m512i values[kVectors];
      LMCODEC_UNROLL
      for (int z = 0; z < kVectors; ++z) {
        values[z] = _mm512_loadu_si512(v + 64 * z);
        _mm_prefetch(reinterpret_cast<const char*>(v) + kAhead + 64 * z, _MM_HINT_T0);
      }
      LMCODEC_UNROLL
      for (int h = 0; h < kHeads; ++h) {
        std::int32_t four;
        std::memcpy(&four, from + static_cast<std::size_t>(h) * stride + static_cast<std::size_t>(quad), sizeof four);
        const __m512i a = set(four);
        LMCODEC_UNROLL
        for (int z = 0; z < kVectors; ++z) acc[h][z] = _mm512_dpbusd_epi32(acc[h][z], a, values[z]);
      }
    }
  }
  LMCODEC_UNROLL
  for (int h = 0; h < kHeads; ++h) {
    LMCODEC_UNROLL
    for (int z = 0; z < kVectors; ++z) store(mean + h * width + 16 * z, acc[h][z]);
  }
}

template <int kVectors>
inline void weigh_width(const std::uint8_t* p, std::size_t stride, int n_head, const BlockPlace* places, int n_place,
                        const std::int8_t* value, int width, std::int32_t* mean) {
  constexpr decltype(&weigh_some<1, 1>) kWeigh[kQueriesAtOnce] = {
      weigh_some<1, kVectors>, weigh_some<2, kVectors>, weigh_some<3, kVectors>, weigh_some<4, kVectors>,
      weigh_some<5, kVectors>, weigh_some<6, kVectors>, weigh_some<7, kVectors>, weigh_some<8, kVectors>};
  kWeigh[n_head - 1](p, stride, places, n_place, value, width, mean);
}

// Adds to the queries' means the values of some blocks, times bytes of probabilities.
inline void weigh_values(const std::uint8_t* p, std::size_t stride, int n_head, const BlockPlace* places, int n_place,
                         const std::int8_t* value, int width, std::int32_t* mean) {
  int i = 0;
  if (n_head <= 6)  // 24 registers of sums
    for (; i + 64 <= width; i += 64)
      weigh_width<4>(p, stride, n_head, places, n_place, value + i * kQuad, width, mean + i);
  for (; i + 32 <= width; i += 32)
    weigh_width<2>(p, stride, n_head, places, n_place, value + i * kQuad, width, mean + i);
  for (; i < width; i += 16) weigh_width<1>(p, stride, n_head, places, n_place, value + i * kQuad, width, mean + i);
}

#include "transformer_body.h"

constexpr TransformerKernels kKernels = kernels("avx512vnni");

}  // namespace

const TransformerKernels* transformer_kernels_avx512() { return &kKernels; }

}  // namespace lmcodec

#else

namespace lmcodec {
const TransformerKernels* transformer_kernels_avx512() { return nullptr; }
}  // namespace lmcodec

#endif
