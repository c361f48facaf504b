// What the processor and the operating system can do, where the kernel has code for several instruction sets.
#pragma once

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#include <cpuid.h>

namespace lmcodec {

struct Cpu {
  bool avx2 = false, avx512f = false, avx512dq = false, avx512bw = false, avx512vl = false, avx512vnni = false;
};

// From the processor's own words. The compilers' __builtin_cpu_supports says the same, but where clang takes the place of
// MSVC (clang-cl) it needs a library that is not linked.
inline Cpu ask_cpu() {
  Cpu cpu;
  unsigned a, b, c, d;
  constexpr unsigned kOsXsave = 1u << 27, kAvx = 1u << 28;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & kOsXsave) || !(c & kAvx)) return cpu;
  unsigned low, high;  // of XCR0: the registers that the operating system keeps
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0u));
  constexpr unsigned kYmm = 0x06;
  if ((low & kYmm) != kYmm || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return cpu;
  cpu.avx2 = b >> 5 & 1;
#if defined(__APPLE__)
  const bool zmm = true;  // kept from their first use on
#else
  constexpr unsigned kZmm = 0xE6;
  const bool zmm = (low & kZmm) == kZmm;
#endif
  cpu.avx512f = zmm && (b >> 16 & 1);
  cpu.avx512dq = zmm && (b >> 17 & 1);
  cpu.avx512bw = zmm && (b >> 30 & 1);
  cpu.avx512vl = zmm && (b >> 31 & 1);
  cpu.avx512vnni = zmm && (c >> 11 & 1);
  return cpu;
}

inline const Cpu& cpu() {
  static const Cpu known = ask_cpu();
  return known;
}

}  // namespace lmcodec

#endif
