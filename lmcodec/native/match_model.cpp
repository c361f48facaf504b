#include "match_model.h"

#include <algorithm>
#include <iterator>

#include "hashing.h"

namespace lmcodec {
namespace {

std::uint32_t popcount8(unsigned v) {
  v = (v & 0x55) + (v >> 1 & 0x55);
  v = (v & 0x33) + (v >> 2 & 0x33);
  return (v & 15) + (v >> 4 & 15);
}

}  // namespace

int length_bucket(std::uint32_t length) {
  if (length < 8) return static_cast<int>(length);
  if (length < 16) return 8 + static_cast<int>((length - 8) / 4);
  if (length < 32) return 10 + static_cast<int>((length - 16) / 8);
  if (length < 64) return 12;
  if (length < 128) return 13;
  if (length < 512) return 14;
  return 15;
}

std::uint32_t Match::n_miss() const { return std::min(popcount8(misses), 3u); }

void Match::end_byte(std::uint8_t byte) {
  if (!active) return;
  const bool hit = predicted == byte;
  misses = misses << 1 | (hit ? 0 : 1);
  length = hit ? std::min(length + 1, 65535u) : 0;
  ++pointer;
  if (popcount8(misses) > 7) active = false;
}

MatchTables::MatchTables(const Profile& profile) : tables_(static_cast<std::size_t>(profile.n_match)) {
  std::copy(std::begin(profile.match_min), std::end(profile.match_min), min_);
}

void MatchTables::reset(std::size_t n_entry, Pages pages) {
  mask_ = static_cast<std::uint32_t>(n_entry - 1);
  for (auto& table : tables_) clear_table(table, n_entry, pages);
}

void MatchTables::watch(Journal& journal) {
  int table = kJournalMatch;
  for (auto& positions : tables_) journal.watch(table++, positions.data(), positions.size() * sizeof(std::uint32_t));
}

// Of the last bytes, as many as a match needs at least (eight at most are hashed).
std::uint32_t MatchTables::hash(int m, std::uint64_t tail) const {
  const std::uint64_t kept = tail << (64 - 8 * std::min(min_[m], 8));
  return static_cast<std::uint32_t>((kept * 0x9E3779B97F4A7C15ull) >> 40);
}

void MatchTables::prefetch(int m, std::uint64_t tail, const Table<std::uint32_t>& own) const {
  const std::uint32_t h = hash(m, tail);
  lmcodec::prefetch(&tables_[static_cast<std::size_t>(m)][h & mask_]);
  if (!own.empty()) lmcodec::prefetch(&own[h & (own.size() - 1)]);
}

void MatchTables::find(int m, std::uint64_t tail, std::uint32_t position, const History& history,
                       Table<std::uint32_t>& own, Match& match, Journal* journal) {
  const std::uint32_t minimum = static_cast<std::uint32_t>(min_[m]), h = hash(m, tail);
  std::uint32_t* const places[2] = {own.empty() ? nullptr : &own[h & (own.size() - 1)],
                                    &tables_[static_cast<std::size_t>(m)][h & mask_]};
  if (!match.active || match.length < minimum) {
    for (const std::uint32_t* place : places) {
      if (!place) continue;
      const std::uint32_t candidate = *place;
      const std::uint32_t most = std::min({40u, history.held_before(candidate), history.held_before(position)});
      std::uint32_t length = 0;
      while (length < most && history.at(candidate - length - 1) == history.at(position - length - 1)) ++length;
      if (length >= minimum && candidate != position) {
        if (match.active && match.length >= length) break;
        match.active = true;
        match.pointer = candidate;
        match.length = length;
        match.misses = 0;
        break;
      }
    }
  }
  if (journal) journal->save(kJournalMatch + m, places[1]);
  for (std::uint32_t* place : places)
    if (place) *place = position;
  if (match.active && !history.kept(match.pointer)) match.active = false;
  if (match.active) match.predicted = history.at(match.pointer);
}

}  // namespace lmcodec
