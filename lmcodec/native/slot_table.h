// The hash table of slots: for a context and a nibble, the bit histories of the nibble's fifteen nodes.
// FORMAT.md section 5.3.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "bit_history.h"
#include "hashing.h"
#include "table_memory.h"

namespace lmcodec {

// Lines of 64 bytes: four checks, four slots of 15 nodes. Nodes count from 1.
class SlotTable {
 public:
  // Forgets everything: nbytes, a power of two, at least 64.
  void reset(std::size_t nbytes, Pages pages) {
    clear_table(table_, nbytes, pages);
    line_mask_ = static_cast<std::uint32_t>(nbytes / kLine - 1);
  }

  // The line in which find() looks, and which it may change.
  const void* line_of(std::uint32_t hash) const { return table_.data() + std::size_t{hash & line_mask_} * kLine; }
  Table<std::uint8_t>& table() { return table_; }
  void prefetch(std::uint32_t hash) const { lmcodec::prefetch(table_.data() + std::size_t{hash & line_mask_} * kLine); }

  // The slot of that hash, made where there is none: it takes the place of the line's one whose first node has seen least.
  // Its nodes are at 1 to 15.
  std::uint8_t* find(std::uint32_t hash) {
    std::uint8_t* line = table_.data() + std::size_t{hash & line_mask_} * kLine;
    const std::uint8_t check = static_cast<std::uint8_t>(hash >> 24);
    // All four at once: bytes that are zero where the check agrees, then the lowest of those that are.
    const std::uint32_t checks =
        line[0] | std::uint32_t{line[1]} << 8 | std::uint32_t{line[2]} << 16 | std::uint32_t{line[3]} << 24;
    const std::uint32_t differs = checks ^ check * 0x01010101u;
    const std::uint32_t found = (differs - 0x01010101u) & ~differs & 0x80808080u;
    if (found) return line + kSlot0 + (lowest_bit(found) >> 3) * kSlot;
    const std::uint8_t* n = histories_->n;
    int victim = 0, least = n[line[kSlot0 + 1]];
    for (int k = 1; k < 4; ++k) {
      const int worth = n[line[kSlot0 + 1 + kSlot * k]];
      victim = worth < least ? k : victim;
      least = worth < least ? worth : least;
    }
    line[victim] = check;
    std::uint8_t* slot = line + kSlot0 + victim * kSlot;
    std::memset(slot + 1, 0, kSlot);
    return slot;
  }

 private:
  static constexpr std::size_t kLine = 64;
  static constexpr int kSlot0 = 3, kSlot = 15;  // node 0 of the first slot; nodes of a slot

  static int lowest_bit(std::uint32_t x) {  // its number; x > 0
#if defined(__GNUC__) || defined(__clang__)
    return __builtin_ctz(x);
#else
    int n = 0;
    for (; !(x & 1); x >>= 1) ++n;
    return n;
#endif
  }

  const BitHistories* histories_ = &bit_histories();
  Table<std::uint8_t> table_;
  std::uint32_t line_mask_ = 0;
};

}  // namespace lmcodec
