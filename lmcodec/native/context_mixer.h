// The context models and their mixer: from what is known of a stream, the probability that its next bit is 1.
// Integers only. FORMAT.md section 5 is the definition.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "journal.h"
#include "match_model.h"
#include "mixing.h"
#include "profile.h"
#include "slot_table.h"
#include "table_memory.h"
#include "text_state.h"
#include "token_end.h"
#include "token_trie.h"

namespace lmcodec {

struct BitHistories;
struct Logistic;

constexpr int kCellMax = (kContextMax + kDirectMax + kMatchMax + kLanes - 1) / kLanes * kLanes;

// How far a stream is with the byte at hand, and which call takes it further. What a state holds, all below it hold, too:
//
//   kText        the text before the byte
//   kMatched     the matches, which fix the rows of weights they choose
//   kPrepared    hashes of the contexts; matches where there is a language model or a context sees the match
//   kPrefetched  the first nibble's lines are on their way: the byte before was foretold
//   kAsked       the lines of the nibble at hand, the first of this byte to be coded, are on their way
//   kFirst       slots of the first nibble; matches, rows
//   kFirstAhead  lines of the second nibble are on their way: the byte is foretold
//   kAskedAgain  lines of the second nibble are on their way, the first one is over
//   kSecond      slots of the second nibble
//   kForeseen    the text is that behind the byte: the byte is foretold, and the next one's lines are on their way
//
//   kText       --begin_byte--> kMatched      always first with a language model, never without one
//   kText       --fetch-->      kAsked        without one
//   kMatched    --lookup_end--> kPrepared     a token may end here
//   kMatched    --fetch-->      kAsked
//   kMatched    --end_byte-->   kText         no bit needed coding
//   kPrepared   --fetch-->      kAsked
//   kPrepared   --end_byte-->   kText         no bit needed coding
//   kPrefetched --fetch-->      kAsked
//   kAsked      --lookup-->     kFirst
//   kAsked      --lookup-->     kFirstAhead   the byte is foretold
//   kAsked      --lookup-->     kSecond       no bit of the first nibble needed coding
//   kFirst      --fetch-->      kAskedAgain
//   kFirst      --end_byte-->   kText         no bit of the second nibble needed coding
//   kFirstAhead --fetch-->      kAskedAgain
//   kAskedAgain --lookup-->     kSecond
//   kSecond     --foresee-->    kForeseen     the byte is foretold
//   kSecond     --end_byte-->   kText
//   kForeseen   --end_byte-->   kPrefetched
//   kForeseen   --end_byte-->   kText         a context sees the match: its lines are not known yet
//
// No other call changes it, but begin_block(): kText.
enum class Progress : std::uint8_t {
  kText, kMatched, kPrepared, kPrefetched, kAsked, kFirst, kFirstAhead, kAskedAgain, kSecond, kForeseen
};

// The tables that a block's streams share, and the streams.
class ContextMixer {
 public:
  // learned: profile.n_learned() values; kept by reference, copied at reset.
  ContextMixer(const Profile& profile, const std::vector<std::uint32_t>& learned);
  ~ContextMixer();
  ContextMixer(const ContextMixer&) = delete;
  ContextMixer& operator=(const ContextMixer&) = delete;

  // Chooses the mixer's instruction set (the best one for nullptr); false if this machine lacks it.
  bool use_isa(const char* isa);
  // n_token: V of the vocabulary, with a language model.
  void use_vocabulary(std::uint32_t n_token) { token_bits_ = n_token > 65534 ? 20 : 16; }
  const char* isa() const { return mixing_->isa; }

  // Forgets everything; tables are sized for blocks of tables_nbytes. nbytes: of the block that begins now.
  void reset(std::uint32_t tables_nbytes, std::uint32_t nbytes, int n_stream);
  void reset(std::uint32_t nbytes, int n_stream) { reset(nbytes, nbytes, n_stream); }
  // Bytes that a mixer of that profile takes at most after reset() and begin_block(): tables, maps, weights, streams and
  // history. nbytes: of the block; tables_nbytes: what reset() gets, at least 1. chained: for a block that goes on where
  // others ended. The tables are those of the first one, whose size is not known: as large as they may be, but for those
  // that a stream has for itself. These are counted by tables_nbytes; the first block was counted when it came.
  static std::size_t memory_nbytes(const Profile& profile, std::uint32_t nbytes, std::uint32_t tables_nbytes, int n_stream,
                                   bool chained);
  // With a single stream, between blocks: all is to be as it is now after rewind(), as often as that is called. false if
  // it cannot be: too much has been coded since.
  void mark();
  bool rewind();
  // Begins a block of nbytes: stream s covers [s * n / B, (s + 1) * n / B).
  void begin_block(std::uint32_t nbytes);

  // Before the first bit of a nibble, for all streams that begin one: what will be read is asked for; the slots are found,
  // or made.
  void fetch(int s);
  void lookup(int s);
  // The next bit of stream s[k] is 1 with probability p[k] / 65536, p of 1 to 65535. Streams take every part of the work
  // together, so that one's waiting for memory is the others' time.
  void predict(const int* s, int n, std::uint32_t* p);
  void take(const int* s, int n, const std::uint8_t* bits);
  // Learns from the bits of the last take(). Before it, streams may go on as far as fetch(), where nothing depends on what
  // is learned: the lines that fetch() asks for arrive meanwhile.
  void learn();
  void end_byte(int s);  // after eight bits: the byte becomes visible
  // When encoding without a language model: the byte that the next eight bits will make. What they will read, and the byte
  // after them, is on its way sooner, and is the same.
  void foretell(int s, std::uint8_t byte);  // before lookup() of its first nibble
  void foresee(int s);                      // after lookup() of its second one

  // With a language model, whose decisions may have only one possible side.
  // Before the first decision of a byte, a token's end among them; fetch() then needs none.
  void begin_byte(int s);
  // Before fetch(): the byte's place in the token, whose trie node and length so far they are, and the tokens before it.
  void set_place(int s, std::uint32_t node, int n_byte, std::uint32_t token1, std::uint32_t token2);
  bool fetched(int s) const;                       // whether fetch() and lookup() were called for the nibble at hand
  void set_lm(int s, std::int32_t stretch);        // its stretch, Q8
  void skip(int s, int bit);                       // a bit that needed no coding
  // Does the token end here? Between bytes: as lookup(), the first and the second part of predict(), and what learns from it.
  void lookup_end(int s, std::uint32_t token);
  void begin_end(int s, std::int32_t stretch, std::uint32_t token, std::uint32_t token_before, int n_byte,
                 const TokenTrie& trie);
  std::uint32_t predict_end(int s);
  void update_end(int s, int bit);

  Progress progress(int s) const;
  std::vector<std::uint32_t> learned() const;

 private:
  static constexpr int kRowMax = 32;  // of the selectors, the final maps, the second layer, the language model's maps
  static_assert(kSelectorMax + kApmMax + 1 + kLmMapMax <= kRowMax && kSelectorMax <= kMixerSets, "rows have their places");
  struct Stream;
  struct Nibble;
  struct Mark;

  // The byte at hand: its matches, the rows of weights that they and the text choose, the hashes of its contexts.
  void find_matches(Stream& stream);
  void set_rows(Stream& stream);
  void prepare(Stream& stream);
  void hash_contexts(Stream& stream);
  // Asks for the lines of a nibble's slots, after `node` (0: the byte begins).
  void fetch_lines(const Stream& stream, std::uint32_t node, std::uint32_t* mixed);
  // For these and the direct counters; and for the cells of the final maps that byte's next four bits will see.
  void fetch_nibble(Stream& stream, std::uint32_t node, Nibble& nibble);
  void fetch_maps(const Stream& stream, unsigned byte);
  void take_text(Stream& stream, std::uint8_t byte);
  void set_origins();
  // The parts of predict(): which rows and histories count, what they say, and the maps after the mixture.
  void choose(Stream& stream);
  Cells cells_of(const Stream& stream) const;
  void gather(Stream& stream);
  void gather_lm(Stream& stream);
  std::uint32_t refine(Stream& stream);

  const Profile profile_;
  const std::vector<std::uint32_t>& prior_;
  const int n_input_, n_set_;
  const Logistic* const logistic_;
  const BitHistories* const histories_;
  const MixingKernels* mixing_;
  alignas(64) std::uint32_t limit_[kCellMax];  // of the counters' counts
  // A row at a bit is its stream's base and what the bits so far add, but for some.
  std::uint8_t selector_[kRowMax] = {};
  RowRules rules_;  // strides in bytes
  char* origin_[kRowMax] = {};  // where row 0 lies
  int n_row_ = 0;
  int match_row_[kRowMax] = {}, n_match_row_ = 0;  // those that are 0 where the match model gives no input
  int lm_row_[kRowMax] = {}, n_lm_row_ = 0;        // those that depend on the language model
  const std::uint64_t features_;  // those that contexts see, a bit each
  bool matches_first_ = false;  // matches are found before contexts are hashed; else when their slots are
  int order_[kContextMax];  // contexts of a single order, in their order
  int n_order_ = 0;
  // What of the place in the token a context sees: a bit for each of kBegun and the features after it.
  static constexpr int kPlaceFeatures = kFeatureCount - kBegun;
  std::uint8_t place_[kContextMax] = {};
  std::uint8_t places_[1 << kPlaceFeatures] = {};  // those there are
  int n_place_ = 0;
  Table<std::uint32_t> learned_;
  Table<std::uint32_t> direct_[kDirectMax];  // counters: 22-bit probability, 10-bit count
  std::vector<Table<std::uint16_t>> apm_, lm_map_;
  std::unique_ptr<TokenEnd> end_;
  SlotTable slots_;
  MatchTables matches_;
  History history_;
  std::vector<std::unique_ptr<Stream>> streams_;
  std::vector<Stream*> learning_;  // those whose bit has come since learn()
  int n_learning_ = 0;
  std::unique_ptr<Mark> mark_;
  Journal* journal_ = nullptr;  // of what changed since mark(); null where nothing is marked
  std::uint32_t base_ = 0, nbytes_ = 0;
  bool fresh_ = true;
  int token_bits_ = 16;  // TokenEnd::Situation::token_bits
};

}  // namespace lmcodec
