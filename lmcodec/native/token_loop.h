// Codes blocks with a language model, beside the context models or alone: what Python sees of the whole. FORMAT.md section 8.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "cancel.h"
#include "context_mixer.h"
#include "language_model.h"
#include "phase_clock.h"
#include "range_decoder.h"
#include "token_lockstep.h"
#include "token_trie.h"

namespace lmcodec {

// What all blocks with a model share. Immutable.
struct TokenCoding {
  const LanguageModel& model;
  const TokenTrie& trie;
  TokenStretch stretch;
};

class TokenBlockLoop {
 public:
  TokenBlockLoop(const TokenCoding& coding, const Profile& profile, const std::vector<std::uint32_t>& learned,
                 int n_stream, int n_group);
  // The language model alone: no context models, no tables.
  TokenBlockLoop(const TokenCoding& coding, int n_stream, int n_group);
  ~TokenBlockLoop();

  // Bytes that a loop over a block of nbytes takes at most, beside the model and the context models (ContextMixer knows
  // theirs). stream_nbytes: that a session takes for each stream beyond the first; below 0 where several need smaller
  // buffers than one. alone: there are no context models.
  static std::size_t memory_nbytes(std::uint32_t n_token, std::int64_t stream_nbytes, std::uint32_t nbytes, int n_stream,
                                   bool encoding, bool alone);

  ContextMixer* mixer() { return mixer_.get(); }  // null without context models

  // Whether to measure where the time of the blocks that follow goes. They get no second thread.
  void set_timed(bool timed);
  // What it found of the block at hand, or of the last one; null where it does not measure.
  const PhaseClock* clock() const { return clock_.get(); }
  SessionTimes network_times() const;

  // Once the flag is set, what begins or codes a block throws Cancelled. It counts for the blocks that begin from now on.
  void use_cancel(CancelRef cancel) { cancel_ = std::move(cancel); }

  // Chains that begin from now on have tables as large as a first block of so many bytes asks for; 0: of its own.
  void size_tables(std::uint32_t nbytes) { tables_nbytes_ = nbytes; }
  // Ends the block at hand; the next one is independent of those before.
  void reset();
  // After a block of a single stream was encoded: the next one, and after each rewind() another, goes on from here, network
  // and all. false if that cannot be: no such block, a model whose state cannot be saved, or (rewind) too much coded since.
  bool set_mark();
  bool rewind();
  // Whether a block may begin: the one before has ended, or was forgotten.
  bool may_begin() const { return forget_ || lockstep_.done(); }
  // Encoding. The network runs over many positions at once; tokens: those of all streams one after another, whose
  // strings are the block's bytes. helped: a second thread runs the network ahead. Bytes and tokens are copied. Where this
  // or the next throws, the loop is as after a reset.
  void begin_encode(const std::uint8_t* bytes, std::uint32_t nbytes, const std::uint32_t* tokens, std::size_t n_token,
                    bool helped = false);
  // Up to `room` decisions and their probabilities; returns how many, 0 at the end.
  std::size_t encode(std::uint8_t* bits, std::uint16_t* p16, std::size_t room);
  // As encode(), with more about every decision: the byte of the block that it belongs to, which for the end of a token is
  // the one that follows it; and the probability that the network alone gives.
  std::size_t trace(std::uint8_t* bits, std::uint16_t* p16, std::uint32_t* offset, std::uint16_t* network_p16,
                    std::size_t room);
  // Decoding: the block goes to bytes, which stays where it is until the block is done. helped: with two groups, a second
  // thread steps one while the other is coded; with one it takes a part of each step.
  void begin_decode(std::uint8_t* bytes, std::uint32_t nbytes, const std::uint8_t* payload, std::size_t n,
                    bool helped = false);
  // Up to n decisions more; false if no encoder can have written the payload.
  bool decode(std::size_t n);
  bool done() const { return lockstep_.done(); }
  std::uint32_t position() const { return lockstep_.position(); }  // bytes of the block that are done
  bool encoding() const { return direction_ == Direction::kEncode; }
  bool decoding() const { return direction_ == Direction::kDecode; }
  // One decision at a time, for a coder outside the kernel.
  std::uint32_t p() const { return lockstep_.p(); }
  // False, and nothing is done, if the block that is encoded has another bit there.
  bool push(int bit);

 private:
  class Predictor;  // a model that knows what its sessions took
  class Live;       // steps the model as tokens become known
  class Recorded;   // runs it over tokens that are known
  enum class Direction { kNone, kEncode, kDecode };

  // Takes up to `room` decisions of the block that is encoded; record(n, bit) sees the n-th before it is taken.
  template <typename Record>
  std::size_t take(std::size_t room, Record record);
  // Where coding throws, the block is lost: the loop is as after a reset.
  template <typename Code>
  void or_lost(Code code);
  void stop();
  void begin_block(std::uint32_t nbytes);
  const std::vector<std::int32_t>* state() const { return from_mark_ ? &network_ : nullptr; }
  void begin_lockstep(std::unique_ptr<Predictor> model, std::uint8_t* bytes, std::uint32_t nbytes,
                      const std::uint8_t* ends, Direction direction);
  std::vector<std::uint32_t> first_tokens() const;

  const TokenCoding& coding_;
  const int n_stream_, n_group_;
  std::unique_ptr<ContextMixer> mixer_;
  TokenLockstep lockstep_;
  std::unique_ptr<PhaseClock> clock_;
  CancelRef cancel_;
  std::vector<std::uint8_t> bytes_, ends_;
  std::unique_ptr<Predictor> model_;  // behind what its thread reads, which ends before that goes
  RangeDecoder decoder_{nullptr, 0};
  Direction direction_ = Direction::kNone;
  std::uint32_t tables_nbytes_ = 0;
  bool forget_ = true;
  bool marked_ = false, at_mark_ = false;  // whether there is a mark; whether the next block begins there
  bool from_mark_ = false;                 // whether the block at hand has begun there
  std::uint32_t last_token_ = 0, marked_token_ = 0;  // of the block at hand; before the mark
  std::vector<std::int32_t> network_;                // the network's state at the mark
  bool continues_ = false;  // the block at hand goes on where another ended
};

}  // namespace lmcodec
