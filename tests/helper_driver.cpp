// Shares loops with a Helper without Python, so that test_helper.py can run it under sanitizers.
//
//   helper_driver loops SEED N
//       N loops of random length, with pauses between in which the helper watches, yields or sleeps, some of them longer
//       than it is waited for without a rest after it: every index once, by the thread it is said to be by, all of it
//       seen when share() returns. Writes the number of indices that the helper took.
//   helper_driver ends N
//       N helpers that end at any moment: before they began, at work a moment ago, asleep
//   helper_driver lent SEED N
//       N loops as above by a Worker, while this thread lends its time, waits otherwise or is away. Writes the number of
//       indices that it took.
//   helper_driver jobs SEED N
//       N jobs of a Worker, some under way, waited for, taken back or left, in any order: each is done once, when
//       wait() or take_back() says so. Writes the number of those that were taken back.
//   helper_driver meets SECONDS
//       loops until the helper has taken a part of one, for at most so long; writes whether it has
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "helper.h"
#include "worker.h"

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "%s\n", what);
  std::exit(1);
}

void busy(microseconds duration) {
  for (const Clock::time_point end = Clock::now() + duration; Clock::now() < end;) lmcodec::pause();
}

struct Count {
  int times = 0;
  bool by_helper = false;
};

// Shares n indices, `each` long; returns how many the helper took.
int share(lmcodec::Helper& helper, int n, microseconds each) {
  const std::thread::id here = std::this_thread::get_id();
  std::vector<Count> counts(static_cast<std::size_t>(n));
  helper.share(n, [&](int first, int last, bool by_helper) {
    if (first >= last || first < 0 || last > n) fail("a range is empty or outside");
    if (by_helper == (std::this_thread::get_id() == here)) fail("a range is by another thread than it says");
    for (int i = first; i < last; ++i) {
      ++counts[static_cast<std::size_t>(i)].times;
      counts[static_cast<std::size_t>(i)].by_helper = by_helper;
      if (each.count()) busy(each);
    }
  });
  int taken = 0;
  for (int i = 0; i < n; ++i) {
    const Count& count = counts[static_cast<std::size_t>(i)];
    if (count.times != 1) fail("an index was not done once");
    if (!count.by_helper && taken) fail("the helper's indices are not the last");
    taken += count.by_helper;
  }
  return taken;
}

long loops(unsigned seed, int n) {
  std::mt19937 random(seed);
  const auto below = [&](unsigned bound) { return static_cast<int>(random() % bound); };
  lmcodec::Helper helper;
  long taken = 0;
  for (int i = 0; i < n; ++i) {
    const int kind = below(200);
    const microseconds each(kind == 0 ? 400 : kind < 50 ? below(4) : 0);
    taken += share(helper, 1 + below(kind % 2 ? 5 : 100) % (each.count() > 100 ? 4 : 100), each);
    if (kind == 1) std::this_thread::sleep_for(microseconds(1500));
    else if (kind < 20) busy(microseconds(below(200)));
  }
  return taken;
}

long lent(unsigned seed, int n) {
  std::mt19937 random(seed);
  const auto below = [&](unsigned bound) { return static_cast<int>(random() % bound); };
  lmcodec::Helper helper{lmcodec::Helper::Lent()};
  long taken = 0;
  lmcodec::Worker worker;  // the last: its jobs use the others
  for (int i = 0; i < n; ++i) {
    const int kind = below(100), loops = 1 + below(8), size = 1 + below(60);
    const microseconds each(kind < 50 ? below(4) : 0), rest(kind == 0 ? 3000 : kind < 10 ? below(100) : 0);
    const std::uint64_t ticket = worker.submit([&taken, &helper, loops, size, each, rest] {
      for (int k = 0; k < loops; ++k) {
        taken += share(helper, size, each);
        busy(rest);
      }
    });
    if (kind % 10 == 1) busy(microseconds(below(200)));
    if (kind >= 90 && worker.take_back(ticket)) continue;
    if (kind % 10) helper.lend([&] { return worker.done(ticket); });
    worker.wait(ticket);
  }
  return taken;
}

long jobs(unsigned seed, int n) {
  std::mt19937 random(seed);
  const auto below = [&](unsigned bound) { return static_cast<int>(random() % bound); };
  struct Submitted {
    std::uint64_t ticket;
    std::unique_ptr<int> times;
  };
  std::vector<Submitted> under_way;
  std::uint64_t last = 0;
  long taken_back = 0;
  lmcodec::Worker worker;  // the last: its jobs use the others
  for (int i = 0; i < n || !under_way.empty(); ++i) {
    if (i < n && below(3) && (under_way.empty() || last - under_way[0].ticket < lmcodec::Worker::kJobs - 1)) {
      auto times = std::make_unique<int>(0);
      const microseconds each(below(50) ? below(60) : 1000);
      const std::uint64_t ticket = worker.submit([at = times.get(), each] {
        busy(each);
        ++*at;
      });
      last = ticket;
      under_way.push_back({ticket, std::move(times)});
      continue;
    }
    if (under_way.empty()) continue;
    const auto at = under_way.begin() + below(static_cast<unsigned>(under_way.size()));
    const bool back = below(2) && worker.take_back(at->ticket);
    taken_back += back;
    if (!back) worker.wait(at->ticket);
    if (*at->times != 1 || !worker.done(at->ticket)) fail("a job was not done once");
    under_way.erase(at);
    worker.resting();
  }
  return taken_back;
}

void ends(int n) {
  std::mt19937 random(1);
  for (int i = 0; i < n; ++i) {
    const auto helper = std::make_unique<lmcodec::Helper>();
    for (unsigned k = random() % 4; k; --k) share(*helper, 20, microseconds(1));
    busy(microseconds(random() % 400));
  }
}

bool meets(int seconds) {
  lmcodec::Helper helper;
  for (const Clock::time_point end = Clock::now() + std::chrono::seconds(seconds); Clock::now() < end;)
    if (share(helper, 50, microseconds(1))) return true;
  return false;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 4 && !std::strcmp(argv[1], "loops"))
    std::printf("%ld\n", loops(static_cast<unsigned>(std::atoi(argv[2])), std::atoi(argv[3])));
  else if (argc == 4 && !std::strcmp(argv[1], "lent"))
    std::printf("%ld\n", lent(static_cast<unsigned>(std::atoi(argv[2])), std::atoi(argv[3])));
  else if (argc == 4 && !std::strcmp(argv[1], "jobs"))
    std::printf("%ld\n", jobs(static_cast<unsigned>(std::atoi(argv[2])), std::atoi(argv[3])));
  else if (argc == 3 && !std::strcmp(argv[1], "ends")) ends(std::atoi(argv[2]));
  else if (argc == 3 && !std::strcmp(argv[1], "meets")) std::printf("%d\n", meets(std::atoi(argv[2])));
  else fail("loops SEED N, lent SEED N, jobs SEED N, ends N, or meets SECONDS");
  return 0;
}
