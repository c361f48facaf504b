// AVX2: eight lanes. Mixing and learning are the portable code, which the compiler turns into such vectors.
#include "mixing.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#include "cpu.h"
#include "mixing_avx2.h"

namespace lmcodec {
namespace {

using namespace avx2;

LMCODEC_AVX2 std::int32_t mix(const std::int32_t* x, int n, int n_set, const Logistic& logistic, Mixture& mixture) {
  return body::mix(x, n, n_set, logistic, mixture);
}

LMCODEC_AVX2 void learn(const std::int32_t* x, int n, int n_set, int bit, int rate, int final_rate,
                        const Mixture& mixture) {
  body::learn(x, n, n_set, bit, rate, final_rate, mixture);
}

LMCODEC_AVX2 void find_rows(const std::uint32_t* base, const RowRules& rules, std::uint32_t c0, std::uint32_t n_bit, int n,
                            std::uint32_t* offset) {
  body::find_rows(base, rules, c0, n_bit, n, offset);
}

LMCODEC_AVX2 void mix_hashes(const std::uint32_t* hash, std::uint32_t added, int n, std::uint32_t* mixed) {
  body::mix_hashes(hash, added, n, mixed);
}

LMCODEC_AVX2 void read_cells(const Cells& cells, const std::int16_t* stretch, std::uint32_t* value,
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
LMCODEC_AVX2 void train_cells(const Cells& cells, const std::uint32_t* value, int bit) {
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

}  // namespace

int add_avx2_mixing(MixingKernels* kernels) {
  if (!cpu().avx2) return 0;
  *kernels = {"avx2", mix, learn, find_rows, mix_hashes, read_cells, train_cells};
  return 1;
}

}  // namespace lmcodec

#else

namespace lmcodec {
int add_avx2_mixing(MixingKernels*) { return 0; }
}  // namespace lmcodec

#endif
