// The logistic domain in integers: stretch(p) = ln(p / (1 - p)) in Q8 over +-12, squash its inverse.
// Made from two short tables of integer constants, so that no libm takes part. FORMAT.md section 5.1.
#pragma once

#include <cstdint>

namespace lmcodec {

constexpr int kStretchMax = 12 * 256;       // Q8
constexpr int kProbabilityBits = 22;        // of counters and adaptive maps
constexpr std::uint32_t kHalf22 = 1u << (kProbabilityBits - 1);

struct Logistic {
  std::uint16_t squash16[2 * kStretchMax + 1];  // p of 16 bits, 1 to 65535, for a stretch of x - kStretchMax
  std::int16_t stretch12[4096 + 1] = {};        // Q8, by the upper 12 bits of a 22-bit p; gathers read one more

  Logistic();

  // x: Q8, |x| <= kStretchMax; the result is 1 to 65535.
  std::uint32_t squash(std::int32_t x) const { return squash16[x + kStretchMax]; }
  // p: 0 to 2^22 - 1.
  std::int32_t stretch(std::uint32_t p) const { return stretch12[p >> 10]; }
};

const Logistic& logistic();

}  // namespace lmcodec
