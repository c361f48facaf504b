// A second thread that takes a part of what one thread does in short loops, of some microseconds each, one soon after
// another: it watches for them without sleeping. It is the Helper's own, or one that waits for the first and lends its
// time. (Worker is for jobs that are worth waking a thread.)
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>

#include "respite.h"
#include "threading.h"

namespace lmcodec {

class Helper {
 public:
  struct Lent {};

  // Throws std::system_error where there can be no further thread.
  Helper() : thread_([this] { serve(); }) {}
  // No thread but those that lend().
  explicit Helper(Lent) : by_lender_(true) {}
  ~Helper() {
    if (by_lender_) return;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    wake_.notify_one();
    thread_.join();
  }
  Helper(const Helper&) = delete;
  Helper& operator=(const Helper&) = delete;

  // Calls work(first, last, by_helper) for ranges that together are [0, n), n > 0: from 0 up here, from n down in the
  // helper at the same time, until they meet. Whoever is late finds less left: a helper that has no processor takes
  // nothing. Returns when all is done. work throws nothing.
  template <typename Work>
  void share(int n, const Work& work) {
    // A third of what is left at a time: large pieces first, small ones where both must meet.
    int first = 0, last = third(static_cast<std::uint32_t>(n));
    if (last == n || (by_lender_ && !lent_.load(std::memory_order_relaxed)) || respite_.is_on()) {
      work(0, n, false);
      return;
    }
    offer(last, n, call<Work>, &work);
    work(0, last, false);
    while (claim(true, &first, &last)) work(first, last, false);
    taken_ += static_cast<std::uint64_t>(n - last);
    if (last < n) {
      missed_ = 0;
      wait(n - last);
    } else if (++missed_ == kMissed) {
      missed_ = 0;
      respite_.lost(kStall);
    }
  }

  // Takes a part of what the other thread shares until done(), or until there was nothing to take for a while. One thread
  // at a time.
  template <typename Done>
  void lend(const Done& done) {
    lent_.store(true, std::memory_order_relaxed);
    for (int i = 0; i < kLooks + kLentYields && !done(); ++i) {
      look(i);
      if (take()) i = 0;
    }
    lent_.store(false, std::memory_order_relaxed);
  }

  // Of all that was shared, how much the helper took.
  std::uint64_t taken() const { return taken_; }

 private:
  using Clock = Respite::Clock;
  using Call = void (*)(const void* work, int first, int last);

  // How often the helper looks for work, with pauses of some tens of nanoseconds: for longer than a token's decisions
  // take, between two steps of the network. Then some times more, letting any thread that has no processor go first
  // (the other one may be waiting for this very one); then it sleeps.
  static constexpr int kLooks = 2000, kYields = 100, kLentYields = 1000;
  // How often the other one asks for the end of what the helper took, until it lets others go first.
  static constexpr int kAsks = 1000;
  // Who waits so long does so because the helper has no processor, and shares nothing for a while. The same where the
  // helper took nothing of so many offers.
  static constexpr std::chrono::microseconds kStall{200};
  static constexpr int kMissed = 50;

  static std::uint64_t packed(std::uint32_t low, std::uint32_t high) { return low | std::uint64_t{high} << 32; }
  static int third(std::uint32_t n) { return static_cast<int>((n + 2) / 3); }

  template <typename Work>
  static void call(const void* work, int first, int last) {
    (*static_cast<const Work*>(work))(first, last, true);
  }

  void offer(int low, int high, Call call, const void* work) {
    call_ = call;
    work_ = work;
    done_.store(0, std::memory_order_relaxed);
    range_.store(packed(static_cast<std::uint32_t>(low), static_cast<std::uint32_t>(high)), std::memory_order_release);
    // Who falls asleep just here misses this one, and is woken for the next.
    if (asleep_.load(std::memory_order_relaxed)) {
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        asleep_.store(false, std::memory_order_relaxed);
      }
      wake_.notify_one();
    }
  }

  // Takes a piece of what is left, from its front or from its back; false if nothing is left.
  bool claim(bool front, int* first, int* last) {
    std::uint64_t range = range_.load(std::memory_order_relaxed);
    for (;;) {
      const std::uint32_t low = static_cast<std::uint32_t>(range), high = static_cast<std::uint32_t>(range >> 32);
      if (low == high) return false;
      const std::uint32_t n = static_cast<std::uint32_t>(third(high - low));
      // What was offered is the claimer's to read: acquired here from the offer, whoever claimed between.
      if (!range_.compare_exchange_weak(range, front ? packed(low + n, high) : packed(low, high - n),
                                        std::memory_order_acquire, std::memory_order_relaxed))
        continue;
      *first = static_cast<int>(front ? low : high - n);
      *last = *first + static_cast<int>(n);
      return true;
    }
  }

  // Until the helper has done the n that it claimed.
  void wait(int n) {
    for (int i = 0; i < kAsks; ++i, pause())
      if (done_.load(std::memory_order_acquire) == n) return;
    const Clock::time_point begin = Clock::now();
    while (done_.load(std::memory_order_acquire) != n) std::this_thread::yield();
    const Clock::time_point end = Clock::now();
    if (end - begin > kStall) respite_.lost(end - begin, end);
  }

  static void look(int i) {
    if (i < kLooks) pause();
    else std::this_thread::yield();
  }

  // Takes what is left of an offer; whether there was any.
  bool take() {
    int n = 0, first, last;
    // From its first claim to its report the other thread cannot go on: all are of the same offer.
    while (claim(false, &first, &last)) {
      call_(work_, first, last);
      n += last - first;
    }
    if (n) done_.store(n, std::memory_order_release);
    return n > 0;
  }

  void serve() {
    for (;;) {
      for (int i = 0; i < kLooks + kYields; ++i) {
        look(i);
        if (take()) i = 0;
      }
      std::unique_lock<std::mutex> lock(mutex_);
      asleep_.store(true, std::memory_order_relaxed);
      wake_.wait(lock, [this] { return stop_ || !asleep_.load(std::memory_order_relaxed); });
      if (stop_) return;
    }
  }

  // What is offered: call and work are read by who has claimed a piece, and written when nothing is claimed or left.
  Call call_ = nullptr;
  const void* work_ = nullptr;
  std::atomic<std::uint64_t> range_{0};  // what nobody has claimed: the first, and the one after the last
  std::atomic<int> done_{0};             // of the offer, by the helper, when it finds nothing left
  std::uint64_t taken_ = 0;
  int missed_ = 0;
  Respite respite_;
  const bool by_lender_ = false;
  std::atomic<bool> lent_{false};  // a thread lends its time
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<bool> asleep_{false};
  bool stop_ = false;
  std::thread thread_;  // the last: it uses the others
};

}  // namespace lmcodec
