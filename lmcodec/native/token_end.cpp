#include "token_end.h"

#include <algorithm>
#include <cstddef>

#include "adaptive_map.h"
#include "bit_history.h"
#include "counter.h"
#include "hashing.h"
#include "logistic.h"

namespace lmcodec {
namespace {

constexpr int kTableLog2 = 16;
constexpr int kRate = 6, kFinalRate = 2;
constexpr std::uint32_t kLimit = 255, kMapLimit = 1023;
constexpr int kMapRate = 5;
constexpr int kMapRows[] = {1 << 13, 1 << 16};  // by the token; by the token and the bytes before
constexpr std::size_t kMatchCounters = 16;  // by the match's bucket: 9 are used
constexpr int kOrders = 7;  // contexts that are counted by themselves

std::uint32_t hashed(std::uint64_t x) {
  x *= 0x9E3779B97F4A7C15ull;
  return static_cast<std::uint32_t>(x >> (64 - kTableLog2));
}

}  // namespace

constexpr int TokenEnd::kRows[];

TokenEnd::TokenEnd(int n_context, const std::uint32_t* maps, const std::uint32_t* weights, int table_log2,
                   int n_stream)
    : n_context_(n_context), n_input_(n_input(n_context)), table_log2_(table_log2),
      weights_(weights, weights + n_weight(n_context)), maps_(maps, maps + n_context * 256),
      table_(std::size_t{1} << table_log2), nowhere_(kHalf22 << 10), streams_(static_cast<std::size_t>(n_stream)) {
  std::fill(std::fill_n(limit_, kCounters - 1, kLimit), std::end(limit_), kMapLimit);
  for (Stream& stream : streams_) {
    std::fill(std::begin(stream.counter), std::end(stream.counter), &nowhere_);
    std::fill_n(stream.learns, kCounters - 1, std::uint8_t{1});
  }
  for (int a = 0; a < kMaps; ++a) fill_identity(lm_map_[a], static_cast<std::size_t>(kMapRows[a]));
  for (int c = 0; c < kCounters - 1; ++c) counters_[c].assign(std::size_t{1} << kTableLog2, kHalf22 << 10);
  counters_[kCounters - 1].assign(kMatchCounters, (kHalf22 + kHalf22 / 2) << 10);  // of the match: is it right?
}

// As the constructor makes them.
std::size_t TokenEnd::memory_nbytes(int n_context, int table_log2, int n_stream) {
  std::size_t sum = sizeof(TokenEnd) + table_nbytes<std::uint16_t>(std::size_t{1} << table_log2);
  for (int n_row : kMapRows) sum += table_nbytes<std::uint16_t>(static_cast<std::size_t>(n_row) * kMapCells);
  const std::size_t n_counter = ((kCounters - 1) << kTableLog2) + kMatchCounters;
  sum += (n_weight(n_context) + static_cast<std::size_t>(n_context) * 256 + n_counter) * sizeof(std::uint32_t);
  return sum + static_cast<std::size_t>(n_stream) * sizeof(Stream);
}

void TokenEnd::neutral(int n_context, std::uint32_t* weights) {
  const int n = n_input(n_context);
  std::fill(weights, weights + n_weight(n_context), 0u);
  const int n_first = kFirstRows * n;
  for (int i = 0; i < n_first; i += n) weights[i] = 1 << 16;  // the language model's stretch as it is
  for (int i = n_first; i < n_first + kFinalRows * 16; i += 16)
    for (int k = 0; k < kSets; ++k) weights[i + k] = (1 << 16) / kSets;
}

void TokenEnd::watch(Journal* journal) {
  journal_ = journal;
  const auto watch = [journal](int number, auto& table) {
    journal->watch(number, table.data(), table.size() * sizeof(table[0]));
  };
  watch(kJournalEnd, table_);
  for (int a = 0; a < kMaps; ++a) watch(kJournalEndMap + a, lm_map_[a]);
  for (int c = 0; c < kCounters - 1; ++c) watch(kJournalEndCounter + c, counters_[c]);
  const auto keep = [journal](auto& table) { journal->keep(table.data(), table.size() * sizeof(table[0])); };
  keep(counters_[kCounters - 1]);
  keep(weights_);
  keep(maps_);
}

void TokenEnd::lookup(int s, std::uint32_t token, const std::uint32_t* hash) {
  Stream& stream = streams_[static_cast<std::size_t>(s)];
  for (int i = 0; i < n_context_; ++i) {
    const std::uint32_t h = mix32(hash[i] + token * 0x9E3779B1u);
    stream.entry[i] = &table_[h >> (32 - table_log2_)];
    stream.check[i] = static_cast<std::uint8_t>(h);
    prefetch(stream.entry[i]);
  }
}

void TokenEnd::begin(int s, const Situation& at) {
  Stream& stream = streams_[static_cast<std::size_t>(s)];
  stream.stretch = at.stretch;
  const std::uint64_t token = at.token;
  stream.counter[0] = &counters_[0][token & ((1u << kTableLog2) - 1)];
  stream.counter[1] = &counters_[1][hashed(token << at.token_bits | at.token_before)];
  stream.counter[2] = &counters_[2][hashed(token << 16 | static_cast<std::uint32_t>(at.next_byte))];
  stream.counter[3] = &counters_[3][hashed((token << 32 | at.tail) + 1)];
  const bool match = at.match_bucket > 0;
  stream.counter[4] = match ? &counters_[4][static_cast<std::size_t>(at.match_bucket)] : &nowhere_;
  stream.opposite[4] = match && !at.match_ends ? -1 : 0;
  stream.learns[4] = match;
  for (int c = 0; c < kCounters; ++c) prefetch(stream.counter[c]);
  const MapPlace place(at.stretch);
  const std::uint32_t map_row[kMaps] = {at.token & (kMapRows[0] - 1), mix32(at.token * 0x9E3779B1u + at.tail) >> 16};
  for (int a = 0; a < kMaps; ++a) {
    stream.cell[a] = &lm_map_[a][std::size_t{map_row[a]} * kMapCells + place.cell];
    prefetch(stream.cell[a]);
  }
  if (journal_) {
    for (int c = 0; c < kCounters - 1; ++c) journal_->save(kJournalEndCounter + c, stream.counter[c]);
    for (int i = 0; i < n_context_; ++i) journal_->save(kJournalEnd, stream.entry[i]);
  }
  int known = 0, others = 0;
  for (int i = 0; i < n_context_; ++i) {
    std::uint16_t& entry = *stream.entry[i];
    if (entry >> 8 != stream.check[i]) entry = static_cast<std::uint16_t>(stream.check[i] << 8);
    const std::uint8_t state = static_cast<std::uint8_t>(entry);
    stream.learns[kCounters + i] = state;
    stream.counter[kCounters + i] = &maps_[static_cast<std::size_t>(i * 256 + state)];
    (i < kOrders ? known : others) += (entry & 255) != 0;
  }
  const int row[kSets] = {(at.stretch + kStretchMax) >> 8,
                          match ? at.match_bucket * 2 + (at.match_ends ? 1 : 0) : 0, std::min(at.n_byte, 15),
                          known * 8 + others * 7 / std::max(1, n_context_ - kOrders)};
  std::int32_t* w = reinterpret_cast<std::int32_t*>(weights_.data());
  for (int k = 0; k < kSets; ++k) {
    stream.mixture.weights[k] = w + row[k] * n_input_;
    w += kRows[k] * n_input_;
  }
  stream.mixture.final_weights = w + row[1] * 16;
}

std::uint32_t TokenEnd::predict(int s, const MixingKernels& mixing) {
  Stream& stream = streams_[static_cast<std::size_t>(s)];
  const Logistic& logit = logistic();
  std::int32_t* x = stream.input;
  x[0] = stream.stretch;
  x[1] = (static_cast<std::int32_t>(logit.squash(stream.stretch) << 6) - static_cast<std::int32_t>(kHalf22)) >> 11;
  mixing.read_cells(cells_of(stream), logit.stretch12, stream.value, x + 2);
  x += 2 + 2 * (kCounters + n_context_);
  const MapPlace place(stream.stretch);
  for (int a = 0; a < kMaps; ++a) {
    std::uint16_t*& cell = stream.cell[a];
    *x++ = logit.stretch(place.read(cell) << 6);
    cell += place.nearer();
    if (journal_) journal_->save(kJournalEndMap + a, cell);
  }
  x[0] = 256;
  mixing.mix(stream.input, n_input_, kSets, logit, stream.mixture);
  return std::clamp(stream.mixture.p, 1u, 65535u);
}

void TokenEnd::update(int s, int bit, const MixingKernels& mixing) {
  Stream& stream = streams_[static_cast<std::size_t>(s)];
  mixing.learn(stream.input, n_input_, kSets, bit, kRate, kFinalRate, stream.mixture);
  for (std::uint16_t* cell : stream.cell) train_cell(*cell, bit, kMapRate);
  const BitHistories& histories = bit_histories();
  for (int i = 0; i < n_context_; ++i) {
    std::uint16_t& entry = *stream.entry[i];
    const std::uint8_t state = static_cast<std::uint8_t>(entry);
    if (state != stream.learns[kCounters + i]) {  // two contexts may share an entry: each takes it as the one before left it
      stream.learns[kCounters + i] = state;
      stream.counter[kCounters + i] = &maps_[static_cast<std::size_t>(i * 256 + state)];
    }
    entry = static_cast<std::uint16_t>((entry & 0xff00) | histories.next[state][bit]);
  }
  mixing.train_cells(cells_of(stream), nullptr, bit);  // other streams may have moved them
}

Cells TokenEnd::cells_of(const Stream& stream) const {
  return {stream.counter, stream.opposite, stream.learns, limit_, kCounters + n_context_};
}

}  // namespace lmcodec
