#include "mixing.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // of GCC's own headers (bug 105593)
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#endif

#include "counter.h"
#include "cpu.h"
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

void read_cells_scalar(const Cells& cells, const std::int16_t* stretch, std::uint32_t* value, std::int32_t* x) {
  for (int i = 0; i < cells.n; ++i) {
    const std::uint32_t p = (value[i] = *cells.at[i]) >> 10;
    const std::int32_t sign = cells.opposite[i] | 1;
    x[2 * i] = sign * stretch[p >> 10];
    x[2 * i + 1] = sign * ((static_cast<std::int32_t>(p) - static_cast<std::int32_t>(kHalf22)) >> 11);
  }
}
void train_cells_scalar(const Cells& cells, const std::uint32_t*, int bit) {
  for (int i = 0; i < cells.n; ++i)
    if (cells.learns[i]) train_counter(*cells.at[i], bit ^ (cells.opposite[i] & 1), cells.limit[i]);
}

#define LMCODEC_ROWS(isa, attributes)                                                                                 \
  attributes void find_rows_##isa(const std::uint32_t* base, const RowRules& rules, std::uint32_t c0,                 \
                                  std::uint32_t n_bit, int n, std::uint32_t* offset) {                                \
    find_rows_body(base, rules, c0, n_bit, n, offset);                                                                \
  }                                                                                                                   \
  attributes void mix_hashes_##isa(const std::uint32_t* hash, std::uint32_t added, int n, std::uint32_t* mixed) {     \
    mix_hashes_body(hash, added, n, mixed);                                                                           \
  }

#define LMCODEC_MIXING(isa, attributes)                                                                               \
  attributes std::int32_t mix_##isa(const std::int32_t* x, int n, int n_set, const Logistic& logistic,                \
                                    Mixture& mixture) {                                                               \
    return mix_body(x, n, n_set, logistic, mixture);                                                                  \
  }                                                                                                                   \
  attributes void learn_##isa(const std::int32_t* x, int n, int n_set, int bit, int rate, int final_rate,             \
                              const Mixture& mixture) {                                                               \
    learn_body(x, n, n_set, bit, rate, final_rate, mixture);                                                          \
  }

LMCODEC_ROWS(scalar, )
LMCODEC_MIXING(scalar, )

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define LMCODEC_AVX2 __attribute__((target("avx2")))
#if defined(__clang__)  // which takes vectors as wide as they are written
#define LMCODEC_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#else
#define LMCODEC_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")))
#endif

LMCODEC_ROWS(avx2, LMCODEC_AVX2)
LMCODEC_MIXING(avx2, LMCODEC_AVX2)

LMCODEC_ROWS(avx512, LMCODEC_AVX512)

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
  std::int32_t total;
  if (n_set <= 4) {  // as it is with few contexts: a shorter way for what everything waits for
    const __m128i w = _mm_loadu_si128(reinterpret_cast<const __m128i*>(mixture.final_weights));
    const __m128i weighed = _mm_srai_epi32(_mm_mullo_epi32(_mm512_castsi512_si128(layer), w), 8);
    const __m128i pairs = _mm_add_epi32(weighed, _mm_shuffle_epi32(weighed, 0x4e));
    total = _mm_cvtsi128_si32(_mm_add_epi32(pairs, _mm_shuffle_epi32(pairs, 0xb1)));
  } else {
    const __m512i weighed = _mm512_mullo_epi32(layer, _mm512_loadu_si512(mixture.final_weights));
    total = _mm512_reduce_add_epi32(_mm512_srai_epi32(weighed, 8));
  }
  const std::int32_t stretch = clamped_stretch(total >> 8);
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

// Up to so many weights, all are moved: jumps past the sets of small errors would take longer.
constexpr int kAlwaysMoved = 128;

LMCODEC_AVX512 void learn_avx512(const std::int32_t* x, int n, int n_set, int bit, int rate, int final_rate,
                                 const Mixture& mixture) {
  const __m512i target = _mm512_set1_epi32(bit << 16), small = _mm512_set1_epi32(kSmallError);
  const __m512i distance = _mm512_sub_epi32(target, _mm512_load_si512(mixture.layer_p));
  const __m512i errors = _mm512_srai_epi32(_mm512_mullo_epi32(distance, _mm512_set1_epi32(rate)), 4);
  alignas(64) std::int32_t e[kMixerSets];
  _mm512_store_si512(e, errors);
  const bool all = n_set * n <= kAlwaysMoved;
  unsigned moved = (1u << n_set) - 1;
  if (!all) moved &= _mm512_cmpgt_epi32_mask(_mm512_abs_epi32(errors), small);
  for (; moved; moved &= moved - 1) {
    const int k = __builtin_ctz(moved);
    move_weights_avx512(x, e[k], mixture.weights[k], n & ~15);
  }
  const std::int32_t final_error = error(bit, mixture.p, final_rate);
  if (all || final_error > kSmallError || final_error < -kSmallError)
    move_weights_avx512(mixture.layer, final_error, mixture.final_weights, kMixerSets);
}

// Loads at addresses are put together one by one: a gather takes twice as long.
LMCODEC_AVX2 LMCODEC_INLINE __m128i four_of(std::uint32_t a, std::uint32_t b, std::uint32_t c, std::uint32_t d) {
  const __m128i ab = _mm_insert_epi32(_mm_cvtsi32_si128(static_cast<int>(a)), static_cast<int>(b), 1);
  const __m128i cd = _mm_insert_epi32(_mm_cvtsi32_si128(static_cast<int>(c)), static_cast<int>(d), 1);
  return _mm_unpacklo_epi64(ab, cd);
}

LMCODEC_AVX2 LMCODEC_INLINE __m256i eight_at(std::uint32_t* const* at) {
  const __m128i low = four_of(*at[0], *at[1], *at[2], *at[3]), high = four_of(*at[4], *at[5], *at[6], *at[7]);
  return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}

// The stretches of eight counters.
LMCODEC_AVX2 LMCODEC_INLINE __m128i stretches_at(std::uint32_t* const* at, const std::int16_t* stretch) {
  const auto of = [at, stretch](int k) { return stretch[*at[k] >> 20]; };
  const __m128i low = _mm_insert_epi16(_mm_cvtsi32_si128(of(0)), of(1), 1);
  const __m128i high = _mm_insert_epi16(_mm_cvtsi32_si128(of(4)), of(5), 1);
  return _mm_unpacklo_epi64(_mm_insert_epi16(_mm_insert_epi16(low, of(2), 2), of(3), 3),
                            _mm_insert_epi16(_mm_insert_epi16(high, of(6), 2), of(7), 3));
}

LMCODEC_AVX2 LMCODEC_INLINE __m256i turned(__m256i v, __m256i opposite) {
  return _mm256_sub_epi32(_mm256_xor_si256(v, opposite), opposite);
}

LMCODEC_AVX2 void read_cells_avx2(const Cells& cells, const std::int16_t* stretch, std::uint32_t* value,
                                  std::int32_t* x) {
  const __m256i half = _mm256_set1_epi32(static_cast<int>(kHalf22));
  for (int i = 0; i < cells.n; i += 8) {
    const __m256i counter = eight_at(cells.at + i);
    _mm256_store_si256(reinterpret_cast<__m256i*>(value + i), counter);
    const __m256i opposite = _mm256_load_si256(reinterpret_cast<const __m256i*>(cells.opposite + i));
    const __m256i s = turned(_mm256_cvtepi16_epi32(stretches_at(cells.at + i, stretch)), opposite);
    const __m256i distance = _mm256_srai_epi32(_mm256_sub_epi32(_mm256_srli_epi32(counter, 10), half), 11);
    const __m256i linear = turned(distance, opposite);
    const __m256i low = _mm256_unpacklo_epi32(s, linear), high = _mm256_unpackhi_epi32(s, linear);
    const __m256i first = _mm256_permute2x128_si256(low, high, 0x20), second = _mm256_permute2x128_si256(low, high, 0x31);
    if (i + 8 <= cells.n) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(x + 2 * i), first);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(x + 2 * i + 8), second);
    } else {
      alignas(32) std::int32_t last[16];
      _mm256_store_si256(reinterpret_cast<__m256i*>(last), first);
      _mm256_store_si256(reinterpret_cast<__m256i*>(last + 8), second);
      for (int k = 0; k < 2 * (cells.n - i); ++k) x[2 * i + k] = last[k];
    }
  }
}

// A counter's step, (target - p) * reciprocal >> 16, from 32-bit products: of the difference's upper part, and of its
// lower 16 bits, whose product is below 2^32.
LMCODEC_AVX2 void train_cells_avx2(const Cells& cells, const std::uint32_t* value, int bit) {
  const __m256i ones = _mm256_set1_epi32(-bit), most = _mm256_set1_epi32((1 << kProbabilityBits) - 1);
  for (int i = 0; i < cells.n; i += 8) {
    const __m256i counter =
        value ? _mm256_load_si256(reinterpret_cast<const __m256i*>(value + i)) : eight_at(cells.at + i);
    const __m256i opposite = _mm256_load_si256(reinterpret_cast<const __m256i*>(cells.opposite + i));
    const __m256i target = _mm256_and_si256(_mm256_xor_si256(ones, opposite), most);
    const __m256i count = _mm256_and_si256(counter, _mm256_set1_epi32(static_cast<int>(kCountMask)));
    const __m256i p = _mm256_srli_epi32(counter, 10), difference = _mm256_sub_epi32(target, p);
    const __m256i rate = _mm256_i32gather_epi32(reinterpret_cast<const int*>(kReciprocals.of), count, 4);
    const __m256i upper = _mm256_mullo_epi32(_mm256_srai_epi32(difference, 16), rate);
    const __m256i lower = _mm256_mullo_epi32(_mm256_and_si256(difference, _mm256_set1_epi32(0xffff)), rate);
    const __m256i moved = _mm256_add_epi32(p, _mm256_add_epi32(upper, _mm256_srli_epi32(lower, 16)));
    const __m256i limit = _mm256_load_si256(reinterpret_cast<const __m256i*>(cells.limit + i));
    const __m256i counted = _mm256_min_epi32(_mm256_add_epi32(count, _mm256_set1_epi32(1)), limit);
    const __m256i learned = _mm256_or_si256(_mm256_slli_epi32(moved, 10), counted);
    const __m128i learns = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(cells.learns + i));
    const __m256i stays = _mm256_cmpeq_epi32(_mm256_cvtepu8_epi32(learns), _mm256_setzero_si256());
    alignas(32) std::uint32_t after[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(after), _mm256_blendv_epi8(learned, counter, stays));
    for (int k = 0; k < 8; ++k) *cells.at[i + k] = after[k];
  }
}

LMCODEC_AVX512 LMCODEC_INLINE __m512i sixteen_at(std::uint32_t* const* at) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(eight_at(at)), eight_at(at + 8), 1);
}

LMCODEC_AVX512 void read_cells_avx512(const Cells& cells, const std::int16_t* stretch, std::uint32_t* value,
                                      std::int32_t* x) {
  const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i second = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  const __m512i half = _mm512_set1_epi32(static_cast<int>(kHalf22));
  for (int i = 0; i < cells.n; i += kLanes) {
    const __m512i counter = sixteen_at(cells.at + i);
    _mm512_store_si512(value + i, counter);
    const __m256i near = _mm256_inserti128_si256(_mm256_castsi128_si256(stretches_at(cells.at + i, stretch)),
                                                 stretches_at(cells.at + i + 8, stretch), 1);
    const __m512i opposite = _mm512_load_si512(cells.opposite + i);
    const __m512i s = _mm512_sub_epi32(_mm512_xor_si512(_mm512_cvtepi16_epi32(near), opposite), opposite);
    const __m512i distance = _mm512_srai_epi32(_mm512_sub_epi32(_mm512_srli_epi32(counter, 10), half), 11);
    const __m512i linear = _mm512_sub_epi32(_mm512_xor_si512(distance, opposite), opposite);
    __m512i low = _mm512_permutex2var_epi32(s, first, linear), high = _mm512_permutex2var_epi32(s, second, linear);
    if (i + kLanes > cells.n) {
      // Whole vectors again: what is read as one soon must have been written as one.
      const std::uint32_t written = (1u << 2 * (cells.n - i)) - 1;
      low = _mm512_mask_mov_epi32(_mm512_loadu_si512(x + 2 * i), static_cast<__mmask16>(written), low);
      high = _mm512_mask_mov_epi32(_mm512_loadu_si512(x + 2 * i + 16), static_cast<__mmask16>(written >> 16), high);
    }
    _mm512_storeu_si512(x + 2 * i, low);
    _mm512_storeu_si512(x + 2 * i + 16, high);
  }
}

LMCODEC_AVX512 void train_cells_avx512(const Cells& cells, const std::uint32_t* value, int bit) {
  const __m512i ones = _mm512_set1_epi32(-bit), most = _mm512_set1_epi32((1 << kProbabilityBits) - 1);
  for (int i = 0; i < cells.n; i += kLanes) {
    const __m512i counter = value ? _mm512_load_si512(value + i) : sixteen_at(cells.at + i);
    const __m512i target = _mm512_and_si512(_mm512_xor_si512(ones, _mm512_load_si512(cells.opposite + i)), most);
    const __m512i count = _mm512_and_si512(counter, _mm512_set1_epi32(static_cast<int>(kCountMask)));
    const __m512i p = _mm512_srli_epi32(counter, 10), difference = _mm512_sub_epi32(target, p);
    const __m512i rate = _mm512_i32gather_epi32(count, kReciprocals.of, 4);
    const __m512i upper = _mm512_mullo_epi32(_mm512_srai_epi32(difference, 16), rate);
    const __m512i lower = _mm512_mullo_epi32(_mm512_and_si512(difference, _mm512_set1_epi32(0xffff)), rate);
    const __m512i moved = _mm512_add_epi32(p, _mm512_add_epi32(upper, _mm512_srli_epi32(lower, 16)));
    const __m512i counted =
        _mm512_min_epi32(_mm512_add_epi32(count, _mm512_set1_epi32(1)), _mm512_load_si512(cells.limit + i));
    const __m512i learned = _mm512_or_si512(_mm512_slli_epi32(moved, 10), counted);
    const __m128i learns = _mm_load_si128(reinterpret_cast<const __m128i*>(cells.learns + i));
    alignas(64) std::uint32_t after[kLanes];
    _mm512_store_si512(after, _mm512_mask_mov_epi32(counter, _mm_test_epi8_mask(learns, learns), learned));
    for (int k = 0; k < kLanes; ++k) *cells.at[i + k] = after[k];
  }
}
#endif

struct Available {
  MixingKernels kernels[3];
  int n = 0;
  Available() {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
    const Cpu& has = cpu();
    if (has.avx512f && has.avx512bw && has.avx512dq && has.avx512vl)
      kernels[n++] = {"avx512",          mix_avx512,        learn_avx512,      find_rows_avx512,
                      mix_hashes_avx512, read_cells_avx512, train_cells_avx512};
    if (has.avx2)
      kernels[n++] = {"avx2",          mix_avx2,        learn_avx2,      find_rows_avx2,
                      mix_hashes_avx2, read_cells_avx2, train_cells_avx2};
#endif
    kernels[n++] = {"scalar",          mix_scalar,        learn_scalar,      find_rows_scalar,
                    mix_hashes_scalar, read_cells_scalar, train_cells_scalar};
  }
};

}  // namespace

const MixingKernels* mixing_kernels(int* n) {
  static const Available available;
  *n = available.n;
  return available.kernels;
}

}  // namespace lmcodec
