// What classes with a second thread share.
#pragma once

#include <atomic>
#include <memory>
#include <system_error>

#if defined(_MSC_VER) && (defined(_M_X64) || defined(_M_IX86))
#include <intrin.h>
#endif

namespace lmcodec {

// Between two looks at what another thread writes: the core rests a little.
inline void pause() {
#if (defined(__GNUC__) || defined(__clang__)) && (defined(__x86_64__) || defined(__i386__))
  __builtin_ia32_pause();
#elif (defined(__GNUC__) || defined(__clang__)) && defined(__aarch64__)
  __asm__ volatile("isb" : : : "memory");
#elif defined(_MSC_VER) && (defined(_M_X64) || defined(_M_IX86))
  _mm_pause();
#else
  std::atomic_signal_fence(std::memory_order_seq_cst);
#endif
}

// An object with a thread of its own, if one is wanted and can be had.
template <typename Threaded>
std::unique_ptr<Threaded> with_thread(bool wanted) {
  if (!wanted) return nullptr;
  try {
    return std::make_unique<Threaded>();
  } catch (const std::system_error&) {
    return nullptr;
  }
}

}  // namespace lmcodec
