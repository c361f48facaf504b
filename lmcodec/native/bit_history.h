// Bit histories: one byte that remembers the bits seen in a context. FORMAT.md section 5.2.
#pragma once

#include <cstdint>

namespace lmcodec {

// State 0 is the empty history. Histories of one to three bits are kept whole (states 1 to 14); longer ones as the
// two counts, bounded, and the last bit.
struct BitHistories {
  std::uint8_t next[256][2];
  std::uint8_t n[256];  // bits the state stands for: what a replacement policy calls its worth
  int n_state;

  BitHistories();
};

const BitHistories& bit_histories();

}  // namespace lmcodec
