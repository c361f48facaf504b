#include "token_lockstep.h"

#include <algorithm>

#include "logistic.h"

namespace lmcodec {
namespace {

constexpr std::int32_t kStretchLimit = 3071;
constexpr std::int64_t kLn2 = 45426;  // ln 2 * 2^16

int bit_length(std::uint64_t x) {  // x > 0
#if defined(__GNUC__) || defined(__clang__)
  return 64 - __builtin_clzll(x);
#else
  int n = 1;
  for (int k = 32; k; k >>= 1)
    if (x >> k) {
      x >>= k;
      n += k;
    }
  return n;
#endif
}

}  // namespace

std::int64_t TokenStretch::log2(std::uint64_t sum) const {
  const int bits = bit_length(sum) - 1;
  const std::uint64_t index = (bits >= 10 ? sum >> (bits - 10) : sum << (10 - bits)) & 1023;
  return static_cast<std::int64_t>(bits) * 65536 + table_[static_cast<std::size_t>(index)];
}

std::int32_t TokenStretch::operator()(std::uint64_t one, std::uint64_t zero) const {
  const std::int64_t odds = (log2(one) - log2(zero)) * kLn2;  // sums of 1 to 2^45: below 2^38
  const std::int64_t stretch = (odds + (1 << 23)) >> 24;
  return static_cast<std::int32_t>(std::clamp<std::int64_t>(stretch, -kStretchLimit, kStretchLimit));
}

TokenLockstep::TokenLockstep(ContextMixer* mixer, const TokenTrie& trie, int n_stream, int n_group)
    : mixer_(mixer), trie_(trie), n_stream_(n_stream), n_group_(n_group),
      streams_(static_cast<std::size_t>(n_stream)), open_(streams_.size()), p_(streams_.size()),
      stretch_(streams_.size()), bit_(streams_.size()), inside_(streams_.size()), inside_p_(streams_.size()),
      inside_bit_(streams_.size()), stepping_(streams_.size()), tokens_(streams_.size()) {}

void TokenLockstep::begin(TokenModel& model, const std::uint32_t* first, std::uint8_t* bytes, std::uint32_t nbytes,
                          const std::uint8_t* ends) {
  if (mixer_) mixer_->begin_block(nbytes);
  model_ = &model;
  bytes_ = bytes;
  ends_ = ends;
  corrupt_ = false;
  const std::uint64_t n_stream = streams_.size();
  for (std::uint64_t s = 0; s < n_stream; ++s) {
    Stream& stream = streams_[s];
    stream = Stream();
    stream.position = static_cast<std::uint32_t>(s * nbytes / n_stream);
    stream.end = static_cast<std::uint32_t>((s + 1) * nbytes / n_stream);
    stream.token = stream.token_before = first[s];
  }
  if (clock_) clock_->begin();
  for (int g = 0; g < n_group_; ++g) step(g);
  group_ = n_group_ - 1;
  begin_step();
}

int TokenLockstep::gather(int group) {
  const int in_first = (n_stream_ + n_group_ - 1) / n_group_;
  const int from = group == 0 ? 0 : in_first, to = group == 0 ? in_first : n_stream_;
  int n = 0;
  for (int s = from; s < to; ++s) {
    const Stream& stream = streams_[static_cast<std::size_t>(s)];
    if (stream.position == stream.end) continue;
    stepping_[static_cast<std::size_t>(n)] = s;
    tokens_[static_cast<std::size_t>(n++)] = stream.token;
  }
  return n;
}

void TokenLockstep::step(int group) {
  const int n = gather(group);
  if (n) model_->step(group, stepping_.data(), tokens_.data(), n);
  mark(clock_, Phase::kNetwork);
}

void TokenLockstep::begin_step() {
  n_open_ = cursor_ = 0;
  for (int passed = 0; passed < n_group_; ++passed) {
    group_ = (group_ + 1) % n_group_;
    const int n = gather(group_);
    if (!n) continue;
    model_->wait(group_);
    mark(clock_, Phase::kNetwork);
    for (int k = 0; k < n; ++k) {
      const int s = stepping_[static_cast<std::size_t>(k)];
      Stream& stream = streams_[static_cast<std::size_t>(s)];
      stream.node = 0;
      stream.n_byte = 0;
      begin_byte(s);  // the root has two sides: every byte is a token
      open_[static_cast<std::size_t>(n_open_++)] = s;
    }
    mark(clock_, Phase::kByte);
    open_round();
    return;
  }
}

bool TokenLockstep::begin_byte(int s) {
  Stream& stream = streams_[static_cast<std::size_t>(s)];
  stream.at_end = false;
  stream.from = trie_.first_child(stream.node);
  stream.to = trie_.last_child(stream.node);
  stream.c0 = 0;
  stream.n_bit = 0;
  if (mixer_) mixer_->begin_byte(s);
  return go_on(s);
}

std::uint32_t TokenLockstep::child_low(const Stream& stream, std::uint32_t entry) const {
  return entry == trie_.last_child(stream.node) ? trie_.high(stream.node) : trie_.low(trie_.child(entry));
}

bool TokenLockstep::go_on(int s) {
  Stream& stream = streams_[static_cast<std::size_t>(s)];
  for (;;) {
    while (stream.n_bit < 8) {
      const unsigned one = (stream.c0 << 1 | 1u) << (7 - stream.n_bit);
      stream.middle = trie_.split(stream.from, stream.to, one);
      if (stream.middle != stream.from && stream.middle != stream.to) return true;
      const int bit = stream.middle == stream.from;
      if (mixer_) mixer_->skip(s, bit);
      stream.c0 = stream.c0 << 1 | static_cast<std::uint32_t>(bit);
      ++stream.n_bit;
    }
    if (!ends_) bytes_[stream.position] = static_cast<std::uint8_t>(stream.c0);
    ++stream.position;
    if (mixer_) mixer_->end_byte(s);
    stream.node = trie_.child(stream.from);
    ++stream.n_byte;
    const bool is_token = trie_.is_token(stream.node);
    const bool may_go_on = trie_.high(stream.node) - trie_.low(stream.node) > (is_token ? 1u : 0u);
    if (stream.position == stream.end || (is_token && !may_go_on)) {
      if (!is_token) corrupt_ = true;
      end_token(stream);
      return false;
    }
    if (mixer_) mixer_->begin_byte(s);
    if (is_token) {
      stream.at_end = true;
      return true;
    }
    stream.from = trie_.first_child(stream.node);
    stream.to = trie_.last_child(stream.node);
    stream.c0 = 0;
    stream.n_bit = 0;
  }
}

void TokenLockstep::end_token(Stream& stream) {
  stream.token_before = stream.token;
  stream.token = trie_.low(stream.node);
}

void TokenLockstep::open_round() {
  n_inside_ = 0;  // first: streams at the beginning of a nibble
  for (int k = 0; mixer_ && k < n_open_; ++k) {
    const int s = open_[static_cast<std::size_t>(k)];
    const Stream& stream = streams_[static_cast<std::size_t>(s)];
    if (stream.at_end) {
      mixer_->lookup_end(s, trie_.low(stream.node));
    } else if (!mixer_->fetched(s)) {
      mixer_->set_place(s, stream.node, stream.n_byte, stream.token, stream.token_before);
      mixer_->fetch(s);
      inside_[static_cast<std::size_t>(n_inside_++)] = s;
    }
  }
  for (int k = 0; k < n_inside_; ++k) mixer_->lookup(inside_[static_cast<std::size_t>(k)]);
  if (mixer_) mark(clock_, Phase::kLookup);
  for (int k = 0; k < n_open_; ++k) {
    const int s = open_[static_cast<std::size_t>(k)];
    const Stream& stream = streams_[static_cast<std::size_t>(s)];
    Sides sides;
    if (stream.at_end) {
      const std::uint32_t low = trie_.low(stream.node), high = trie_.high(stream.node);
      sides = {low, low + 1, low + 1, high};
    } else {
      const std::uint32_t low = child_low(stream, stream.from), middle = child_low(stream, stream.middle),
                          high = child_low(stream, stream.to);
      sides = {middle, high, low, middle};
    }
    stretch_[static_cast<std::size_t>(k)] = model_->stretch(s, sides);
  }
  mark(clock_, Phase::kSums);
  if (mixer_) {
    predict();
  } else {
    for (int k = 0; k < n_open_; ++k)  // within its bounds: |stretch| <= kStretchLimit
      p_[static_cast<std::size_t>(k)] = logistic().squash(stretch_[static_cast<std::size_t>(k)]);
  }
  mark(clock_, Phase::kPredict);
  cursor_ = 0;
}

void TokenLockstep::predict() {
  n_inside_ = 0;
  for (int k = 0; k < n_open_; ++k) {
    const int s = open_[static_cast<std::size_t>(k)];
    const std::int32_t stretch = stretch_[static_cast<std::size_t>(k)];
    const Stream& stream = streams_[static_cast<std::size_t>(s)];
    if (stream.at_end) {
      mixer_->begin_end(s, stretch, trie_.low(stream.node), stream.token, stream.n_byte, trie_);
    } else {
      mixer_->set_lm(s, stretch);
      inside_[static_cast<std::size_t>(n_inside_++)] = s;
    }
  }
  mixer_->predict(inside_.data(), n_inside_, inside_p_.data());
  for (int k = 0, inside = 0; k < n_open_; ++k) {
    const int s = open_[static_cast<std::size_t>(k)];
    p_[static_cast<std::size_t>(k)] = streams_[static_cast<std::size_t>(s)].at_end
                                          ? mixer_->predict_end(s)
                                          : inside_p_[static_cast<std::size_t>(inside++)];
  }
}

void TokenLockstep::end_round() {
  mark(clock_, Phase::kCoder);
  if (mixer_) {
    for (int k = 0, inside = 0; k < n_open_; ++k) {
      const int s = open_[static_cast<std::size_t>(k)];
      const std::uint8_t bit = bit_[static_cast<std::size_t>(k)];
      if (streams_[static_cast<std::size_t>(s)].at_end) mixer_->update_end(s, bit);
      else inside_bit_[static_cast<std::size_t>(inside++)] = bit;
    }
    mixer_->take(inside_.data(), n_inside_, inside_bit_.data());
    mixer_->learn();
    mark(clock_, Phase::kUpdate);
  }
  int n = 0;
  for (int k = 0; k < n_open_; ++k) {
    const int s = open_[static_cast<std::size_t>(k)];
    const int bit = bit_[static_cast<std::size_t>(k)];
    Stream& stream = streams_[static_cast<std::size_t>(s)];
    bool open;
    if (stream.at_end) {
      if (bit) end_token(stream);
      open = !bit && begin_byte(s);
    } else {
      (bit ? stream.from : stream.to) = stream.middle;
      stream.c0 = stream.c0 << 1 | static_cast<std::uint32_t>(bit);
      ++stream.n_bit;
      open = go_on(s);
    }
    if (open) open_[static_cast<std::size_t>(n++)] = s;
  }
  mark(clock_, Phase::kByte);
  n_open_ = n;
  cursor_ = 0;
  if (n) {
    open_round();
  } else {
    step(group_);
    begin_step();
  }
}

int TokenLockstep::truth() const {
  const Stream& stream = streams_[static_cast<std::size_t>(open_[static_cast<std::size_t>(cursor_)])];
  if (stream.at_end) return ends_[stream.position - 1];
  return bytes_[stream.position] >> (7 - stream.n_bit) & 1;
}

std::uint32_t TokenLockstep::offset() const {
  return streams_[static_cast<std::size_t>(open_[static_cast<std::size_t>(cursor_)])].position;
}

}  // namespace lmcodec
