// The one loop of encoding and decoding: which stream's which bit is coded next, under which probability.
// FORMAT.md section 3 is the definition of the order.
#pragma once

#include <cstdint>

#include "context_mixer.h"
#include "phase_clock.h"

namespace lmcodec {

constexpr int kStreamMax = 4;

class Lockstep {
 public:
  Lockstep(ContextMixer& mixer, int n_stream, int n_group);
  // Measures where the time goes; null: does not.
  void use_clock(PhaseClock* clock) { clock_ = clock; }

  // When encoding: the block, whose bytes are known before their bits are pushed; null: they are not.
  void foretell(const std::uint8_t* block) { block_ = block; }
  // Starts a block of nbytes >= n_stream bytes.
  void begin(std::uint32_t nbytes);
  bool done() const { return group_size_ == 0; }
  // Bytes of the block that are done, about.
  std::uint32_t position() const {
    const std::uint32_t nbytes = begin_[n_stream_], n = step_ * static_cast<std::uint32_t>(n_stream_);
    return done() || n > nbytes ? nbytes : n;
  }
  // The decision at hand: byte `offset` of the block, bit `7 - n_bit` of it, probability of a 1 in 65536ths.
  std::uint32_t offset() const { return offset_[cursor_]; }
  int n_bit() const { return n_bit_; }
  std::uint32_t p() const { return p_[cursor_]; }
  // Takes the bit and goes on to the next decision. Throws std::invalid_argument at the end of a byte that is not the one
  // that was foretold: the block is lost.
  void push(int bit) {
    bit_[cursor_] = static_cast<std::uint8_t>(bit);
    if (++cursor_ == group_size_) advance();
  }

 private:
  bool begin_step();    // the next group that has streams with bytes left
  void predict_round();
  void advance();

  ContextMixer& mixer_;
  const int n_stream_, n_group_;
  PhaseClock* clock_ = nullptr;
  const std::uint8_t* block_ = nullptr;
  std::uint32_t begin_[kStreamMax + 1] = {};
  std::uint32_t step_ = 0, longest_ = 0;
  int group_ = 0, group_size_ = 0, cursor_ = 0, n_bit_ = 0;
  int stream_[kStreamMax] = {};
  std::uint32_t offset_[kStreamMax] = {}, p_[kStreamMax] = {};
  std::uint8_t bit_[kStreamMax] = {};
};

}  // namespace lmcodec
