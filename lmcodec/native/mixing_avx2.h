// What the mixer's AVX2 and AVX-512 versions share: loads at addresses. For x86-64 with GCC or Clang alone.
#pragma once

#include "mixing_body.h"

#if defined(__GNUC__) && !defined(__clang__)
// GCC's own header passes results that a full mask hides as undefined operands (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#define LMCODEC_AVX2 __attribute__((target("avx2")))
#define LMCODEC_AVX2_INLINE inline __attribute__((always_inline, target("avx2")))

namespace lmcodec {
namespace avx2 {

// Loads at addresses are put together one by one: a gather takes twice as long.
LMCODEC_AVX2_INLINE __m128i four_of(std::uint32_t a, std::uint32_t b, std::uint32_t c, std::uint32_t d) {
  const __m128i ab = _mm_insert_epi32(_mm_cvtsi32_si128(static_cast<int>(a)), static_cast<int>(b), 1);
  const __m128i cd = _mm_insert_epi32(_mm_cvtsi32_si128(static_cast<int>(c)), static_cast<int>(d), 1);
  return _mm_unpacklo_epi64(ab, cd);
}

LMCODEC_AVX2_INLINE __m256i eight_at(std::uint32_t* const* at) {
  const __m128i low = four_of(*at[0], *at[1], *at[2], *at[3]), high = four_of(*at[4], *at[5], *at[6], *at[7]);
  return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}

// The stretches of eight counters.
LMCODEC_AVX2_INLINE __m128i stretches_at(std::uint32_t* const* at, const std::int16_t* stretch) {
  const auto of = [at, stretch](int k) { return stretch[*at[k] >> 20]; };
  const __m128i low = _mm_insert_epi16(_mm_cvtsi32_si128(of(0)), of(1), 1);
  const __m128i high = _mm_insert_epi16(_mm_cvtsi32_si128(of(4)), of(5), 1);
  return _mm_unpacklo_epi64(_mm_insert_epi16(_mm_insert_epi16(low, of(2), 2), of(3), 3),
                            _mm_insert_epi16(_mm_insert_epi16(high, of(6), 2), of(7), 3));
}

LMCODEC_AVX2_INLINE __m256i turned(__m256i v, __m256i opposite) {
  return _mm256_sub_epi32(_mm256_xor_si256(v, opposite), opposite);
}

}  // namespace avx2
}  // namespace lmcodec
