// What a machine's memory can do, for limits.py: prints `name value` lines. One thread.
//
//   read_KIB    bytes a second read from a range of so many KiB, again and again
//   random_ns   nanoseconds of a read at a random line of 32 MiB whose address is what the last one gave
//   batch_N_ns  nanoseconds a line where N random lines of 32 MiB are fetched ahead together and then read
#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <numeric>
#include <random>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kLine = 64 / sizeof(std::uint64_t);
constexpr std::size_t kTable = (std::size_t{32} << 20) / sizeof(std::uint64_t);
constexpr double kSeconds = 0.15;  // of a measurement, a part of which is repeated and the fastest taken
constexpr int kParts = 10;

volatile std::uint64_t sink;

// Seconds that `work` takes at best.
template <typename Work>
double best(Work work) {
  double least = 1e9, all = 0;
  for (int i = 0; i < kParts || all < kSeconds; ++i) {
    const Clock::time_point from = Clock::now();
    work();
    const double spent = std::chrono::duration<double>(Clock::now() - from).count();
    least = std::min(least, spent);
    all += spent;
  }
  return least;
}

void read_bandwidth(std::size_t nkib) {
  const std::vector<std::uint64_t> data((nkib << 10) / sizeof(std::uint64_t), 1);
  const std::size_t n = data.size(), times = std::max<std::size_t>(1, (std::size_t{4} << 20) / (nkib << 10));
  const double seconds = best([&] {
    std::uint64_t sum = 0;
    for (std::size_t t = 0; t < times; ++t) {
      const std::uint64_t* p = data.data();
      asm volatile("" : "+r"(p) : : "memory");  // every round reads again
      std::uint64_t part[32] = {};
      for (std::size_t i = 0; i < n; i += 32)
        for (std::size_t k = 0; k < 32; ++k) part[k] += p[i + k];
      sum += std::accumulate(part, part + 32, std::uint64_t{0});
    }
    sink = sum;
  });
  std::printf("read_%zu %.6g\n", nkib, static_cast<double>(times * (nkib << 10)) / seconds);
}

void random_reads(std::mt19937_64& random) {
  // One cycle through all lines, in random order (Sattolo).
  const std::size_t n_line = kTable / kLine;
  std::vector<std::uint32_t> order(n_line);
  std::iota(order.begin(), order.end(), 0u);
  for (std::size_t i = n_line - 1; i > 0; --i) std::swap(order[i], order[random() % i]);
  std::vector<std::uint64_t> table(kTable);
  for (std::size_t i = 0; i < n_line; ++i) table[i * kLine] = std::uint64_t{order[i]} * kLine;
  constexpr int kReads = 1 << 16;
  std::uint64_t at = 0;
  const double chained = best([&] {
    for (int i = 0; i < kReads; ++i) at = table[at];
    sink = at;
  });
  std::printf("random_ns %.6g\n", chained / kReads * 1e9);

  for (const std::size_t batch : {16u, 48u}) {
    std::uint32_t state = 1;
    const double ahead = best([&] {
      std::uint64_t sum = 0, line[64];
      for (int i = 0; i < kReads; i += static_cast<int>(batch)) {
        for (std::size_t k = 0; k < batch; ++k) {
          state = state * 1664525u + 1013904223u;
          line[k] = (state >> 8) % n_line * kLine;
          __builtin_prefetch(&table[line[k]]);
        }
        for (std::size_t k = 0; k < batch; ++k) sum += table[line[k]];
      }
      sink = sum;
    });
    std::printf("batch_%zu_ns %.6g\n", batch, ahead / kReads * 1e9);
  }
}

}  // namespace

int main() {
  for (const std::size_t nkib : {24u, 512u, 8192u, 262144u}) read_bandwidth(nkib);
  std::mt19937_64 random(1);
  random_reads(random);
}
