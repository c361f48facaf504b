// Decodes the words that constriction's range coder (word 32 bits, state 64, precision 24) writes. FORMAT.md section 4.
#pragma once

#include <cstddef>
#include <cstdint>

#include "range_width.h"

namespace lmcodec {

// Invariant: lower <= point < lower + range (mod 2^64), range >= 2^32 between symbols. Only point - lower is kept.
class RangeDecoder {
 public:
  RangeDecoder(const std::uint8_t* payload, std::size_t nbytes) : next_(payload), end_(payload + nbytes) {
    offset_ = std::uint64_t{word()} << 32;
    offset_ |= word();
  }

  // p16: probability of a 1, in 65536ths, 1 to 65535. Symbol 0 lies first. `corrupt` rises, and stays, when the words are
  // none that an encoder writes.
  int decode(std::uint32_t p16) {
    const std::uint32_t one = size_of_one(p16);
    const std::uint64_t scale = range_ >> 24;
    const std::uint64_t zero = scale * ((1u << 24) - one);
    int bit;
    if (offset_ < zero) {
      bit = 0;
      range_ = zero;
    } else {
      bit = 1;
      offset_ -= zero;
      range_ = scale * one;
      // The interval's last, unused part: range is not a multiple of 2^24.
      if (offset_ >= range_) {
        corrupt_ = true;
        offset_ = range_ - 1;
      }
    }
    if (range_ < (std::uint64_t{1} << 32)) {
      range_ <<= 32;
      offset_ = offset_ << 32 | word();
    }
    return bit;
  }

  bool corrupt() const { return corrupt_; }
  // Bytes of the payload that were read; the four or eight at its end may be less than whole words.
  bool exhausted() const { return next_ == end_; }
  std::uint64_t range() const { return range_; }
  std::uint64_t offset() const { return offset_; }

 private:
  // Words are big-endian; past the end of the payload all bytes are zero.
  std::uint32_t word() {
    std::uint32_t w = 0;
    for (int i = 0; i < 4; ++i) w = w << 8 | (next_ < end_ ? *next_++ : 0u);
    return w;
  }

  const std::uint8_t* next_;
  const std::uint8_t* end_;
  std::uint64_t range_ = ~std::uint64_t{0};
  std::uint64_t offset_ = 0;
  bool corrupt_ = false;
};

}  // namespace lmcodec
