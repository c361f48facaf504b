#include "bit_history.h"

#include <algorithm>

namespace lmcodec {
namespace {

// The larger count may be at most this, by the smaller one.
constexpr int kBound[6] = {39, 32, 20, 12, 8, 6};

void bound(int counts[2], int newest) {
  for (;;) {
    const int low = std::min(counts[0], counts[1]);
    const int high = std::max(counts[0], counts[1]);
    if (low <= 5 && high <= kBound[low]) return;
    // What gives way is the larger count; of equal ones the older bit's.
    const int larger = counts[0] == counts[1] ? 1 - newest : counts[0] > counts[1] ? 0 : 1;
    --counts[larger];
  }
}

// What a count shrinks to when the other bit comes.
int discount(int count) {
  if (count <= 2) return count;
  int log = 0;
  while ((count - 1) >> (log + 1)) ++log;
  return 2 + log > count ? count : 2 + log;
}

}  // namespace

BitHistories::BitHistories() {
  std::fill(&next[0][0], &next[0][0] + 512, std::uint8_t{0});
  std::fill(n, n + 256, std::uint8_t{0});
  // Number of the state of counts (n0, n1) and last bit; filled as states are met.
  int number[41][41][2];
  std::fill(&number[0][0][0], &number[0][0][0] + 41 * 41 * 2, -1);
  int n0_of[256] = {}, n1_of[256] = {};
  n_state = 15;
  const auto counted = [&](int n0, int n1, int last) {
    int& index = number[n0][n1][last];
    if (index < 0) {
      index = n_state++;
      n0_of[index] = n0;
      n1_of[index] = n1;
      n[index] = static_cast<std::uint8_t>(n0 + n1);
    }
    return static_cast<std::uint8_t>(index);
  };
  const auto after = [&](int n0, int n1, int bit) {
    int counts[2] = {n0, n1};
    ++counts[bit];
    counts[1 - bit] = discount(counts[1 - bit]);
    bound(counts, bit);
    return counted(counts[0], counts[1], bit);
  };
  // Whole histories: a leading one, then the bits, less one.
  for (int whole = 1; whole < 16; ++whole) {
    int length = 0, ones = 0;
    while (whole >> (length + 1)) ones += (whole >> length++) & 1;
    n[whole - 1] = static_cast<std::uint8_t>(length);
    for (int bit = 0; bit < 2; ++bit)
      next[whole - 1][bit] =
          length < 3 ? static_cast<std::uint8_t>(2 * whole + bit - 1) : after(length - ones, ones, bit);
  }
  for (int state = 15; state < n_state; ++state)
    for (int bit = 0; bit < 2; ++bit) next[state][bit] = after(n0_of[state], n1_of[state], bit);
}

const BitHistories& bit_histories() {
  static const BitHistories tables;
  return tables;
}

}  // namespace lmcodec
