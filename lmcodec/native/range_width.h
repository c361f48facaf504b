// How wide the range coder's interval is while it codes: what its words cost, the rounding of widths included.
// FORMAT.md section 4.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lmcodec {

// Writes the width before and after each of n decisions, p16 as RangeDecoder has it. range: the width so far, at least 2^32;
// returns that after the last one.
inline std::uint64_t range_widths(const std::uint8_t* bits, const std::uint16_t* p16, std::size_t n, std::uint64_t range,
                                  std::uint64_t* before, std::uint64_t* after) {
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint64_t scale = range >> 24;
    const std::uint32_t one = 256u * p16[i] + (p16[i] < 32768 ? 1 : 0);  // in 2^24ths
    before[i] = range;
    after[i] = range = scale * (bits[i] ? one : (1u << 24) - one);
    if (range < (std::uint64_t{1} << 32)) range <<= 32;
  }
  return range;
}

}  // namespace lmcodec
