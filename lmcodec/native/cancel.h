// Giving up a block: one thread sets a flag, the loops of another look at it and throw.
#pragma once

#include <atomic>
#include <cstddef>
#include <exception>
#include <memory>

namespace lmcodec {

// What a loop throws that was told to give up.
class Cancelled : public std::exception {
 public:
  const char* what() const noexcept override { return "the work was cancelled"; }
};

class Cancel {
 public:
  void set() noexcept { set_.store(true, std::memory_order_relaxed); }
  bool is_set() const noexcept { return set_.load(std::memory_order_relaxed); }

 private:
  std::atomic<bool> set_{false};
};

// How many decisions a loop takes between two looks: some tens of microseconds.
constexpr std::size_t kLookEvery = 256;

// What a loop holds: a flag that others hold too, or none.
using CancelRef = std::shared_ptr<const Cancel>;

inline void throw_if_set(const CancelRef& cancel) {
  if (cancel && cancel->is_set()) throw Cancelled();
}

}  // namespace lmcodec
