// How wide the range coder's interval is while it codes: the parts that it is cut into, and what its words cost, the rounding
// of widths included. FORMAT.md section 4.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lmcodec {

// Of a 1 in 2^24ths of the interval; a 0 has the rest. p16: the probability of a 1 in 65536ths, 1 to 65535.
inline std::uint32_t size_of_one(std::uint32_t p16) { return 256 * p16 + (p16 < 32768 ? 1 : 0); }

// Writes the width before and after each of n decisions. range: the width so far, at least 2^32;
// returns that after the last one.
inline std::uint64_t range_widths(const std::uint8_t* bits, const std::uint16_t* p16, std::size_t n, std::uint64_t range,
                                  std::uint64_t* before, std::uint64_t* after) {
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint64_t scale = range >> 24;
    const std::uint32_t one = size_of_one(p16[i]);
    before[i] = range;
    after[i] = range = scale * (bits[i] ? one : (1u << 24) - one);
    if (range < (std::uint64_t{1} << 32)) range <<= 32;
  }
  return range;
}

}  // namespace lmcodec
