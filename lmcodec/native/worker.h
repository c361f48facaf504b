// A second thread that takes jobs, one after another, and from which they are taken back where it has no processor.
#pragma once

#include <algorithm>
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

#include "respite.h"
#include "threading.h"

namespace lmcodec {

class Worker {
 public:
  static constexpr int kJobs = 8;  // a ticket is good for so long: until so many jobs more are submitted

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

  // Whether jobs are better done by who would submit them: other programs have the processors.
  bool resting() { return respite_.is_on(); }

  // Returns what wait() takes.
  std::uint64_t submit(std::function<void()> job) {
    std::uint64_t ticket;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      ticket = ++submitted_;
      done_[ticket % kJobs].store(false, std::memory_order_relaxed);
      jobs_.push_back({ticket, std::move(job)});
    }
    wake_.notify_one();
    return ticket;
  }

  // Whether that job is done.
  bool done(std::uint64_t ticket) const { return done_[ticket % kJobs].load(std::memory_order_acquire); }

  // Does that job here, unless it has begun or is done; whether it was done so.
  bool take_back(std::uint64_t ticket) {
    std::function<void()> job;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const auto at = std::find_if(jobs_.begin(), jobs_.end(), [ticket](const Job& j) { return j.ticket == ticket; });
      if (at == jobs_.end()) return false;
      job = std::move(at->run);
      jobs_.erase(at);
    }
    if (++n_taken_back_ == kTakenBack) {
      n_taken_back_ = 0;
      respite_.lost(kTakenBack * kWaking);
    }
    done_[ticket % kJobs].store(true, std::memory_order_relaxed);
    job();
    return true;
  }

  // Returns when that job is done, or after that time.
  void wait_for(std::uint64_t ticket, std::chrono::microseconds time) {
    std::unique_lock<std::mutex> lock(mutex_);
    ended_.wait_for(lock, time, [this, ticket] { return done(ticket); });
  }

  // Returns when that job is done; throws what a job threw. A job takes a fraction of a millisecond: asking a while costs
  // less than sleeping.
  void wait(std::uint64_t ticket) {
    for (int i = 0; i < kAsks && !done(ticket); ++i) pause();
    std::unique_lock<std::mutex> lock(mutex_);
    ended_.wait(lock, [this, ticket] { return done(ticket); });
    if (error_) std::rethrow_exception(error_);
    if (stalled_.count()) {
      respite_.lost(stalled_);
      stalled_ = {};
    }
  }

 private:
  using Clock = Respite::Clock;
  struct Job {
    std::uint64_t ticket;
    std::function<void()> run;
  };

  static constexpr int kAsks = 4000;
  // Jobs that are taken back one after another, until the thread is left alone, and what waking it for one costs.
  static constexpr int kTakenBack = 8;
  static constexpr std::chrono::microseconds kWaking{20};
  // Jobs are much alike: one that takes longer than twice the shortest, and so much more, had no processor meanwhile.
  static constexpr std::chrono::microseconds kStall{200};
  static constexpr int kForgets = 64;  // the shortest is a part longer each time: jobs grow with a window that fills

  void run() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (std::uint64_t seen = 0;;) {
      // The next job is seldom far: being woken takes longer than most of the time till then.
      lock.unlock();
      for (int i = 0; i < kAsks && submitted_.load(std::memory_order_acquire) == seen && !stop_; ++i) pause();
      lock.lock();
      wake_.wait(lock, [this] { return stop_ || !jobs_.empty(); });
      if (stop_) return;
      while (!jobs_.empty() && !stop_) {
        const Job job = std::move(jobs_.front());
        jobs_.pop_front();
        n_taken_back_ = 0;
        lock.unlock();
        std::exception_ptr error;
        const Clock::time_point begin = Clock::now();
        try {
          job.run();
        } catch (...) {
          error = std::current_exception();
        }
        const Clock::duration took = Clock::now() - begin;
        lock.lock();
        if (error && !error_) error_ = error;
        if (shortest_.count() && took > 2 * shortest_ + kStall) stalled_ = took - shortest_;
        shortest_ = shortest_.count() ? std::min(took, shortest_ + shortest_ / kForgets) : took;
        done_[job.ticket % kJobs].store(true, std::memory_order_release);
        ended_.notify_all();
      }
      seen = submitted_.load(std::memory_order_relaxed);
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, ended_;
  std::deque<Job> jobs_;
  std::atomic<std::uint64_t> submitted_{0};
  std::atomic<bool> done_[kJobs] = {};
  std::exception_ptr error_;
  std::atomic<int> n_taken_back_{0};
  Respite respite_;  // of who submits and waits
  Clock::duration stalled_{}, shortest_{};
  std::atomic<bool> stop_{false};
  std::thread thread_;  // the last: it uses the others
};

}  // namespace lmcodec
