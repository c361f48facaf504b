#include "logistic.h"

namespace lmcodec {
namespace {

// round(2^32 * e^-k), k = 0 to 12.
constexpr std::uint64_t kWhole[13] = {4294967296u, 1580030169u, 581260615u, 213833830u, 78665070u, 28939262u,
                                      10646160u,   3916503u,    1440801u,   530041u,    194991u,  71733u,
                                      26389u};
// round(2^32 * e^(-1/256)).
constexpr std::uint64_t kStep = 4278222805u;

// 2^32 * e^(-x / 256) for x = 0 to kStretchMax, rounded down.
std::uint64_t exp_minus(int x) {
  std::uint64_t fraction = std::uint64_t{1} << 32;
  for (int i = 0; i < (x & 255); ++i) fraction = (fraction * kStep) >> 32;  // < 2^64
  return (kWhole[x >> 8] * fraction) >> 32;
}

}  // namespace

Logistic::Logistic() {
  // 1 / (1 + e^-x) of 22 bits; only the lower half (x <= 0) is computed, so that both sides mirror exactly.
  std::uint32_t lower22[kStretchMax + 1];  // index -x
  for (int x = 0; x <= kStretchMax; ++x) {
    const std::uint64_t e = exp_minus(x);
    lower22[x] = static_cast<std::uint32_t>((e << kProbabilityBits) / ((std::uint64_t{1} << 32) + e));
    std::uint32_t p = static_cast<std::uint32_t>((e << 16) / ((std::uint64_t{1} << 32) + e));
    if (p < 1) p = 1;
    squash16[kStretchMax - x] = static_cast<std::uint16_t>(p);
    squash16[kStretchMax + x] = static_cast<std::uint16_t>(65536 - p);
  }
  squash16[kStretchMax] = 32768;
  // stretch inverts squash: the x whose squash comes nearest from below to the middle of the cell.
  for (std::uint32_t cell = 0; cell < 2048; ++cell) {
    int x = 0;
    while (x < kStretchMax && lower22[x + 1] >= cell * 1024 + 512) ++x;
    stretch12[cell] = static_cast<std::int16_t>(-x);
    stretch12[4095 - cell] = static_cast<std::int16_t>(x);
  }
}

const Logistic& logistic() {
  static const Logistic tables;
  return tables;
}

}  // namespace lmcodec
