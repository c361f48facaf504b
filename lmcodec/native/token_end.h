// "Does the token end here?": counters of what the file did before, mixed with the language model's answer.
// Integers only. FORMAT.md section 8.
#pragma once

#include <cstdint>
#include <vector>

#include "mixing.h"

namespace lmcodec {

class TokenEnd {
 public:
  static constexpr int kInputs = 16;
  static constexpr int kSets = 3;
  static constexpr int kRows[kSets] = {24, 24, 16};  // by the model's stretch, the match, the bytes so far
  static constexpr int kWeights = (24 + 24 + 16) * kInputs + 24 * kInputs;  // the second layer's rows follow the first's

  // What is known where the question is asked.
  struct Situation {
    std::int32_t stretch = 0;  // the language model's, Q8
    std::uint32_t token = 0, token_before = 0;
    int n_byte = 0;            // bytes of the token so far, at least 1
    std::uint32_t tail = 0;    // the stream's last four bytes
    int next_byte = 0;         // what the match model predicts, plus 1; 0 without a match
    int match_bucket = 0;      // 1 to 8 by the match's length; 0 without
    bool match_ends = false;   // the longest token of the predicted text ends here
  };

  // weights: kWeights starting values, Q16.
  TokenEnd(const std::uint32_t* weights, int n_stream);
  static void neutral(std::uint32_t* weights);

  // 16-bit probability that it ends, 1 to 65535.
  std::uint32_t predict(int s, const Situation& at, const MixingKernels& mixing);
  void update(int s, int bit, const MixingKernels& mixing);

  const std::vector<std::uint32_t>& weights() const { return weights_; }

 private:
  static constexpr int kCounters = 5;

  struct Stream {
    alignas(64) std::int32_t input[kInputs] = {};
    std::int32_t layer[kSets] = {};
    std::uint32_t layer_p[kSets] = {};
    std::int32_t* weights[kSets] = {};
    std::int32_t* final_weights = nullptr;
    std::uint32_t* counter[kCounters] = {};
    std::uint32_t mixed_p = 0;
    bool match = false;
    int match_bit = 0;  // what the match model expects
  };

  std::vector<std::uint32_t> weights_;
  std::vector<std::uint32_t> counters_[kCounters];
  std::vector<Stream> streams_;
};

}  // namespace lmcodec
