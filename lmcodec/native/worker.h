// A second thread that takes jobs, one after another.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>

#include "threading.h"

namespace lmcodec {

class Worker {
 public:
  // Throws std::system_error where there can be no further thread.
  Worker() : thread_([this] { run(); }) {}
  // Ends after the job at hand; those that wait are dropped.
  ~Worker() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    wake_.notify_one();
    thread_.join();
  }
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  // Returns what wait() takes.
  std::uint64_t submit(std::function<void()> job) {
    std::uint64_t ticket;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      jobs_.push_back(std::move(job));
      ticket = ++submitted_;
    }
    wake_.notify_one();
    return ticket;
  }

  // Whether that job is done.
  bool done(std::uint64_t ticket) const { return done_.load(std::memory_order_acquire) >= ticket; }

  // Returns when that job is done, or after that time.
  void wait_for(std::uint64_t ticket, std::chrono::microseconds time) {
    std::unique_lock<std::mutex> lock(mutex_);
    ended_.wait_for(lock, time, [this, ticket] { return done_.load(std::memory_order_relaxed) >= ticket; });
  }

  // Returns when that job is done; throws what a job threw. A job takes a fraction of a millisecond: asking a while costs
  // less than sleeping.
  void wait(std::uint64_t ticket) {
    for (int i = 0; i < kAsks && !done(ticket); ++i) pause();
    if (!done(ticket)) {
      std::unique_lock<std::mutex> lock(mutex_);
      ended_.wait(lock, [this, ticket] { return done_.load(std::memory_order_relaxed) >= ticket; });
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    if (error_) std::rethrow_exception(error_);
  }

 private:
  static constexpr int kAsks = 4000;

  void run() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (std::uint64_t taken = 0;; ++taken) {
      // The next job is seldom far: being woken takes longer than most of the time till then.
      lock.unlock();
      for (int i = 0; i < kAsks && submitted_.load(std::memory_order_acquire) == taken && !stop_; ++i) pause();
      lock.lock();
      wake_.wait(lock, [this] { return stop_ || !jobs_.empty(); });
      if (stop_) return;
      const std::function<void()> job = std::move(jobs_.front());
      jobs_.pop_front();
      lock.unlock();
      std::exception_ptr error;
      try {
        job();
      } catch (...) {
        error = std::current_exception();
      }
      lock.lock();
      if (error && !error_) error_ = error;
      done_.fetch_add(1, std::memory_order_release);
      ended_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, ended_;
  std::deque<std::function<void()>> jobs_;
  std::atomic<std::uint64_t> submitted_{0};
  std::atomic<std::uint64_t> done_{0};
  std::exception_ptr error_;
  std::atomic<bool> stop_{false};
  std::thread thread_;  // the last: it uses the others
};

}  // namespace lmcodec
