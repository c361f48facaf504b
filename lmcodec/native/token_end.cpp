#include "token_end.h"

#include <algorithm>

#include "counter.h"
#include "logistic.h"

namespace lmcodec {
namespace {

constexpr int kTableLog2 = 16;
constexpr int kRate = 3, kFinalRate = 2;
constexpr std::uint32_t kLimit = 255;

std::uint32_t hashed(std::uint64_t x) {
  x *= 0x9E3779B97F4A7C15ull;
  return static_cast<std::uint32_t>(x >> (64 - kTableLog2));
}

}  // namespace

constexpr int TokenEnd::kRows[];

TokenEnd::TokenEnd(const std::uint32_t* weights, int n_stream)
    : weights_(weights, weights + kWeights), streams_(static_cast<std::size_t>(n_stream)) {
  for (int c = 0; c < kCounters - 1; ++c) counters_[c].assign(std::size_t{1} << kTableLog2, kHalf22 << 10);
  counters_[kCounters - 1].assign(16, (kHalf22 + kHalf22 / 2) << 10);  // of the match: is it right?
}

void TokenEnd::neutral(std::uint32_t* weights) {
  std::fill(weights, weights + kWeights, 0u);
  constexpr int n_first = (24 + 24 + 16) * kInputs;
  for (int i = 0; i < n_first; i += kInputs) weights[i] = 1 << 16;  // the language model's stretch as it is
  for (int i = n_first; i < kWeights; i += kInputs)
    for (int k = 0; k < kSets; ++k) weights[i + k] = (1 << 16) / kSets;
}

std::uint32_t TokenEnd::predict(int s, const Situation& at, const MixingKernels& mixing) {
  Stream& stream = streams_[static_cast<std::size_t>(s)];
  const Logistic& logit = logistic();
  std::int32_t* x = stream.input;
  const auto add = [&x](std::int32_t stretch, std::uint32_t p22, std::int32_t sign) {
    x[0] = sign * stretch;
    x[1] = sign * ((static_cast<std::int32_t>(p22) - static_cast<std::int32_t>(kHalf22)) >> 11);
    x += 2;
  };
  add(at.stretch, logit.squash(at.stretch) << 6, 1);
  const std::uint64_t token = at.token;
  stream.counter[0] = &counters_[0][token & ((1u << kTableLog2) - 1)];
  stream.counter[1] = &counters_[1][hashed(token << 16 | at.token_before)];
  stream.counter[2] = &counters_[2][hashed(token << 16 | static_cast<std::uint32_t>(at.next_byte))];
  stream.counter[3] = &counters_[3][hashed((token << 32 | at.tail) + 1)];
  stream.counter[4] = &counters_[4][static_cast<std::size_t>(at.match_bucket)];
  for (int c = 0; c < kCounters - 1; ++c) add(logit.stretch(*stream.counter[c] >> 10), *stream.counter[c] >> 10, 1);
  stream.match = at.match_bucket > 0;
  const std::int32_t sign = !stream.match ? 0 : at.match_ends ? 1 : -1;
  add(logit.stretch(*stream.counter[4] >> 10), *stream.counter[4] >> 10, sign);
  stream.match_bit = at.match_ends ? 1 : 0;
  x[0] = 256;

  const int row[kSets] = {(at.stretch + kStretchMax) >> 8,
                          stream.match ? at.match_bucket * 2 + (at.match_ends ? 1 : 0) : 0, std::min(at.n_byte, 15)};
  std::int32_t* w = reinterpret_cast<std::int32_t*>(weights_.data());
  for (int k = 0; k < kSets; ++k) {
    stream.weights[k] = w + row[k] * kInputs;
    w += kRows[k] * kInputs;
  }
  stream.final_weights = w + row[1] * kInputs;
  std::int32_t sums[kSets];
  mixing.dot_products(stream.input, stream.weights, kSets, kInputs, sums);
  std::int32_t sum = 0;
  for (int k = 0; k < kSets; ++k) {
    stream.layer[k] = std::clamp(sums[k] >> 8, -kStretchMax, kStretchMax);
    stream.layer_p[k] = logit.squash(stream.layer[k]);
    sum += (stream.final_weights[k] * stream.layer[k]) >> 8;
  }
  stream.mixed_p = logit.squash(std::clamp(sum >> 8, -kStretchMax, kStretchMax));
  return std::clamp(stream.mixed_p, 1u, 65535u);
}

void TokenEnd::update(int s, int bit, const MixingKernels& mixing) {
  Stream& stream = streams_[static_cast<std::size_t>(s)];
  const std::int32_t target = bit << 16;
  std::int32_t errors[kSets];
  for (int k = 0; k < kSets; ++k) errors[k] = (target - static_cast<std::int32_t>(stream.layer_p[k])) * kRate >> 4;
  mixing.adapt(stream.input, stream.weights, kSets, kInputs, errors);
  const std::int32_t e = (target - static_cast<std::int32_t>(stream.mixed_p)) * kFinalRate >> 4;
  for (int k = 0; k < kSets; ++k)
    stream.final_weights[k] =
        std::clamp(stream.final_weights[k] + ((stream.layer[k] * e + 0x8000) >> 16), -kWeightMax, kWeightMax);
  for (int c = 0; c < kCounters - 1; ++c) train_counter(*stream.counter[c], bit, kLimit);
  if (stream.match) train_counter(*stream.counter[kCounters - 1], bit == stream.match_bit, 1023);
}

}  // namespace lmcodec
