// What the context mixer keeps of each stream. For its own files alone.
#pragma once

#include <cstdint>

#include "context_mixer.h"
#include "journal.h"
#include "logistic.h"

namespace lmcodec {

// Where the slots and the direct counters of a nibble are.
struct ContextMixer::Nibble {
  alignas(64) std::uint32_t line[kContextMax] = {};  // hashes of the slots
  std::uint32_t* direct[kDirectMax];
};

struct ContextMixer::Stream {
  explicit Stream(std::uint64_t features) : text(features) {}

  // The node within the nibble: 1, then its bits.
  std::uint32_t node_at_hand() const {
    const int n = n_bit & 3;
    return (1u << n) | (c0 & ((1u << n) - 1));
  }

  alignas(64) std::int32_t input[(2 * kContextMax + 32)];
  Mixture mixture;
  std::int32_t mixed = 0;  // the mixture's stretch, Q8
  TextState text;
  std::uint32_t begin = 0, end = 0, position = 0;
  std::uint32_t c0 = 1;
  int n_bit = 0;
  Progress progress = Progress::kText;
  int foretold = -1;  // the byte at hand, where it is known already
  std::int32_t lm_stretch = 0;
  int token_nbytes = 0;
  std::uint32_t tokens = 0;  // hash of the token so far and the one before it
  std::uint32_t place[1 << kPlaceFeatures] = {};
  alignas(64) std::uint32_t hash[kContextMax] = {};
  Nibble parts[2];
  Nibble* now = &parts[0];   // the nibble at hand
  Nibble* next = &parts[1];  // the one after it, where it is known: in kPrefetched, kFirstAhead and kForeseen
  alignas(64) std::uint32_t placed[kContextMax] = {};  // with the place in the token
  std::uint8_t* slot[kContextMax];
  Match match[kMatchMax];
  alignas(64) std::uint32_t base[kRowMax] = {};  // of each row: what is fixed during the byte
  std::uint16_t* apm[kApmMax];
  std::uint16_t* lm_map[kLmMapMax];
  Table<std::uint32_t> own_match[kMatchMax];
  // Of the decision at hand, for learn(), which may come after its bit has moved everything else on.
  std::uint32_t node = 1;
  int bit = 0;        // what came
  bool same = false;  // the counters are what value[] says
  // Counters: of the contexts' histories, of the direct orders, of the matches.
  std::uint32_t nowhere = kHalf22 << 10;  // for what gives no input
  std::uint32_t* cell[kCellMax];
  alignas(64) std::uint32_t value[kCellMax];
  alignas(64) std::int32_t opposite[kCellMax] = {};
  alignas(64) std::uint8_t state[kCellMax] = {};  // of each context's slot; not 0 for other counters that learn
};

// What mark() keeps.
struct ContextMixer::Mark {
  Journal journal;
  TextState text;
  Match match[kMatchMax];
  History::Places places;
};

}  // namespace lmcodec
