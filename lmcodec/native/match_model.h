// Match models: where the last bytes stood before in the text, and the byte that followed them there.
// FORMAT.md sections 5.4 and 5.5.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "journal.h"
#include "profile.h"
#include "table_memory.h"
#include "text_state.h"

namespace lmcodec {

// 0 to 15 by a match's length: up to 7 each for itself, then ever wider.
int length_bucket(std::uint32_t length);

// What one match model knows of a stream.
struct Match {
  std::uint32_t pointer = 0;  // the position the prediction is read from
  std::uint32_t length = 0;   // bytes that agreed since the match began or last failed
  std::uint32_t misses = 0;   // one bit a byte, the newest lowest: 1 where the prediction failed
  bool active = false;
  std::uint8_t predicted = 0;
  std::uint32_t* map = nullptr;  // counters of the byte's bits

  // 0 to 3: how many of the last eight predictions failed.
  std::uint32_t n_miss() const;
  // Which of its adaptive map's rows, of eight counters each, counts: 0 to 63.
  std::uint32_t row() const {
    return (active ? static_cast<std::uint32_t>(length_bucket(length)) : 0) * 4 + n_miss();
  }
  // Whether the bits of the byte so far, c0 with a 1 before them, are the predicted ones: it gives an input.
  bool agrees(std::uint32_t c0, int n_bit) const { return active && ((predicted | 256u) >> (8 - n_bit)) == c0; }
  void end_byte(std::uint8_t byte);
};

// Positions in the text by the hash of the bytes before them: of each match model a table that all streams share. Where
// there are several streams, each has one of its own besides, which is asked first.
class MatchTables {
 public:
  explicit MatchTables(const Profile& profile);

  // Forgets everything: n_entry entries each, a power of two.
  void reset(std::size_t n_entry, Pages pages);
  // Asks for the entries of a text that ends with the bytes of tail. own: empty where there is none.
  void prefetch(int m, std::uint64_t tail, const Table<std::uint32_t>& own) const;
  // What model m makes of the byte at `position`, before which the bytes of tail stand: the match goes on, or another is
  // found. The position is entered into the tables. journal: of what is changed, or null; it does not know tables of a
  // stream's own.
  void find(int m, std::uint64_t tail, std::uint32_t position, const History& history, Table<std::uint32_t>& own,
            Match& match, Journal* journal = nullptr);
  void watch(Journal& journal);

 private:
  std::uint32_t hash(int m, std::uint64_t tail) const;

  int min_[kMatchMax] = {};  // shortest match, bytes
  std::vector<Table<std::uint32_t>> tables_;
  std::uint32_t mask_ = 0;
};

}  // namespace lmcodec
