// The rounding mode and the treatment of subnormal numbers that IEEE 754 begins with: to the nearest, ties to even,
// nothing flushed to zero. They belong to the thread, and other libraries of the process change them: whoever computes
// with floats here sets them first, and gives back what was there.
#pragma once

#include <cfloat>
#include <cstdint>

#if defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>
#elif defined(__aarch64__)
#elif defined(_M_ARM64)
#include <intrin.h>
#else
#include <cfenv>
#endif

namespace lmcodec {

static_assert(FLT_EVAL_METHOD == 0, "floats are computed as binary32, not in wider registers");

#if defined(__x86_64__) || defined(_M_X64)

class FloatControl {
 public:
  FloatControl() : before_(_mm_getcsr()) {
    if ((before_ & ~kRaised) != kDefault) _mm_setcsr(kDefault);
  }
  ~FloatControl() {
    if ((before_ & ~kRaised) != kDefault) _mm_setcsr(before_);
  }
  FloatControl(const FloatControl&) = delete;
  FloatControl& operator=(const FloatControl&) = delete;

 private:
  static constexpr unsigned kDefault = 0x1F80;  // all exceptions masked, to the nearest, neither FTZ nor DAZ
  static constexpr unsigned kRaised = 0x3F;     // exceptions that have occurred
  const unsigned before_;
};

#elif defined(__aarch64__) || defined(_M_ARM64)

class FloatControl {
 public:
  FloatControl() : before_(get()) {
    if (before_ & kOthers) set(before_ & ~kOthers);
  }
  ~FloatControl() {
    if (before_ & kOthers) set(before_);
  }
  FloatControl(const FloatControl&) = delete;
  FloatControl& operator=(const FloatControl&) = delete;

 private:
  // RMode (22, 23), FZ (24), FZ16 (19), AH (1), FIZ (0), NEP (2): other roundings, flushing, other functions.
  static constexpr std::uint64_t kOthers = 3u << 22 | 1u << 24 | 1u << 19 | 7u;
#if defined(__aarch64__)
  static std::uint64_t get() {
    std::uint64_t word;
    __asm__ volatile("mrs %0, fpcr" : "=r"(word));
    return word;
  }
  static void set(std::uint64_t word) { __asm__ volatile("msr fpcr, %0" : : "r"(word) : "memory"); }
#else
  static std::uint64_t get() { return static_cast<std::uint64_t>(_ReadStatusReg(ARM64_FPCR)); }
  static void set(std::uint64_t word) { _WriteStatusReg(ARM64_FPCR, static_cast<__int64>(word)); }
#endif
  const std::uint64_t before_;
};

#else

class FloatControl {
 public:
  FloatControl() {
    std::fegetenv(&before_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~FloatControl() { std::fesetenv(&before_); }
  FloatControl(const FloatControl&) = delete;
  FloatControl& operator=(const FloatControl&) = delete;

 private:
  std::fenv_t before_;
};

#endif

}  // namespace lmcodec
