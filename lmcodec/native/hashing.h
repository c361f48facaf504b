// Small parts of the tables that are addressed by hashes.
#pragma once

#include <cstdint>

namespace lmcodec {

inline std::uint32_t mix32(std::uint32_t h) {
  h = (h ^ h >> 15) * 0x2C1B3C6Du;
  h = (h ^ h >> 12) * 0x297A2D39u;
  return h ^ h >> 15;
}

// A hash of one value more.
inline std::uint64_t fold(std::uint64_t x, std::uint32_t value) {
  x = (x + value + 1) * 0xD6E8FEB86659FD93ull;
  return x ^ x >> 32;
}

inline void prefetch(const void* address) {
#if defined(__GNUC__) || defined(__clang__)
  __builtin_prefetch(address, 1);
#else
  (void)address;
#endif
}

}  // namespace lmcodec
