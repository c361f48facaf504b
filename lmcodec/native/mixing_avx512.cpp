// AVX-512: sixteen lanes, four sets of weights at a time.
#include "mixing.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#include "cpu.h"
#include "mixing_avx2.h"

#if defined(__clang__)  // which takes vectors as wide as they are written
#define LMCODEC_AVX512_TARGET target("avx512f,avx512bw,avx512dq,avx512vl")
#else
#define LMCODEC_AVX512_TARGET target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#endif
#define LMCODEC_AVX512 __attribute__((LMCODEC_AVX512_TARGET))
#define LMCODEC_AVX512_INLINE inline __attribute__((always_inline, LMCODEC_AVX512_TARGET))

namespace lmcodec {
namespace {

using namespace avx2;

LMCODEC_AVX512 void find_rows(const std::uint32_t* base, const RowRules& rules, std::uint32_t c0, std::uint32_t n_bit,
                              int n, std::uint32_t* offset) {
  body::find_rows(base, rules, c0, n_bit, n, offset);
}

LMCODEC_AVX512 void mix_hashes(const std::uint32_t* hash, std::uint32_t added, int n, std::uint32_t* mixed) {
  body::mix_hashes(hash, added, n, mixed);
}

// Sums of four vectors' lanes.
LMCODEC_AVX512_INLINE __m128i sums_of(__m512i a, __m512i b, __m512i c, __m512i d) {
  const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
  const __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
  const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
  return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

LMCODEC_AVX512 std::int32_t mix(const std::int32_t* x, int n, int n_set, const Logistic& logistic,
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
  const std::int32_t stretch = body::clamped_stretch(total >> 8);
  mixture.p = logistic.squash(stretch);
  // One by one: few of sixteen are wanted, and gathering takes longer.
  for (int k = 0; k < n_set; ++k) mixture.layer_p[k] = logistic.squash(mixture.layer[k]);
  return stretch;
}

LMCODEC_AVX512_INLINE void move_weights(const std::int32_t* x, std::int32_t e, std::int32_t* w, int n) {
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

LMCODEC_AVX512 void learn(const std::int32_t* x, int n, int n_set, int bit, int rate, int final_rate,
                          const Mixture& mixture) {
  const __m512i target = _mm512_set1_epi32(bit << 16), small = _mm512_set1_epi32(body::kSmallError);
  const __m512i distance = _mm512_sub_epi32(target, _mm512_load_si512(mixture.layer_p));
  const __m512i errors = _mm512_srai_epi32(_mm512_mullo_epi32(distance, _mm512_set1_epi32(rate)), 4);
  alignas(64) std::int32_t e[kMixerSets];
  _mm512_store_si512(e, errors);
  const bool all = n_set * n <= kAlwaysMoved;
  unsigned moved = (1u << n_set) - 1;
  if (!all) moved &= _mm512_cmpgt_epi32_mask(_mm512_abs_epi32(errors), small);
  for (; moved; moved &= moved - 1) {
    const int k = __builtin_ctz(moved);
    move_weights(x, e[k], mixture.weights[k], n & ~15);
  }
  const std::int32_t final_error = body::error(bit, mixture.p, final_rate);
  if (all || final_error > body::kSmallError || final_error < -body::kSmallError)
    move_weights(mixture.layer, final_error, mixture.final_weights, kMixerSets);
}

LMCODEC_AVX512_INLINE __m512i sixteen_at(std::uint32_t* const* at) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(eight_at(at)), eight_at(at + 8), 1);
}

LMCODEC_AVX512 void read_cells(const Cells& cells, const std::int16_t* stretch, std::uint32_t* value,
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

LMCODEC_AVX512 void train_cells(const Cells& cells, const std::uint32_t* value, int bit) {
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
}  // namespace

int add_avx512_mixing(MixingKernels* kernels) {
  const Cpu& has = cpu();
  if (!has.avx512f || !has.avx512bw || !has.avx512dq || !has.avx512vl) return 0;
  *kernels = {"avx512", mix, learn, find_rows, mix_hashes, read_cells, train_cells};
  return 1;
}

}  // namespace lmcodec

#else

namespace lmcodec {
int add_avx512_mixing(MixingKernels*) { return 0; }
}  // namespace lmcodec

#endif
