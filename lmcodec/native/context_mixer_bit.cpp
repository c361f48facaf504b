// The context mixer from bit to bit: what the next one will be, and what is learned from it.
#include <algorithm>

#include "adaptive_map.h"
#include "bit_history.h"
#include "context_stream.h"
#include "counter.h"
#include "hashing.h"
#include "logistic.h"

namespace lmcodec {
namespace {

int lm_step(std::int32_t stretch) { return (stretch + kStretchMax) >> 8; }  // 0 to kLmSteps - 1

}  // namespace

std::uint32_t ContextMixer::predict_end(int s) { return end_->predict(s, *mixing_); }

void ContextMixer::update_end(int s, int bit) { end_->update(s, bit, *mixing_); }

void ContextMixer::choose(Stream& stream) {
  const Match& match = stream.match[0];
  const bool agrees = match.agrees(stream.c0, stream.n_bit);
  const std::uint32_t n_bit = static_cast<std::uint32_t>(stream.n_bit);
  const std::uint32_t step = static_cast<std::uint32_t>(lm_step(stream.lm_stretch));
  for (int r = 0; r < n_lm_row_; ++r) {
    std::uint32_t& row = stream.base[lm_row_[r]];
    const std::uint8_t selector = selector_[lm_row_[r]];
    if (selector == kSelectLm) {
      row = step * 8 + n_bit;
    } else if (selector == kSelectToken) {
      row = static_cast<std::uint32_t>(std::min(stream.token_nbytes, 15)) * 8 + n_bit;
    } else {
      row = step * 9;
      if (agrees)
        row += 1 + (match.predicted >> (7 - n_bit) & 1u) * 4 + static_cast<std::uint32_t>(length_bucket(match.length)) / 4;
    }
  }
  alignas(64) std::uint32_t offset[kRowMax];
  mixing_->find_rows(stream.base, rules_, stream.c0, n_bit, (n_row_ + 7) & ~7, offset);
  if (!agrees)
    for (int r = 0; r < n_match_row_; ++r) offset[match_row_[r]] = 0;

  const int n_selector = profile_.n_selector, n_apm = profile_.n_apm, n_lm_map = profile_.n_lm_map;
  int r = 0;
  for (; r < n_selector; ++r) stream.mixture.weights[r] = reinterpret_cast<std::int32_t*>(origin_[r] + offset[r]);
  for (int a = 0; a < n_apm; ++a, ++r) {
    std::uint16_t* cells = reinterpret_cast<std::uint16_t*>(origin_[r] + offset[r]);
    stream.apm[a] = cells;
    prefetch(cells);
    prefetch(cells + kMapCells - 1);
  }
  stream.mixture.final_weights = reinterpret_cast<std::int32_t*>(origin_[r] + offset[r]);
  ++r;
  if (journal_) {
    const std::size_t lines = static_cast<std::size_t>(n_input_) * sizeof(std::int32_t) / Journal::kLine;
    for (int k = 0; k < n_selector; ++k) journal_->save(kJournalWeights, stream.mixture.weights[k], lines);
    journal_->save(kJournalWeights, stream.mixture.final_weights);
  }
  const std::uint32_t lm_cell = MapPlace(stream.lm_stretch).cell;
  for (int a = 0; a < n_lm_map; ++a, ++r) {
    std::uint16_t* cell = reinterpret_cast<std::uint16_t*>(origin_[r] + offset[r]) + lm_cell;
    stream.lm_map[a] = cell;
    prefetch(cell);
  }
}

Cells ContextMixer::cells_of(const Stream& stream) const {
  return {stream.cell, stream.opposite, stream.state, limit_, profile_.n_context + profile_.n_direct + profile_.n_match};
}

void ContextMixer::gather(Stream& stream) {
  const std::uint32_t node = stream.node = stream.node_at_hand();
  const int n_context = profile_.n_context;
  std::uint32_t* const maps = &learned_[profile_.maps_at()];
  std::uint8_t* const* slot = stream.slot;
  for (int i = 0; i < n_context; ++i) {
    const std::uint8_t state = slot[i][node];
    stream.state[i] = state;
    stream.cell[i] = maps + i * 256 + state;  // the empty history's stays at one half: both inputs are 0
  }
  int c = n_context;
  for (int d = 0; d < profile_.n_direct; ++d, ++c) stream.cell[c] = &stream.now->direct[d][node];
  for (int m = 0; m < profile_.n_match; ++m, ++c) {
    const Match& match = stream.match[m];
    const bool agrees = match.agrees(stream.c0, stream.n_bit);
    stream.cell[c] = agrees ? &match.map[stream.n_bit] : &stream.nowhere;
    stream.opposite[c] = agrees && !(match.predicted >> (7 - stream.n_bit) & 1) ? -1 : 0;
    stream.state[c] = agrees;
  }
  mixing_->read_cells(cells_of(stream), logistic_->stretch12, stream.value, stream.input);
}

void ContextMixer::gather_lm(Stream& stream) {
  const Logistic& logit = *logistic_;
  std::int32_t* x = stream.input + 2 * (profile_.n_context + profile_.n_direct + profile_.n_match);
  x[0] = stream.lm_stretch;
  x[1] = (static_cast<std::int32_t>(logit.squash(stream.lm_stretch) << 6) - static_cast<std::int32_t>(kHalf22)) >> 11;
  x += 2;
  const MapPlace place(stream.lm_stretch);
  for (int a = 0; a < profile_.n_lm_map; ++a, ++x) {
    x[0] = logit.stretch(place.read(stream.lm_map[a]) << 6);
    stream.lm_map[a] += place.nearer();
    if (journal_) journal_->save(kJournalLmMap + a, stream.lm_map[a]);
  }
}

std::uint32_t ContextMixer::refine(Stream& stream) {
  std::uint32_t p = stream.mixture.p;
  if (profile_.n_apm) {
    const MapPlace place(stream.mixed);
    std::uint32_t refined = 0;
    for (int a = 0; a < profile_.n_apm; ++a) {
      refined += place.read(stream.apm[a] + place.cell);
      stream.apm[a] += place.cell + place.nearer();
      if (journal_) journal_->save(kJournalMap + a, stream.apm[a]);
    }
    refined /= static_cast<std::uint32_t>(profile_.n_apm);
    const std::uint32_t share = static_cast<std::uint32_t>(profile_.apm_weight);
    p = (p * (16 - share) + refined * share) >> 4;
  }
  return p < 1 ? 1 : p > 65535 ? 65535 : p;
}

void ContextMixer::predict(const int* s, int n, std::uint32_t* p) {
  const auto stream = [this, s](int k) -> Stream& { return *streams_[static_cast<std::size_t>(s[k])]; };
  for (int k = 0; k < n; ++k) gather(stream(k));
  for (int k = 0; k < n; ++k) choose(stream(k));
  for (int k = 0; profile_.lm && k < n; ++k) gather_lm(stream(k));
  for (int k = 0; k < n; ++k)
    stream(k).mixed = mixing_->mix(stream(k).input, n_input_, profile_.n_selector, *logistic_, stream(k).mixture);
  for (int k = 0; k < n; ++k) p[k] = refine(stream(k));
}

void ContextMixer::take(const int* s, int n, const std::uint8_t* bits) {
  for (int k = 0; k < n; ++k) {
    Stream& stream = *streams_[static_cast<std::size_t>(s[k])];
    stream.c0 = stream.c0 << 1 | bits[k];
    ++stream.n_bit;
    stream.bit = bits[k];
    learning_[static_cast<std::size_t>(n_learning_++)] = &stream;
  }
}

void ContextMixer::learn() {
  const int n = n_learning_;
  n_learning_ = 0;
  for (int k = 0; k < n; ++k) {
    const Stream& stream = *learning_[static_cast<std::size_t>(k)];
    mixing_->learn(stream.input, n_input_, profile_.n_selector, stream.bit, profile_.weight_rate, profile_.final_rate,
                   stream.mixture);
  }
  // Copies: a byte that is written might be any of them, for all the compiler knows.
  const int n_context = profile_.n_context, n_apm = profile_.n_apm, n_lm_map = profile_.n_lm_map;
  const int apm_rate = profile_.apm_rate, lm_map_rate = profile_.lm_map_rate;
  std::uint32_t* const maps = &learned_[profile_.maps_at()];
  for (int k = 0; k < n; ++k) {
    Stream& stream = *learning_[static_cast<std::size_t>(k)];
    const int bit = stream.bit;
    for (int a = 0; a < n_apm; ++a) train_cell(*stream.apm[a], bit, apm_rate);
    for (int a = 0; a < n_lm_map; ++a) train_cell(*stream.lm_map[a], bit, lm_map_rate);
    const std::uint32_t node = stream.node;
    const std::uint8_t* const next = &histories_->next[0][bit];
    std::uint8_t* const* const slot = stream.slot;
    bool same = k == 0;  // whether the counters are as they were read: no other stream has moved them
    for (int i = 0; i < n_context; ++i) {
      std::uint8_t* const place = slot[i] + node;
      const std::uint8_t state = *place;
      if (state != stream.state[i]) {  // contexts may share a slot: each takes it as the one before left it
        stream.state[i] = state;
        stream.cell[i] = maps + i * 256 + state;
        same = false;
      }
      *place = next[2 * state];
    }
    stream.same = same;
  }
  for (int k = 0; k < n; ++k) {
    const Stream& stream = *learning_[static_cast<std::size_t>(k)];
    mixing_->train_cells(cells_of(stream), stream.same ? stream.value : nullptr, stream.bit);
  }
}

}  // namespace lmcodec
