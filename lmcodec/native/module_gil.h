// The GIL released while the kernel works, and what becomes of threads that work in it when the interpreter ends.
//
// A thread that asks for the GIL of an interpreter that ends is ended by CPython there and then (before 3.14), from within
// C++ functions that cannot be left so: the process would abort. Daemon threads of a program that uses the package may be
// at work at that time. So the interpreter's end is announced first (close): from then on threads other than the one that
// announced it never leave the kernel, and it waits for those that are on their way out.
#pragma once

#include <nanobind/nanobind.h>

#include <atomic>
#include <chrono>
#include <thread>

namespace lmcodec {

class GilReleased {
 public:
  GilReleased() {
    inside_.fetch_add(1);
    state_ = PyEval_SaveThread();
    stay_if_closed();
  }
  ~GilReleased() {
    stay_if_closed();
    PyEval_RestoreThread(state_);
    inside_.fetch_sub(1);
  }
  GilReleased(const GilReleased&) = delete;
  GilReleased& operator=(const GilReleased&) = delete;

  // Called with the GIL when the interpreter is about to end. This thread may go on using the kernel.
  static void close() {
    closer_.store(std::this_thread::get_id());
    closed_.store(true);
    PyThreadState* const state = PyEval_SaveThread();
    while (inside_.load() > 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    PyEval_RestoreThread(state);
  }
  // In the child of a fork, whose only thread is not in the kernel.
  static void after_fork() { inside_.store(0); }

 private:
  friend class GilAcquired;

  static void stay_if_closed() {
    if (!closed_.load() || closer_.load() == std::this_thread::get_id()) return;
    inside_.fetch_sub(1);
    for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
  }

  inline static std::atomic<int> inside_{0};  // threads that will ask for the GIL
  inline static std::atomic<bool> closed_{false};
  inline static std::atomic<std::thread::id> closer_{std::thread::id()};
  PyThreadState* state_;
};

// The GIL for a while, within work that goes on without it.
class GilAcquired {
 public:
  GilAcquired() {
    GilReleased::stay_if_closed();
    state_ = PyGILState_Ensure();
  }
  ~GilAcquired() { PyGILState_Release(state_); }
  GilAcquired(const GilAcquired&) = delete;
  GilAcquired& operator=(const GilAcquired&) = delete;

 private:
  PyGILState_STATE state_;
};

}  // namespace lmcodec
