// What changes in tables from a moment on, so that it can be taken back: a line is copied before it is first written to.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "hashing.h"

namespace lmcodec {

class Journal {
 public:
  static constexpr std::size_t kLine = 64;

  // Watches a table, from its start in lines of 64 bytes; save() is to be called before one of them is written to.
  void watch(int table, void* begin, std::size_t nbytes) {
    if (tables_.size() <= static_cast<std::size_t>(table)) tables_.resize(static_cast<std::size_t>(table) + 1);
    tables_[static_cast<std::size_t>(table)] = {static_cast<char*>(begin), nbytes,
                                                std::vector<std::uint8_t>((nbytes + kLine - 1) / kLine, std::uint8_t{0})};
  }
  // Memory that is small, or written to everywhere: copied now, and copied back.
  void keep(void* begin, std::size_t nbytes) {
    char* const place = static_cast<char*>(begin);
    whole_.emplace_back(place, std::vector<char>(place, place + nbytes));
  }
  // The n lines from that of `place` on may change. They are always saved together, or none of them.
  void save(int table, const void* place, std::size_t n = 1) {
    Watched& watched = tables_[static_cast<std::size_t>(table)];
    const std::size_t line = static_cast<std::size_t>(static_cast<const char*>(place) - watched.begin) / kLine;
    if (watched.seen[line] == epoch_) return;
    for (std::size_t k = 0; k < n; ++k) copy(watched, table, line + k);
  }
  // All is as it was when it was watched or kept.
  void take_back() {
    constexpr std::size_t kAhead = 16;
    const std::size_t n = saved_.size();
    for (std::size_t i = 0; i < n; ++i) {
      if (i + kAhead < n) {
        const Saved& later = saved_[i + kAhead];
        prefetch(tables_[later.table].begin + std::size_t{later.line} * kLine);
      }
      const Saved& saved = saved_[i];
      const Watched& watched = tables_[saved.table];
      const std::size_t at = std::size_t{saved.line} * kLine;
      std::memcpy(watched.begin + at, saved.bytes, watched.nbytes - at < kLine ? watched.nbytes - at : kLine);
    }
    for (const auto& [place, bytes] : whole_) std::memcpy(place, bytes.data(), bytes.size());
    saved_.clear();
    if (saved_.capacity() > kRoom) std::vector<Saved>().swap(saved_);
    if (++epoch_) return;
    epoch_ = 1;
    for (Watched& watched : tables_) watched.seen.assign(watched.seen.size(), 0);
  }

 private:
  static constexpr std::size_t kRoom = 1u << 18;  // lines that room is kept for

  struct Watched {
    char* begin = nullptr;
    std::size_t nbytes = 0;
    std::vector<std::uint8_t> seen;  // the epoch in which each line was saved last
  };
  struct Saved {
    std::uint32_t table, line;
    char bytes[kLine];
  };

  void copy(Watched& watched, int table, std::size_t line) {
    Saved saved;
    saved.table = static_cast<std::uint32_t>(table);
    saved.line = static_cast<std::uint32_t>(line);
    const std::size_t at = line * kLine, rest = watched.nbytes - at;
    std::memset(saved.bytes, 0, kLine);
    std::memcpy(saved.bytes, watched.begin + at, rest < kLine ? rest : kLine);
    saved_.push_back(saved);  // may throw: nothing has been written yet
    watched.seen[line] = epoch_;
  }

  std::vector<Watched> tables_;
  std::vector<std::pair<char*, std::vector<char>>> whole_;
  std::vector<Saved> saved_;
  std::uint8_t epoch_ = 1;
};

// Numbers of the tables that are watched.
enum JournalTable : int {
  kJournalSlots = 0,
  kJournalWeights = 1,
  kJournalEnd = 2,          // histories of token ends
  kJournalDirect = 3,       // 4 of them at most
  kJournalMatch = 7,        // 3
  kJournalMap = 10,         // final maps: 6
  kJournalLmMap = 16,       // 8
  kJournalEndMap = 24,      // 2
  kJournalEndCounter = 26,  // 4
};

}  // namespace lmcodec
