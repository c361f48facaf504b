// The context models and their mixer: from what is known of a stream, the probability that its next bit is 1.
// Integers only. FORMAT.md section 5 is the definition.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "mixing.h"
#include "table_memory.h"
#include "text_state.h"
#include "token_end.h"
#include "token_trie.h"

namespace lmcodec {

struct Logistic;
struct BitHistories;

constexpr int kContextMax = 64;
constexpr int kSelectorMax = 12;
constexpr int kDirectMax = 4;
constexpr int kMatchMax = 3;
constexpr int kCellMax = (kContextMax + kDirectMax + kMatchMax + kLanes - 1) / kLanes * kLanes;
constexpr int kFeaturesPerContext = 4;
constexpr int kApmMax = 6;
constexpr int kLmMapMax = 8;
constexpr int kLearnedRows = 1024;  // a final adaptive map of more rows begins as the identity
constexpr int kLmSteps = 24;  // of 256 each, over +-3072 of stretch

// What chooses one of a mixer's weight vectors, or one row of an adaptive map.
enum Selector : std::uint8_t {
  kSelectZero, kSelectOrder0, kSelectByte1, kSelectByte2, kSelectMatch, kSelectKnown, kSelectClasses, kSelectColumn,
  kSelectWord, kSelectField, kSelectNest, kSelectMatchByte, kSelectOrder1, kSelectHash2, kSelectAbove, kSelectHashWord,
  kSelectHash3,
  // For profiles that mix a language model.
  kSelectLm,       // its stretch, in 24 steps, and the bit's number
  kSelectLmMatch,  // its stretch, and what the match model expects
  kSelectToken,    // bytes of the token so far, and the bit's number
  kSelectTokens,   // the token so far and the one before it
  kSelectorCount
};
// Rows of each selector.
extern const int kSelectorSize[kSelectorCount];

// A frozen choice of contexts, selectors, sizes and rates, and the values learned state begins with.
struct Profile {
  int n_context = 0, n_selector = 0, n_match = 0, n_apm = 0;
  std::uint8_t contexts[kContextMax][kFeaturesPerContext] = {};  // features, kNone where there are fewer
  std::uint8_t selectors[kSelectorMax] = {};
  std::uint8_t apms[kApmMax] = {};      // selectors
  int n_lm_map = 0;
  std::uint8_t lm_maps[kLmMapMax] = {};  // selectors of the maps that refine the language model's probability
  int lm_map_rate = 5;
  int n_end = 0;                        // the first contexts, which token ends have, too
  int end_log2 = 22;                    // entries of the table of token ends at most
  int match_min[kMatchMax] = {};        // shortest match, bytes
  int final_selector = kSelectOrder0;
  int table_log2 = 22;                  // bytes of the slot table at most
  int match_log2 = 18;                  // entries of a match table at most
  int map_limit = 255;                  // an adaptive map's rate is at least 1 / (limit + 1.5)
  int n_direct = 2;                     // orders 0, 1 ... that have counters of their own
  int direct_limit = 255;
  int weight_rate = 6, final_rate = 2;
  int apm_rate = 6;
  int apm_weight = 8;                   // of 16: the adaptive maps' share of the final probability
  int lm = 0;                           // 1: a language model's probability is mixed in

  int n_input() const { return (2 * n_context + 2 * n_direct + 2 * n_match + 2 * lm + n_lm_map + 1 + 15) / 16 * 16; }
  int n_set() const;      // weight vectors of the first layer
  // Learned state in order: adaptive maps, match maps, the adaptive maps of token ends, weights, final weights; with a
  // language model also the weights of its token ends and the final adaptive maps.
  std::size_t maps_at() const { return 0; }
  std::size_t match_at() const { return maps_at() + static_cast<std::size_t>(n_context) * 256; }
  std::size_t end_maps_at() const { return match_at() + static_cast<std::size_t>(n_match) * 1024; }
  std::size_t weights_at() const { return end_maps_at() + static_cast<std::size_t>(n_end) * 256; }
  std::size_t final_at() const { return weights_at() + static_cast<std::size_t>(n_set() * n_input()); }
  std::size_t apm_at() const { return final_at() + static_cast<std::size_t>(kSelectorSize[final_selector]) * 16; }
  std::size_t end_at() const { return apm_at(); }
  std::size_t cells_at() const { return end_at() + (lm ? TokenEnd::n_weight(n_end) : 0); }
  bool learns_cells(int apm) const { return lm && kSelectorSize[apms[apm]] <= kLearnedRows; }
  std::size_t n_cell() const;  // of the final adaptive maps that are learned
  std::size_t n_learned() const { return cells_at() + n_cell(); }
  bool valid(const std::vector<std::uint32_t>& learned) const;  // every value within the bounds the arithmetic needs
  std::vector<std::uint32_t> neutral() const;  // learned state without training
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

  // Forgets everything; tables are sized for blocks of nbytes.
  void reset(std::uint32_t nbytes, int n_stream);
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
  bool fetched(int s) const;                       // whether fetch() was called for the nibble at hand
  void set_lm(int s, std::int32_t stretch);        // its stretch, Q8
  void skip(int s, int bit);                       // a bit that needed no coding
  // Does the token end here? Between bytes: as lookup(), the first and the second part of predict(), and what learns from it.
  void lookup_end(int s, std::uint32_t token);
  void begin_end(int s, std::int32_t stretch, std::uint32_t token, std::uint32_t token_before, int n_byte,
                 const TokenTrie& trie);
  std::uint32_t predict_end(int s);
  void update_end(int s, int bit);

  std::vector<std::uint32_t> learned() const;

 private:
  struct Match;
  static constexpr int kRowMax = 32;  // of the selectors, the final maps, the second layer, the language model's maps
  static_assert(kSelectorMax + kApmMax + 1 + kLmMapMax <= kRowMax && kSelectorMax <= kMixerSets, "rows have their places");
  struct Stream;
  struct Nibble;

  std::uint8_t* find(std::uint32_t hash);
  std::uint32_t match_hash(const Stream& stream, int m) const;
  std::uint32_t* own_match(Stream& stream, int m);  // null: there is none
  std::uint32_t* shared_match(const Stream& stream, int m);
  void find_match(Stream& stream, int m);
  void prepare(int s);
  // What the matches say: found before the contexts where one of them asks, else when slots are looked up.
  void settle(Stream& stream);
  // Asks for the lines of a nibble's slots, after `node` (0: the byte begins).
  void fetch_lines(const Stream& stream, std::uint32_t node, std::uint32_t* mixed);
  // For these and the direct counters; and for the cells of the final maps that byte's next four bits will see.
  void fetch_nibble(Stream& stream, std::uint32_t node, Nibble& nibble);
  void fetch_next(Stream& stream, std::uint32_t node);
  void fetch_maps(const Stream& stream, unsigned byte);
  void take_text(Stream& stream, std::uint8_t byte);
  void set_origins();
  void set_rows(Stream& stream);
  static std::uint32_t node_of(const Stream& stream);
  static bool agrees(const Stream& stream, const Match& match);  // the match model gives an input
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
  std::uint64_t features_ = 0;  // those that contexts see, a bit each
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
  Table<std::uint8_t> table_;
  std::uint32_t line_mask_ = 0;
  std::vector<Table<std::uint32_t>> match_tables_;
  std::uint32_t match_mask_ = 0;
  History history_;
  std::vector<std::unique_ptr<Stream>> streams_;
  std::vector<Stream*> learning_;  // those whose bit has come since learn()
  int n_learning_ = 0;
  std::uint32_t base_ = 0, nbytes_ = 0;
  bool fresh_ = true;
  int token_bits_ = 16;  // TokenEnd::Situation::token_bits
};

}  // namespace lmcodec
