// The loop of blocks with a language model, mixed or alone: which stream's which decision is coded next, under which probability.
// FORMAT.md section 8 defines the order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "context_mixer.h"
#include "phase_clock.h"
#include "token_trie.h"

namespace lmcodec {

// A decision between two ranges of tokens, neither of them empty: 1 is [one_low, one_high).
struct Sides {
  std::uint32_t one_low, one_high, zero_low, zero_high;
};

// Predicts the next tokens of streams.
class TokenModel {
 public:
  virtual ~TokenModel() = default;
  // Begins to predict the token after tokens[k] for stream streams[k], k < n: all of a group's streams that go on.
  virtual void step(int group, const int* streams, const std::uint32_t* tokens, int n) = 0;
  // Returns when that is done for a group: its decisions are asked for.
  virtual void wait(int group) = 0;
  // The stretch of a decision of stream s, Q8, within +-3071.
  virtual std::int32_t stretch(int s, const Sides& sides) = 0;
};

// ln(p / (1 - p)) of a decision from the sums on its two sides: Q8, within +-3071. FORMAT.md section 6.5.
class TokenStretch {
 public:
  explicit TokenStretch(const std::int32_t* log2_table) : table_(log2_table, log2_table + 1024) {}
  std::int32_t operator()(std::uint64_t one, std::uint64_t zero) const;  // both at least 1

 private:
  std::int64_t log2(std::uint64_t sum) const;
  std::vector<std::int32_t> table_;
};

class TokenLockstep {
 public:
  // mixer: null where the language model codes alone.
  TokenLockstep(ContextMixer* mixer, const TokenTrie& trie, int n_stream, int n_group);
  // Measures where the time goes; null: does not.
  void use_clock(PhaseClock* clock) { clock_ = clock; }

  // Starts a block of nbytes >= n_stream bytes, the first token of stream s predicted after first[s]. Decoding writes the
  // block to `bytes`; encoding reads it there, with `ends` (nbytes,): 1 where a token ends, the last byte of every stream
  // among them.
  void begin(TokenModel& model, const std::uint32_t* first, std::uint8_t* bytes, std::uint32_t nbytes,
             const std::uint8_t* ends);

  bool done() const { return n_open_ == 0; }
  // Bytes of the block that are done.
  std::uint32_t position() const {
    std::uint32_t n = 0, begin = 0;
    for (const Stream& stream : streams_) {
      n += stream.position - begin;
      begin = stream.end;
    }
    return n;
  }
  void stop() { n_open_ = 0; }
  // The decision at hand: probability of a 1 in 65536ths, and when encoding what it is.
  std::uint32_t p() const { return p_[cursor_]; }
  int truth() const;
  // The byte of the block that the decision belongs to, which for the end of a token is the one that follows it; and the
  // model's stretch.
  std::uint32_t offset() const;
  std::int32_t stretch() const { return stretch_[static_cast<std::size_t>(cursor_)]; }
  // Takes the bit and goes on to the next decision.
  void push(int bit) {
    bit_[cursor_] = static_cast<std::uint8_t>(bit);
    if (++cursor_ == n_open_) end_round();
  }
  // A stream ended inside a token, which no encoder makes.
  bool corrupt() const { return corrupt_; }

 private:
  struct Stream {
    std::uint32_t end = 0, position = 0;
    std::uint32_t node = 0;              // of the trie: the token so far
    std::uint32_t token = 0, token_before = 0;  // the last complete one, the one before it
    int n_byte = 0;                      // of the token so far
    std::uint32_t from = 0, to = 0;      // children that the bits of the byte so far leave, as entries
    std::uint32_t middle = 0;            // of them, the first behind a 1
    std::uint32_t c0 = 0;
    int n_bit = 0;
    bool at_end = false;                 // the decision is whether the token ends
  };

  int gather(int group);      // its streams that go on, and their last tokens: to stepping_, tokens_; how many
  void step(int group);       // has the model predict for these
  void begin_step();          // the next group with streams that go on
  bool begin_byte(int s);     // true if a decision is open
  bool go_on(int s);          // through what needs no coding; true if a decision is open, false if the token is complete
  void end_token(Stream& stream);
  void open_round();
  void predict();             // p_ of the open decisions, with the mixer
  void end_round();
  std::uint32_t child_low(const Stream& stream, std::uint32_t entry) const;

  ContextMixer* const mixer_;
  const TokenTrie& trie_;
  TokenModel* model_ = nullptr;
  PhaseClock* clock_ = nullptr;
  const int n_stream_, n_group_;
  std::uint8_t* bytes_ = nullptr;
  const std::uint8_t* ends_ = nullptr;
  std::vector<Stream> streams_;
  int group_ = 0;
  int n_open_ = 0, cursor_ = 0;
  std::vector<int> open_;               // streams with an open decision, ascending
  std::vector<std::uint32_t> p_;
  std::vector<std::int32_t> stretch_;
  std::vector<std::uint8_t> bit_;
  // Of the open decisions those inside a byte: streams, probabilities, bits.
  std::vector<int> inside_;
  int n_inside_ = 0;
  std::vector<std::uint32_t> inside_p_;
  std::vector<std::uint8_t> inside_bit_;
  std::vector<int> stepping_;
  std::vector<std::uint32_t> tokens_;
  bool corrupt_ = false;
};

}  // namespace lmcodec
