// Small parts of the tables that are addressed by hashes.
#pragma once

#include <cstdint>

namespace lmcodec {

constexpr std::uint32_t kMix32First = 0x2C1B3C6Du, kMix32Second = 0x297A2D39u;

inline std::uint32_t mix32(std::uint32_t h) {
  h = (h ^ h >> 15) * kMix32First;
  h = (h ^ h >> 12) * kMix32Second;
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
