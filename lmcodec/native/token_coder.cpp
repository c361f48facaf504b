#include "token_coder.h"

#include <algorithm>

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

}  // namespace

class TokenBlockCoder::Live : public TokenModel {
 public:
  Live(const TokenCoding& coding, int n_stream, int n_group, bool continues)
      : coding_(coding), in_first_((n_stream + n_group - 1) / n_group) {
    const int size[2] = {in_first_, n_stream - in_first_};
    for (int g = 0; g < n_group; ++g) {
      sessions_.push_back(std::make_unique<Session>(coding.network, size[g]));
      for (int s = 0; s < size[g]; ++s) sessions_.back()->reset(s, continues || g * in_first_ + s > 0);
    }
    tokens_.resize(static_cast<std::size_t>(in_first_));
  }

  void step(const int* streams, const std::uint32_t* tokens, int n) override {
    const int group = streams[0] >= in_first_;
    std::fill(tokens_.begin(), tokens_.end(), 0u);  // of streams that are over
    for (int k = 0; k < n; ++k) tokens_[static_cast<std::size_t>(streams[k] - group * in_first_)] = tokens[k];
    sessions_[static_cast<std::size_t>(group)]->step(tokens_.data());
  }

  std::int32_t stretch(int s, const Sides& sides) override {
    const int group = s >= in_first_;
    const Session& session = *sessions_[static_cast<std::size_t>(group)];
    const auto span = [&](std::uint32_t low, std::uint32_t high) {
      return session.span(s - group * in_first_, static_cast<int>(low), static_cast<int>(high));
    };
    return coding_.stretch(span(sides.one_low, sides.one_high), span(sides.zero_low, sides.zero_high));
  }

 private:
  const TokenCoding& coding_;
  const int in_first_;
  std::vector<std::unique_ptr<Session>> sessions_;
  std::vector<std::uint32_t> tokens_;
};

class TokenBlockCoder::Recorded : public TokenModel {
 public:
  explicit Recorded(std::size_t n_stream) : stretches_(n_stream), next_(n_stream) {}

  // bytes and tokens of every stream: [begin[s], begin[s + 1]).
  void record(const TokenCoding& coding, const std::uint8_t* bytes, const std::vector<std::size_t>& begin,
              const std::uint16_t* tokens, const std::vector<std::size_t>& begin_token,
              const std::vector<std::uint32_t>& first, const std::vector<std::uint8_t>& length, bool continues) {
    const std::size_t n_stream = next_.size();
    Session session(coding.network, static_cast<int>(n_stream));
    std::size_t longest = 0;
    std::vector<std::size_t> position(n_stream);
    for (std::size_t s = 0; s < n_stream; ++s) {
      session.reset(static_cast<int>(s), continues || s > 0);
      longest = std::max(longest, begin_token[s + 1] - begin_token[s]);
      position[s] = begin[s];
    }
    constexpr std::size_t kSteps = 256;
    std::vector<std::uint32_t> inputs;
    for (std::size_t t0 = 0; t0 < longest; t0 += kSteps) {
      const std::size_t n = std::min(kSteps, longest - t0);
      inputs.assign(n * n_stream, 0u);  // of streams that are over
      for (std::size_t s = 0; s < n_stream; ++s)
        for (std::size_t t = t0; t < t0 + n && begin_token[s] + t < begin_token[s + 1]; ++t)
          inputs[(t - t0) * n_stream + s] = t ? tokens[begin_token[s] + t - 1] : first[s];
      session.run(inputs.data(), n, [&](std::size_t from, int rows) {
        for (int row = 0; row < rows; ++row) {
          const std::size_t at = from + static_cast<std::size_t>(row), t = t0 + at / n_stream, s = at % n_stream;
          const std::size_t token = begin_token[s] + t;
          if (token >= begin_token[s + 1]) continue;
          const std::uint32_t nbytes = length[token];
          for_each_decision(coding.trie, bytes + position[s], nbytes, token + 1 == begin_token[s + 1],
                            [&](const Sides& sides) {
                              const auto span = [&](std::uint32_t low, std::uint32_t high) {
                                return session.span(row, static_cast<int>(low), static_cast<int>(high));
                              };
                              stretches_[s].push_back(static_cast<std::int16_t>(coding.stretch(
                                  span(sides.one_low, sides.one_high), span(sides.zero_low, sides.zero_high))));
                            });
          position[s] += nbytes;
        }
      });
    }
  }

  void step(const int*, const std::uint32_t*, int) override {}
  std::int32_t stretch(int s, const Sides&) override {
    const std::size_t i = static_cast<std::size_t>(s);
    return stretches_[i][next_[i]++];
  }

 private:
  std::vector<std::vector<std::int16_t>> stretches_;
  std::vector<std::size_t> next_;
};

TokenBlockCoder::TokenBlockCoder(const TokenCoding& coding, const Profile& profile,
                                 const std::vector<std::uint32_t>& learned, int n_stream, int n_group)
    : coding_(coding), n_stream_(n_stream), n_group_(n_group), mixer_(profile, learned),
      lockstep_(mixer_, coding.trie, n_stream, n_group) {}

TokenBlockCoder::~TokenBlockCoder() = default;

void TokenBlockCoder::begin_block(std::uint32_t nbytes) {
  lockstep_.stop();  // an allocation that fails leaves no block under way
  continues_ = !forget_;
  if (forget_) mixer_.reset(nbytes, n_stream_);
  forget_ = false;
}

std::vector<std::uint32_t> TokenBlockCoder::first_tokens() const {
  const std::uint32_t bos = static_cast<std::uint32_t>(coding_.network.shape().vocab_size);
  std::vector<std::uint32_t> first(static_cast<std::size_t>(n_stream_), bos + 1);
  if (!continues_) first[0] = bos;
  return first;
}

void TokenBlockCoder::begin_encode(const std::uint8_t* bytes, std::uint32_t nbytes, const std::uint16_t* tokens,
                                   std::size_t n_token) {
  begin_block(nbytes);
  bytes_.assign(bytes, bytes + nbytes);
  ends_.assign(nbytes, 0);
  const std::uint64_t n_stream = static_cast<std::uint64_t>(n_stream_);
  std::vector<std::size_t> begin, begin_token;
  std::vector<std::uint8_t> length(n_token);
  std::size_t t = 0, at = 0;
  for (std::uint64_t s = 0; s <= n_stream; ++s) {
    const std::size_t border = static_cast<std::size_t>(s * nbytes / n_stream);
    for (; at < border; ++t) {
      length[t] = coding_.trie.nbytes(tokens[t]);
      at += length[t];
      ends_[at - 1] = 1;
    }
    begin.push_back(border);
    begin_token.push_back(t);
  }
  const std::vector<std::uint32_t> first = first_tokens();
  auto recorded = std::make_unique<Recorded>(static_cast<std::size_t>(n_stream));
  recorded->record(coding_, bytes_.data(), begin, tokens, begin_token, first, length, continues_);
  model_ = std::move(recorded);
  lockstep_.begin(*model_, first.data(), bytes_.data(), nbytes, ends_.data());
}

std::size_t TokenBlockCoder::encode(std::uint8_t* bits, std::uint16_t* p16, std::size_t room) {
  std::size_t n = 0;
  for (; n < room && !lockstep_.done(); ++n) {
    const int bit = lockstep_.truth();
    bits[n] = static_cast<std::uint8_t>(bit);
    p16[n] = static_cast<std::uint16_t>(lockstep_.p());
    lockstep_.push(bit);
  }
  return n;
}

void TokenBlockCoder::begin_decode(std::uint8_t* bytes, std::uint32_t nbytes, const std::uint8_t* payload,
                                   std::size_t n) {
  begin_block(nbytes);
  decoder_ = RangeDecoder(payload, n);
  model_ = std::make_unique<Live>(coding_, n_stream_, n_group_, continues_);
  lockstep_.begin(*model_, first_tokens().data(), bytes, nbytes, nullptr);
}

bool TokenBlockCoder::decode(std::size_t n) {
  for (; n && !lockstep_.done() && !decoder_.corrupt(); --n) lockstep_.push(decoder_.decode(lockstep_.p()));
  return !decoder_.corrupt() && !lockstep_.corrupt();
}

}  // namespace lmcodec
