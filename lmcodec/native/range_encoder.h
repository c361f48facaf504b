// Writes the words that constriction's range coder (word 32 bits, state 64, precision 24) writes, where that is not
// installed. FORMAT.md section 4.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "range_width.h"

namespace lmcodec {

// The interval is [lower, lower + range) behind the words written so far. Invariant: range >= 2^32 between decisions.
class RangeEncoder {
 public:
  // p16: probability of a 1, in 65536ths, 1 to 65535. Symbol 0 lies first.
  void encode(int bit, std::uint32_t p16) {
    const std::uint32_t one = size_of_one(p16);
    const std::uint64_t scale = range_ >> 24;
    const std::uint64_t zero = scale * ((1u << 24) - one);
    if (bit) {
      lower_ += zero;
      if (lower_ < zero) carry(words_);
      range_ = scale * one;
    } else {
      range_ = zero;
    }
    // A part is at least scale / 2^24 of the range: one word is enough.
    if (range_ < (std::uint64_t{1} << 32)) {
      words_.push_back(static_cast<std::uint32_t>(lower_ >> 32));
      lower_ <<= 32;
      range_ <<= 32;
    }
  }

  // The words so far, and one or two more that end inside the interval whatever follows them; none before the first decision.
  std::vector<std::uint32_t> sealed() const {
    std::vector<std::uint32_t> words = words_;
    if (range_ == kWhole) return words;
    const std::uint64_t point = lower_ + 0xFFFFFFFFu;
    if (point < lower_) carry(words);
    const auto last = static_cast<std::uint32_t>(point >> 32);
    words.push_back(last);
    if (static_cast<std::uint32_t>((lower_ + range_) >> 32) == last) words.push_back(0);
    return words;
  }

  std::size_t n_word() const { return words_.size(); }
  std::uint64_t lower() const { return lower_; }
  std::uint64_t range() const { return range_; }

 private:
  static constexpr std::uint64_t kWhole = ~std::uint64_t{0};  // only before the first decision: later ranges end in zeros or are less

  // What was written is a fraction, and it grows by one in its last place. It stays below 1, as the interval does: some word
  // is not all ones. A word gets one carry at most, so that all carries together take no longer than writing the words.
  static void carry(std::vector<std::uint32_t>& words) {
    for (std::size_t i = words.size(); i > 0 && ++words[i - 1] == 0; --i) {
    }
  }

  std::vector<std::uint32_t> words_;
  std::uint64_t lower_ = 0;
  std::uint64_t range_ = kWhole;
};

}  // namespace lmcodec
