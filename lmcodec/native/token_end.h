// "Does the token end here?": counters of what the file did before, mixed with the language model's answer.
// Integers only. FORMAT.md section 8.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "journal.h"
#include "mixing.h"
#include "table_memory.h"

namespace lmcodec {

class TokenEnd {
 public:
  static constexpr int kContextMax = 64;
  static constexpr int kOtherInputs = 15;  // besides those of the contexts
  static constexpr int kInputMax = (2 * kContextMax + kOtherInputs + 15) / 16 * 16;
  static int n_input(int n_context) { return (2 * n_context + kOtherInputs + 15) / 16 * 16; }
  static constexpr int kSets = 4;
  // By the model's stretch, the match, the bytes so far, how many contexts were seen before.
  static constexpr int kRows[kSets] = {24, 24, 16, 64};
  static constexpr int kFirstRows = 24 + 24 + 16 + 64;
  static constexpr int kFinalRows = 24;
  // The second layer's rows, of 16, follow the first's.
  static std::size_t n_weight(int n_context) {
    return static_cast<std::size_t>(kFirstRows * n_input(n_context) + kFinalRows * 16);
  }

  // What is known where the question is asked.
  struct Situation {
    std::int32_t stretch = 0;  // the language model's, Q8
    std::uint32_t token = 0, token_before = 0;
    int n_byte = 0;            // bytes of the token so far, at least 1
    int token_bits = 16;       // that a token's number takes in a hash: 16, or 20 for a large vocabulary
    std::uint32_t tail = 0;    // the stream's last four bytes
    int next_byte = 0;         // what the match model predicts, plus 1; 0 without a match
    int match_bucket = 0;      // 1 to 8 by the match's length; 0 without
    bool match_ends = false;   // the longest token of the predicted text ends here
  };

  // maps: (n_context, 256) counters, weights: n_weight(n_context), Q16: starting values. table_log2: entries of the
  // table of histories.
  TokenEnd(int n_context, const std::uint32_t* maps, const std::uint32_t* weights, int table_log2, int n_stream);
  static void neutral(int n_context, std::uint32_t* weights);
  // Bytes that one takes, itself included.
  static std::size_t memory_nbytes(int n_context, int table_log2, int n_stream);

  // Before predict(): finds the histories of the contexts whose hashes (n_context,) these are, for that token.
  void lookup(int s, std::uint32_t token, const std::uint32_t* hash);
  // Then, for the same streams in the same order: what is known, and the 16-bit probability that it ends, 1 to 65535.
  void begin(int s, const Situation& at);
  std::uint32_t predict(int s, const MixingKernels& mixing);
  void update(int s, int bit, const MixingKernels& mixing);

  // What changes from now on is in the journal.
  void watch(Journal* journal);

  const std::vector<std::uint32_t>& weights() const { return weights_; }
  const std::vector<std::uint32_t>& maps() const { return maps_; }

 private:
  static constexpr int kCounters = 5;
  static constexpr int kCellMax = (kContextMax + kCounters + kLanes - 1) / kLanes * kLanes;
  static constexpr int kMaps = 2;

  struct Stream {
    alignas(64) std::int32_t input[2 + 2 * kCellMax] = {};  // kInputMax of them count
    Mixture mixture;
    // Counters: the five, then those of the contexts' histories.
    std::uint32_t* counter[kCellMax] = {};
    alignas(64) std::uint32_t value[kCellMax] = {};
    alignas(64) std::int32_t opposite[kCellMax] = {};
    alignas(64) std::uint8_t learns[kCellMax] = {};  // of the contexts: their histories' states
    std::uint16_t* cell[kMaps] = {};
    std::uint16_t* entry[kContextMax] = {};
    std::uint8_t check[kContextMax] = {};
    std::int32_t stretch = 0;
  };

  Cells cells_of(const Stream& stream) const;

  const int n_context_, n_input_, table_log2_;
  std::vector<std::uint32_t> weights_, maps_;
  Table<std::uint16_t> table_;  // a check, a bit history
  Table<std::uint16_t> lm_map_[kMaps];
  std::vector<std::uint32_t> counters_[kCounters];
  alignas(64) std::uint32_t limit_[kCellMax];  // of the counters' counts
  std::uint32_t nowhere_;                      // for what gives no input
  std::vector<Stream> streams_;
  Journal* journal_ = nullptr;
};

}  // namespace lmcodec
