// The context mixer from byte to byte: what of the next byte is known, found and asked for. Progress draws the order.
#include <algorithm>
#include <stdexcept>
#include <utility>

#include "adaptive_map.h"
#include "context_stream.h"
#include "hashing.h"

namespace lmcodec {

Progress ContextMixer::progress(int s) const { return streams_[static_cast<std::size_t>(s)]->progress; }

void ContextMixer::find_matches(Stream& stream) {
  for (int m = 0; m < profile_.n_match; ++m) {
    Match& match = stream.match[m];
    matches_.find(m, stream.text.tail(), stream.position, history_, stream.own_match[m], match, journal_);
    match.map = &learned_[profile_.match_at() + static_cast<std::size_t>(m) * kMatchMapCells + match.row() * 8];
  }
}

void ContextMixer::set_rows(Stream& stream) {
  const Match& match = stream.match[0];
  const std::uint32_t tail = static_cast<std::uint32_t>(stream.text.tail());
  const std::uint8_t c1 = static_cast<std::uint8_t>(tail), c2 = static_cast<std::uint8_t>(tail >> 8);
  const std::uint8_t c3 = static_cast<std::uint8_t>(tail >> 16);
  std::uint32_t base[kSelectorCount] = {};  // 0 for those of the language model: choose() works them out
  const auto cls = [](std::uint8_t c) { return static_cast<std::uint32_t>(TextState::byte_class(c)); };
  const auto capped = [](int value, int most) { return static_cast<std::uint32_t>(std::min(value, most)); };
  base[kSelectZero] = base[kSelectOrder0] = base[kSelectKnown] = 0;
  base[kSelectByte1] = c1;
  base[kSelectByte2] = c2;
  base[kSelectMatch] = 1 + match.row();
  base[kSelectClasses] = cls(c1) * 64 + cls(c2) * 8 + cls(c3);
  base[kSelectColumn] = capped(stream.text.column(), 31) * 8;
  base[kSelectWord] = capped(stream.text.word_length(), 15) * 8;
  base[kSelectField] = (capped(stream.text.field(), 15) * 5 + static_cast<std::uint32_t>(stream.text.delimiter())) * 8 +
                       cls(stream.text.field_above(history_));
  const int open = stream.text.nest_top();
  const std::uint32_t bracket = open == 0 ? 0 : open == '{' ? 1 : open == '[' ? 2 : open == '(' ? 3 : 4;
  base[kSelectNest] = (bracket * 2 + (stream.text.quoted() ? 1 : 0)) * 8 + cls(c1);
  base[kSelectMatchByte] = 1u + match.predicted;
  base[kSelectOrder1] = static_cast<std::uint32_t>(c1) << 8;
  base[kSelectHash2] = mix32(tail & 0xffff);
  base[kSelectAbove] = stream.text.above(history_);
  base[kSelectHashWord] = mix32(stream.text.word() + c1);
  base[kSelectHash3] = mix32(tail & 0xffffff);
  base[kSelectTokens] = stream.tokens;
  for (int r = 0; r < n_row_; ++r) stream.base[r] = base[selector_[r]];
}

void ContextMixer::begin_byte(int s) {
  Stream& stream = *streams_[static_cast<std::size_t>(s)];
  if (stream.progress != Progress::kText) return;
  find_matches(stream);
  stream.progress = Progress::kMatched;
}

void ContextMixer::prepare(Stream& stream) {
  if (stream.progress >= Progress::kPrepared) return;
  if (matches_first_ && stream.progress < Progress::kMatched) find_matches(stream);
  hash_contexts(stream);
  stream.progress = Progress::kPrepared;
}

void ContextMixer::hash_contexts(Stream& stream) {
  std::uint32_t value[kFeatureCount];
  std::fill(value + kBegun, value + kFeatureCount, 0u);  // set_place() adds these
  stream.text.features(history_, value);
  const Match& match = stream.match[0];
  value[kMatchByte] =
      match.active ? match.predicted + 1u + (static_cast<std::uint32_t>(length_bucket(match.length)) << 9) : 0;
  for (int i = 0; i < profile_.n_context; ++i) {
    std::uint64_t x = (static_cast<std::uint64_t>(i) + 1) * 0x9E3779B97F4A7C15ull;
    for (int f = 0; f < kFeaturesPerContext && profile_.contexts[i][f]; ++f) x = fold(x, value[profile_.contexts[i][f]]);
    stream.hash[i] = stream.placed[i] = static_cast<std::uint32_t>(x >> 20);
  }
}

void ContextMixer::fetch_lines(const Stream& stream, std::uint32_t node, std::uint32_t* mixed) {
  const int n_context = profile_.n_context;
  mixing_->mix_hashes(stream.placed, node * 0x9E3779B1u, (n_context + 15) & ~15, mixed);
  for (int i = 0; i < n_context; ++i) slots_.prefetch(mixed[i]);
}

void ContextMixer::fetch_nibble(Stream& stream, std::uint32_t node, Nibble& nibble) {
  const std::uint32_t tail = static_cast<std::uint32_t>(stream.text.tail());
  for (int d = 0; d < profile_.n_direct; ++d) {
    const std::uint32_t context = (d == 0 ? 0 : d == 1 ? tail & 0xff : d == 2 ? tail & 0xffff : tail & 0xffffff) * 32 + node;
    const std::uint32_t line = d < 2 ? context : mix32(context);
    nibble.direct[d] = &direct_[d][(std::size_t{line} << 4) & (direct_[d].size() - 1)];
    prefetch(nibble.direct[d]);
  }
  if (n_place_)
    for (int i = 0; i < profile_.n_context; ++i) stream.placed[i] = stream.hash[i] + stream.place[place_[i]];
  fetch_lines(stream, node, nibble.line);
}

void ContextMixer::fetch(int s) {
  Stream& stream = *streams_[static_cast<std::size_t>(s)];
  const Progress before = stream.progress;
  if (before == Progress::kPrefetched || before == Progress::kFirstAhead) {
    std::swap(stream.now, stream.next);
  } else {
    prepare(stream);
    fetch_nibble(stream, stream.n_bit < 4 ? 0 : stream.c0 >> (stream.n_bit - 4), *stream.now);
  }
  stream.progress = before < Progress::kAsked ? Progress::kAsked : Progress::kAskedAgain;
}

void ContextMixer::foretell(int s, std::uint8_t byte) { streams_[static_cast<std::size_t>(s)]->foretold = byte; }

void ContextMixer::foresee(int s) {
  Stream& stream = *streams_[static_cast<std::size_t>(s)];
  if (stream.foretold < 0) return;
  take_text(stream, static_cast<std::uint8_t>(stream.foretold));
  stream.progress = Progress::kForeseen;
  if (matches_first_) return;  // what a context sees of the match is known when the byte has ended
  hash_contexts(stream);
  fetch_nibble(stream, 0, *stream.next);
}

void ContextMixer::fetch_maps(const Stream& stream, unsigned byte) {
  for (int r = profile_.n_selector; r < profile_.n_selector + profile_.n_apm; ++r)
    for (int n_bit = stream.n_bit; n_bit < stream.n_bit + 4; ++n_bit) {
      const std::uint32_t c0 = (byte | 256u) >> (8 - n_bit), n = static_cast<std::uint32_t>(n_bit);
      const std::uint32_t row = (stream.base[r] + c0 * rules_.per_c0[r] + n * rules_.per_bit[r]) & rules_.mask[r];
      const char* const cells = origin_[r] + std::size_t{row} * rules_.stride[r];
      prefetch(cells);
      prefetch(cells + rules_.stride[r] - 1);
    }
}

void ContextMixer::lookup(int s) {
  Stream& stream = *streams_[static_cast<std::size_t>(s)];
  const bool first = stream.n_bit < 4;
  const unsigned foretold = static_cast<unsigned>(stream.foretold);  // where it is
  if (stream.progress == Progress::kAsked) {
    if (!matches_first_) find_matches(stream);
    set_rows(stream);
  }
  if (stream.foretold >= 0) {
    fetch_maps(stream, foretold);
    if (first) fetch_nibble(stream, 16u | foretold >> 4, *stream.next);
  } else if (first && stream.match[0].active) {
    // The second nibble's lines, if the match model is right about the first.
    alignas(64) std::uint32_t likely[kContextMax];
    fetch_lines(stream, 16u | stream.match[0].predicted >> 4, likely);
  }
  const int n_context = profile_.n_context;
  if (journal_) {
    for (int i = 0; i < n_context; ++i) journal_->save(kJournalSlots, slots_.line_of(stream.now->line[i]));
    for (int d = 0; d < profile_.n_direct; ++d) journal_->save(kJournalDirect + d, stream.now->direct[d]);
  }
  bool seen[kContextMax];  // asked at once: a later context of this lookup may take the slot
  for (int i = 0; i < n_context; ++i) {
    stream.slot[i] = slots_.find(stream.now->line[i]);
    seen[i] = stream.slot[i][1] != 0;
  }
  int known = 0;
  while (known < n_order_ && seen[order_[known]]) ++known;
  for (int r = 0; r < n_row_; ++r)
    if (selector_[r] == kSelectKnown) stream.base[r] = static_cast<std::uint32_t>(std::min(known, 8) * 8);
  stream.progress = !first ? Progress::kSecond : stream.foretold < 0 ? Progress::kFirst : Progress::kFirstAhead;
}

bool ContextMixer::fetched(int s) const {
  const Stream& stream = *streams_[static_cast<std::size_t>(s)];
  return stream.progress == (stream.n_bit < 4 ? Progress::kFirst : Progress::kSecond);
}

void ContextMixer::set_lm(int s, std::int32_t stretch) {
  streams_[static_cast<std::size_t>(s)]->lm_stretch = stretch;
}

void ContextMixer::set_place(int s, std::uint32_t node, int n_byte, std::uint32_t token1, std::uint32_t token2) {
  Stream& stream = *streams_[static_cast<std::size_t>(s)];
  stream.token_nbytes = n_byte;
  stream.tokens = mix32(node * 0x9E3779B1u + mix32(token1));
  const std::uint32_t part[4] = {n_byte > 0 ? 1u : 0u, node, token1, token2};
  for (int k = 0; k < n_place_; ++k) {
    std::uint64_t x = 0;
    for (int f = 0; f < kPlaceFeatures; ++f)
      if (places_[k] >> f & 1) x = fold(x, part[f]);
    stream.place[places_[k]] = static_cast<std::uint32_t>(x >> 20);
  }
}

void ContextMixer::skip(int s, int bit) {
  Stream& stream = *streams_[static_cast<std::size_t>(s)];
  stream.c0 = stream.c0 << 1 | static_cast<std::uint32_t>(bit);
  ++stream.n_bit;
}

void ContextMixer::lookup_end(int s, std::uint32_t token) {
  Stream& stream = *streams_[static_cast<std::size_t>(s)];
  prepare(stream);
  end_->lookup(s, token, stream.hash);
}

void ContextMixer::begin_end(int s, std::int32_t stretch, std::uint32_t token, std::uint32_t token_before, int n_byte,
                             const TokenTrie& trie) {
  const Stream& stream = *streams_[static_cast<std::size_t>(s)];
  const Match& match = stream.match[0];
  TokenEnd::Situation at;
  at.stretch = stretch;
  at.token = token;
  at.token_before = token_before;
  at.token_bits = token_bits_;
  at.n_byte = n_byte;
  at.tail = static_cast<std::uint32_t>(stream.text.tail());
  // The text that the match model predicts, from the token's first byte on: where does its longest token end?
  const std::uint32_t length = static_cast<std::uint32_t>(n_byte);
  if (match.active && match.length >= length && history_.kept(match.pointer) &&
      history_.held_before(match.pointer) >= length) {
    at.next_byte = 1 + history_.at(match.pointer);
    at.match_bucket = 1 + length_bucket(match.length) / 2;
    at.match_ends =
        trie.longest(history_, match.pointer - length, history_.kept_after(match.pointer) + length) == n_byte;
  }
  end_->begin(s, at);
}

void ContextMixer::take_text(Stream& stream, std::uint8_t byte) {
  history_.put(stream.position, byte);
  ++stream.position;
  stream.text.update(byte, history_);
  for (int m = 0; m < profile_.n_match; ++m) matches_.prefetch(m, stream.text.tail(), stream.own_match[m]);
}

void ContextMixer::end_byte(int s) {
  Stream& stream = *streams_[static_cast<std::size_t>(s)];
  const std::uint8_t byte = static_cast<std::uint8_t>(stream.c0);
  if (stream.foretold >= 0 && byte != stream.foretold)
    throw std::invalid_argument("the bits are not those of the byte that was foretold");
  const bool foreseen = stream.progress == Progress::kForeseen;
  if (!foreseen) take_text(stream, byte);
  stream.progress = foreseen && !matches_first_ ? Progress::kPrefetched : Progress::kText;
  stream.c0 = 1;
  stream.n_bit = 0;
  stream.foretold = -1;
  for (int m = 0; m < profile_.n_match; ++m) stream.match[m].end_byte(byte);
}

}  // namespace lmcodec
