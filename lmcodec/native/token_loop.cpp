#include "token_loop.h"

#include <algorithm>
#include <cstddef>
#include <utility>

#include "logistic.h"
#include "worker.h"

namespace lmcodec {
namespace {

// Calls open(sides) for every decision of a token of n bytes that has two sides, in order. A token that ends its stream
// is not asked whether it ends.
template <typename Open>
void for_each_decision(const TokenTrie& trie, const std::uint8_t* bytes, std::uint32_t n, bool ends_stream, Open open) {
  std::uint32_t node = 0;
  for (std::uint32_t i = 0; i < n; ++i) {
    std::uint32_t from = trie.first_child(node), to = trie.last_child(node);
    const std::uint32_t last = to;
    const auto low = [&](std::uint32_t entry) { return entry == last ? trie.high(node) : trie.low(trie.child(entry)); };
    for (int bit = 7; bit >= 0; --bit) {
      const unsigned upper = (bytes[i] >> bit | 1u) << bit;
      const std::uint32_t middle = trie.split(from, to, upper);
      if (middle != from && middle != to) open(Sides{low(middle), low(to), low(from), low(middle)});
      (bytes[i] >> bit & 1 ? from : to) = middle;
    }
    node = trie.child(from);
    if (i + 1 == n && ends_stream) break;
    const std::uint32_t token = trie.low(node), high = trie.high(node);
    if (trie.is_token(node) && high - token > 1) open(Sides{token, token + 1, token + 1, high});
  }
}

// Returns when that job of the session's is done. Does it here where the worker has not begun it; else takes a part of its
// products meanwhile. Where there is none to take for a while, it rests and asks again: a large model's positions take a
// tenth of a second.
void wait_lending(Worker& worker, std::uint64_t ticket, LmSession& session) {
  constexpr std::chrono::microseconds kRest{100};
  if (worker.take_back(ticket)) return;
  while (!worker.done(ticket)) {
    session.lend([&worker, ticket] { return worker.done(ticket); });
    if (!worker.done(ticket)) worker.wait_for(ticket, kRest);
  }
  worker.wait(ticket);
}

}  // namespace

class TokenBlockLoop::Predictor : public TokenModel {
 public:
  virtual SessionTimes times() const = 0;
  // The state of a block's only stream.
  virtual bool save(std::vector<std::int32_t>& to) = 0;
};

class TokenBlockLoop::Live : public Predictor {
 public:
  // helped: a second thread steps one group's streams while another's are coded, helped by the first where that one waits;
  // of a single group it takes a part of each step. state: with a single stream, where its network goes on; or null.
  Live(const TokenCoding& coding, int n_stream, int n_group, bool continues, bool helped, bool timed,
       CancelRef cancel, const std::vector<std::int32_t>* state)
      : coding_(coding), in_first_((n_stream + n_group - 1) / n_group) {
    helped = helped && coding.model.may_be_helped();
    const Help help = !helped ? Help::kNone : n_group == 1 ? Help::kThread : Help::kLent;
    const int size[2] = {in_first_, n_stream - in_first_};
    for (int g = 0; g < n_group; ++g) {
      sessions_.push_back(coding.model.session(size[g], {help, timed, cancel}));
      for (int s = 0; s < size[g]; ++s) sessions_.back()->begin(s, continues || g * in_first_ + s > 0);
    }
    if (state) sessions_[0]->restore(0, *state);
    for (int g = 0; g < n_group; ++g) tokens_[g].resize(static_cast<std::size_t>(size[g]));
    worker_ = with_thread<Worker>(helped && n_group > 1);
  }

  void step(int group, const int* streams, const std::uint32_t* tokens, int n) override {
    std::vector<std::uint32_t>& all = tokens_[group];
    std::fill(all.begin(), all.end(), 0u);  // of streams that are over
    for (int k = 0; k < n; ++k) all[static_cast<std::size_t>(streams[k] - group * in_first_)] = tokens[k];
    const auto job = [this, group] { sessions_[static_cast<std::size_t>(group)]->step(tokens_[group].data()); };
    submitted_[group] = worker_ && !worker_->resting();
    if (submitted_[group]) ticket_[group] = worker_->submit(job);
    else job();
  }

  void wait(int group) override {
    if (submitted_[group]) wait_lending(*worker_, ticket_[group], *sessions_[static_cast<std::size_t>(group)]);
  }

  std::int32_t stretch(int s, const Sides& sides) override {
    const int group = s >= in_first_;
    const LmSession& session = *sessions_[static_cast<std::size_t>(group)];
    const auto span = [&](std::uint32_t low, std::uint32_t high) {
      return session.span(s - group * in_first_, low, high);
    };
    return coding_.stretch(span(sides.one_low, sides.one_high), span(sides.zero_low, sides.zero_high));
  }

  bool save(std::vector<std::int32_t>& to) override { return sessions_[0]->save(0, to); }

  SessionTimes times() const override {
    SessionTimes sum;
    for (const auto& session : sessions_) {
      const SessionTimes times = session->times();
      sum.products += times.products;
      sum.elements += times.elements;
      sum.frequencies += times.frequencies;
    }
    return sum;
  }

 private:
  const TokenCoding& coding_;
  const int in_first_;
  std::vector<std::unique_ptr<LmSession>> sessions_;  // of each group
  std::vector<std::uint32_t> tokens_[2];
  bool submitted_[2] = {};
  std::uint64_t ticket_[2] = {};
  std::unique_ptr<Worker> worker_;  // the last: it uses the others
};

class TokenBlockLoop::Recorded : public Predictor {
 public:
  // bytes, ends: as TokenLockstep's, kept by reference. Bytes and tokens of stream s are those from begin[s] and
  // begin_token[s] on, up to the next stream's. first: the token before each stream's. helped: a second thread runs
  // ahead.
  Recorded(const TokenCoding& coding, const std::uint8_t* bytes, std::vector<std::size_t> begin,
           std::vector<std::uint32_t> tokens, std::vector<std::size_t> begin_token, std::vector<std::uint32_t> first,
           bool continues, bool helped, bool timed, CancelRef cancel, const std::vector<std::int32_t>* state)
      : coding_(coding), n_stream_(first.size()),
        session_(coding.model.session(static_cast<int>(n_stream_), {helped ? Help::kLent : Help::kNone, timed, cancel})),
        bytes_(bytes),
        position_(std::move(begin)), tokens_(std::move(tokens)), begin_token_(std::move(begin_token)),
        first_(std::move(first)), step_(n_stream_), stretches_(n_stream_), fresh_(n_stream_), next_(n_stream_) {
    for (std::size_t s = 0; s < n_stream_; ++s) {
      session_->begin(static_cast<int>(s), continues || s > 0);
      longest_ = std::max(longest_, begin_token_[s + 1] - begin_token_[s]);
    }
    if (state) session_->restore(0, *state);
    worker_ = with_thread<Worker>(helped);
    begin_record();
  }

  // A stream takes as many steps as it has tokens.
  void step(int, const int* streams, const std::uint32_t*, int n) override {
    for (int k = 0; k < n; ++k) wanted_ = std::max(wanted_, ++step_[static_cast<std::size_t>(streams[k])]);
  }

  void wait(int) override {
    while (available_ < wanted_) take_record();
  }

  std::int32_t stretch(int s, const Sides&) override {
    const std::size_t i = static_cast<std::size_t>(s);
    return stretches_[i][next_[i]++];
  }

  bool save(std::vector<std::int32_t>& to) override { return session_->save(0, to); }

  SessionTimes times() const override { return session_->times(); }

 private:
  void begin_record() {
    submitted_ = worker_ && !worker_->resting();
    if (submitted_) ticket_ = worker_->submit([this] { record(); });
  }

  // Takes over what was recorded, and has more recorded.
  void take_record() {
    if (submitted_) wait_lending(*worker_, ticket_, *session_);
    else record();
    for (std::size_t s = 0; s < n_stream_; ++s) {
      std::vector<std::int16_t>& known = stretches_[s];
      known.erase(known.begin(), known.begin() + static_cast<std::ptrdiff_t>(next_[s]));
      known.insert(known.end(), fresh_[s].begin(), fresh_[s].end());
      fresh_[s].clear();
      next_[s] = 0;
    }
    available_ = recorded_;
    if (available_ < longest_) begin_record();
  }

  // Answers the decisions of some steps more. Only these are kept: a whole block's would take 13 bytes a byte.
  void record() {
    constexpr std::size_t kRows = 256;  // positions that a session takes through its layers at once
    const std::size_t rows = session_->sum_rows() ? session_->sum_rows() : kRows;
    const std::size_t from = recorded_, n = std::min(std::max<std::size_t>(1, rows / n_stream_), longest_ - from);
    inputs_.assign(n * n_stream_, 0u);  // of streams that are over
    for (std::size_t s = 0; s < n_stream_; ++s)
      for (std::size_t t = from; t < from + n && begin_token_[s] + t < begin_token_[s + 1]; ++t)
        inputs_[(t - from) * n_stream_ + s] = t ? tokens_[begin_token_[s] + t - 1] : first_[s];
    if (session_->sum_rows()) {
      record_sums(from, n);
    } else {
      session_->run(inputs_.data(), n, [&](std::size_t first, int n_row) {
        for (int row = 0; row < n_row; ++row)
          open_decisions(from, first + static_cast<std::size_t>(row), [&](std::size_t s, const Sides& sides) {
            answer(s, session_->span(row, sides.one_low, sides.one_high),
                   session_->span(row, sides.zero_low, sides.zero_high));
          });
      });
    }
    recorded_ += n;
  }

  // All decisions first, then the sums on both sides of each from where they are made.
  void record_sums(std::size_t from, std::size_t n) {
    spans_.clear();
    deciding_.clear();
    for (std::size_t at = 0; at < n * n_stream_; ++at)
      open_decisions(from, at, [&](std::size_t s, const Sides& sides) {
        const std::uint32_t row = static_cast<std::uint32_t>(at);
        spans_.push_back({row, sides.one_low, sides.one_high});
        spans_.push_back({row, sides.zero_low, sides.zero_high});
        deciding_.push_back(s);
      });
    sums_.resize(spans_.size());
    session_->sums(inputs_.data(), n, spans_.data(), spans_.size(), sums_.data());
    for (std::size_t i = 0; i < deciding_.size(); ++i) answer(deciding_[i], sums_[2 * i], sums_[2 * i + 1]);
  }

  // Calls open(s, sides) for every decision of the token at position `at` of those recorded, t * B + s, if there is one.
  template <typename Open>
  void open_decisions(std::size_t from, std::size_t at, Open open) {
    const std::size_t s = at % n_stream_, token = begin_token_[s] + from + at / n_stream_;
    if (token >= begin_token_[s + 1]) return;
    const std::uint32_t nbytes = coding_.trie.nbytes(tokens_[token]);
    for_each_decision(coding_.trie, bytes_ + position_[s], nbytes, token + 1 == begin_token_[s + 1],
                      [&](const Sides& sides) { open(s, sides); });
    position_[s] += nbytes;
  }

  void answer(std::size_t s, std::uint64_t one, std::uint64_t zero) {
    fresh_[s].push_back(static_cast<std::int16_t>(coding_.stretch(one, zero)));
  }

  const TokenCoding& coding_;
  const std::size_t n_stream_;
  const std::unique_ptr<LmSession> session_;
  const std::uint8_t* const bytes_;
  std::vector<std::size_t> position_;  // of the first byte whose decisions are not recorded
  const std::vector<std::uint32_t> tokens_;
  const std::vector<std::size_t> begin_token_;
  const std::vector<std::uint32_t> first_;
  std::vector<std::size_t> step_;                     // steps that each stream has begun
  std::vector<std::vector<std::int16_t>> stretches_;  // of each stream's decisions, from next_ on to come
  std::vector<std::vector<std::int16_t>> fresh_;      // those recorded after them
  std::vector<std::size_t> next_;
  std::vector<std::uint32_t> inputs_;
  // Of a session that gives sums: both sides of every decision, their sums, the decision's stream.
  std::vector<TokenSpan> spans_;
  std::vector<std::uint64_t> sums_;
  std::vector<std::size_t> deciding_;
  // Steps: of the stream with most tokens, begun by any stream, recorded, in stretches_.
  std::size_t longest_ = 0, wanted_ = 0, recorded_ = 0, available_ = 0;
  bool submitted_ = false;
  std::uint64_t ticket_ = 0;
  std::unique_ptr<Worker> worker_;  // the last: it uses the others
};

TokenBlockLoop::TokenBlockLoop(const TokenCoding& coding, const Profile& profile,
                               const std::vector<std::uint32_t>& learned, int n_stream, int n_group)
    : coding_(coding), n_stream_(n_stream), n_group_(n_group),
      mixer_(std::make_unique<ContextMixer>(profile, learned)),
      lockstep_(mixer_.get(), coding.trie, n_stream, n_group) {
  mixer_->use_vocabulary(coding.model.n_token());
}

TokenBlockLoop::TokenBlockLoop(const TokenCoding& coding, int n_stream, int n_group)
    : coding_(coding), n_stream_(n_stream), n_group_(n_group), lockstep_(nullptr, coding.trie, n_stream, n_group) {}

TokenBlockLoop::~TokenBlockLoop() = default;

std::size_t TokenBlockLoop::memory_nbytes(std::uint32_t n_token, std::int64_t stream_nbytes, std::uint32_t nbytes,
                                          int n_stream, bool encoding, bool alone) {
  constexpr std::size_t kBuffers = 3u << 20;       // of a session beside its streams
  constexpr std::int64_t kStream = 64 << 10;       // states and frequencies, where a model says less
  constexpr std::size_t kToken = 128 * (4 + 4);    // rows of a session: frequencies and their sums
  constexpr std::size_t kEncodedByte = 4 + 1 + 1;  // its token at most, whether one ends there, itself
  constexpr std::size_t kByteAlone = 2;            // what a decision's answers take, where no history is beside them
  return kBuffers + static_cast<std::size_t>(std::max(kStream, stream_nbytes) * n_stream) + kToken * n_token +
         std::size_t{nbytes} * ((encoding ? kEncodedByte : 0) + (alone ? kByteAlone : 0));
}

void TokenBlockLoop::set_timed(bool timed) {
  clock_ = timed ? std::make_unique<PhaseClock>() : nullptr;
  lockstep_.use_clock(clock_.get());
}

SessionTimes TokenBlockLoop::network_times() const { return model_ ? model_->times() : SessionTimes(); }

void TokenBlockLoop::begin_block(std::uint32_t nbytes) {
  const bool continues = !forget_, from_mark = at_mark_;
  stop();  // until the block is under way: an allocation may fail
  continues_ = continues;
  from_mark_ = from_mark;
  if (!continues && mixer_) mixer_->reset(tables_nbytes_ ? tables_nbytes_ : nbytes, nbytes, n_stream_);
}

void TokenBlockLoop::begin_lockstep(std::unique_ptr<Predictor> model, std::uint8_t* bytes, std::uint32_t nbytes,
                                     const std::uint8_t* ends, Direction direction) {
  model_ = std::move(model);
  lockstep_.begin(*model_, first_tokens().data(), bytes, nbytes, ends);
  direction_ = direction;
  forget_ = false;
}

void TokenBlockLoop::stop() {
  lockstep_.stop();
  model_.reset();
  direction_ = Direction::kNone;
  forget_ = true;
  at_mark_ = from_mark_ = false;
}

void TokenBlockLoop::reset() {
  stop();
  marked_ = false;
}

bool TokenBlockLoop::set_mark() {
  if (n_stream_ != 1 || !mixer_ || !encoding() || !lockstep_.done() || !model_->save(network_)) return false;
  marked_token_ = last_token_;
  mixer_->mark();
  marked_ = at_mark_ = true;
  return true;
}

bool TokenBlockLoop::rewind() {
  if (!marked_ || !mixer_->rewind()) return false;
  stop();
  forget_ = false;
  at_mark_ = true;
  return true;
}

std::vector<std::uint32_t> TokenBlockLoop::first_tokens() const {
  std::vector<std::uint32_t> first(static_cast<std::size_t>(n_stream_), coding_.model.start_token(true));
  if (!continues_) first[0] = coding_.model.start_token(false);
  if (from_mark_) first[0] = marked_token_;
  return first;
}

void TokenBlockLoop::begin_encode(const std::uint8_t* bytes, std::uint32_t nbytes, const std::uint32_t* tokens,
                                  std::size_t n_token, bool helped) {
  begin_block(nbytes);
  last_token_ = n_token ? tokens[n_token - 1] : 0;
  bytes_.assign(bytes, bytes + nbytes);
  ends_.assign(nbytes, 0);
  const std::uint64_t n_stream = static_cast<std::uint64_t>(n_stream_);
  std::vector<std::size_t> begin, begin_token;
  std::size_t t = 0, at = 0;
  for (std::uint64_t s = 0; s <= n_stream; ++s) {
    const std::size_t border = static_cast<std::size_t>(s * nbytes / n_stream);
    for (; at < border; ++t) {
      at += coding_.trie.nbytes(tokens[t]);
      ends_[at - 1] = 1;
    }
    begin.push_back(border);
    begin_token.push_back(t);
  }
  begin_lockstep(std::make_unique<Recorded>(coding_, bytes_.data(), std::move(begin),
                                            std::vector<std::uint32_t>(tokens, tokens + n_token),
                                            std::move(begin_token), first_tokens(), continues_,
                                            helped && !clock_ && coding_.model.may_be_helped(),
                                            clock_ != nullptr, cancel_, state()),
                 bytes_.data(), nbytes, ends_.data(), Direction::kEncode);
}

template <typename Code>
void TokenBlockLoop::or_lost(Code code) {
  try {
    code();
  } catch (...) {
    stop();
    throw;
  }
}

template <typename Record>
std::size_t TokenBlockLoop::take(std::size_t room, Record record) {
  if (clock_) clock_->resume();
  std::size_t n = 0;
  or_lost([&] {
    for (; n < room && !lockstep_.done(); ++n) {
      if (n % kLookEvery == 0) throw_if_set(cancel_);
      const int bit = lockstep_.truth();
      record(n, bit);
      lockstep_.push(bit);
    }
  });
  mark(clock_.get(), Phase::kCoder);
  return n;
}

std::size_t TokenBlockLoop::encode(std::uint8_t* bits, std::uint16_t* p16, std::size_t room) {
  return take(room, [this, bits, p16](std::size_t n, int bit) {
    bits[n] = static_cast<std::uint8_t>(bit);
    p16[n] = static_cast<std::uint16_t>(lockstep_.p());
  });
}

std::size_t TokenBlockLoop::trace(std::uint8_t* bits, std::uint16_t* p16, std::uint32_t* offset,
                                  std::uint16_t* network_p16, std::size_t room) {
  const Logistic& logit = logistic();
  return take(room, [&](std::size_t n, int bit) {
    bits[n] = static_cast<std::uint8_t>(bit);
    p16[n] = static_cast<std::uint16_t>(lockstep_.p());
    offset[n] = lockstep_.offset();
    network_p16[n] = static_cast<std::uint16_t>(logit.squash(lockstep_.stretch()));
  });
}

void TokenBlockLoop::begin_decode(std::uint8_t* bytes, std::uint32_t nbytes, const std::uint8_t* payload,
                                  std::size_t n, bool helped) {
  begin_block(nbytes);
  decoder_ = RangeDecoder(payload, n);
  begin_lockstep(std::make_unique<Live>(coding_, n_stream_, n_group_, continues_, helped && !clock_, clock_ != nullptr,
                                        cancel_, state()),
                 bytes, nbytes, nullptr, Direction::kDecode);
}

bool TokenBlockLoop::decode(std::size_t n) {
  const auto corrupt = [this] { return decoder_.corrupt() || lockstep_.corrupt(); };
  if (clock_) clock_->resume();
  or_lost([&] {
    for (; n && !lockstep_.done() && !corrupt(); --n) {
      if (n % kLookEvery == 0) throw_if_set(cancel_);
      lockstep_.push(decoder_.decode(lockstep_.p()));
    }
  });
  mark(clock_.get(), Phase::kCoder);
  return !corrupt();
}

bool TokenBlockLoop::push(int bit) {
  if (encoding() && bit != lockstep_.truth()) return false;
  or_lost([&] { lockstep_.push(bit); });
  return true;
}

}  // namespace lmcodec
