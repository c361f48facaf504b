#include "lockstep.h"

#include <algorithm>

namespace lmcodec {

Lockstep::Lockstep(ContextMixer& mixer, int n_stream, int n_group)
    : mixer_(mixer), n_stream_(n_stream), n_group_(n_group) {}

void Lockstep::begin(std::uint32_t nbytes) {
  block_ = nullptr;
  mixer_.begin_block(nbytes);
  longest_ = 0;
  for (int s = 0; s <= n_stream_; ++s) {
    begin_[s] = static_cast<std::uint32_t>(static_cast<std::uint64_t>(s) * nbytes / static_cast<unsigned>(n_stream_));
    if (s) longest_ = std::max(longest_, begin_[s] - begin_[s - 1]);
  }
  step_ = 0;
  group_ = -1;
  group_size_ = cursor_ = n_bit_ = 0;
  if (clock_) clock_->begin();
  if (begin_step()) predict_round();
}

bool Lockstep::begin_step() {
  const int in_first = (n_stream_ + n_group_ - 1) / n_group_;
  for (;;) {
    if (++group_ == n_group_) {
      group_ = 0;
      ++step_;
    }
    group_size_ = 0;
    if (step_ >= longest_) return false;
    const int from = group_ == 0 ? 0 : in_first, to = group_ == 0 ? in_first : n_stream_;
    for (int s = from; s < to; ++s)
      if (begin_[s] + step_ < begin_[s + 1]) {
        stream_[group_size_] = s;
        offset_[group_size_++] = begin_[s] + step_;
      }
    if (group_size_) break;
  }
  n_bit_ = 0;
  return true;
}

void Lockstep::predict_round() {
  const bool begins = n_bit_ % 4 == 0;
  for (int k = 0; begins && k < group_size_; ++k) mixer_.fetch(stream_[k]);
  mark(clock_, Phase::kLookup);
  mixer_.learn();  // of the round before
  mark(clock_, Phase::kUpdate);
  for (int k = 0; block_ && n_bit_ == 0 && k < group_size_; ++k) mixer_.foretell(stream_[k], block_[offset_[k]]);
  for (int k = 0; begins && k < group_size_; ++k) mixer_.lookup(stream_[k]);
  mark(clock_, Phase::kLookup);
  for (int k = 0; n_bit_ == 4 && k < group_size_; ++k) mixer_.foresee(stream_[k]);
  mark(clock_, Phase::kByte);
  mixer_.predict(stream_, group_size_, p_);
  mark(clock_, Phase::kPredict);
  cursor_ = 0;
}

void Lockstep::advance() {
  mark(clock_, Phase::kCoder);
  mixer_.take(stream_, group_size_, bit_);
  if (++n_bit_ == 8) {
    for (int k = 0; k < group_size_; ++k) mixer_.end_byte(stream_[k]);
    mark(clock_, Phase::kByte);
    if (!begin_step()) return mixer_.learn();
  }
  predict_round();
}

}  // namespace lmcodec
