#include "context_mixer.h"

#include <algorithm>
#include <cstring>

#include "adaptive_map.h"
#include "bit_history.h"
#include "counter.h"
#include "hashing.h"
#include "logistic.h"

namespace lmcodec {
namespace {

// A line of 64 bytes: four checks, four slots of 15 nodes. Nodes count from 1.
constexpr int kSlot0 = 3;
// Counters of each direct order: sixteen a nibble, of which node 0 is unused.
constexpr int kDirectLog2[kDirectMax] = {9, 17, 19, 19};
constexpr int kHashRows = 1 << 14;  // of a selector that hashes
constexpr int kTokenRows = 1 << 16;

int lm_step(std::int32_t stretch) { return (stretch + kStretchMax) >> 8; }  // 0 to kLmSteps - 1

int length_bucket(std::uint32_t length) {
  if (length < 8) return static_cast<int>(length);
  if (length < 16) return 8 + static_cast<int>((length - 8) / 4);
  if (length < 32) return 10 + static_cast<int>((length - 16) / 8);
  if (length < 64) return 12;
  if (length < 128) return 13;
  if (length < 512) return 14;
  return 15;
}

int popcount8(unsigned v) {
  int n = 0;
  for (v &= 255; v; v &= v - 1) ++n;
  return n;
}

}  // namespace

const int kSelectorSize[kSelectorCount] = {1,   256, 256, 256, 65,    72,    512, 256, 128,
                                           640, 80,  257, 65536, kHashRows, 256, kHashRows, kHashRows,
                                           kLmSteps * 8, kLmSteps * 9, 16 * 8, kTokenRows};

int Profile::n_set() const {
  int n = 0;
  for (int k = 0; k < n_selector; ++k) n += kSelectorSize[selectors[k]];
  return n;
}

std::size_t Profile::n_cell() const {
  std::size_t n = 0;
  for (int a = 0; a < n_apm; ++a)
    if (learns_cells(a)) n += static_cast<std::size_t>(kSelectorSize[apms[a]]) * kMapCells;
  return n;
}

std::vector<std::uint32_t> Profile::neutral() const {
  std::vector<std::uint32_t> v(n_learned());
  for (std::size_t i = maps_at(); i < weights_at(); ++i) v[i] = kHalf22 << 10;
  for (std::size_t i = match_at(); i < end_maps_at(); ++i) v[i] = (kHalf22 + kHalf22 / 2) << 10;
  const std::size_t stride = static_cast<std::size_t>(n_input());
  for (std::size_t i = weights_at(); i < final_at(); ++i)
    v[i] = (i - weights_at()) % stride % 2 == 0 ? static_cast<std::uint32_t>((1 << 16) * 3 / 10) : 0;
  for (std::size_t i = final_at(); i < apm_at(); ++i)
    v[i] = static_cast<std::uint32_t>((1 << 16) / std::max(n_selector, 1));
  if (lm) {
    TokenEnd::neutral(n_end, &v[end_at()]);
    for (std::size_t i = cells_at(); i < n_learned(); ++i)
      v[i] = identity_cell((i - cells_at()) % kMapCells);
  }
  return v;
}

bool Profile::valid(const std::vector<std::uint32_t>& learned) const {
  for (int i = 0; i < n_context; ++i)
    if (learned[static_cast<std::size_t>(i) * 256] != kHalf22 << 10) return false;
  for (int i = 0; i < n_end; ++i)
    if (learned[end_maps_at() + static_cast<std::size_t>(i) * 256] != kHalf22 << 10) return false;
  for (std::size_t i = weights_at(); i < cells_at(); ++i) {
    const std::int32_t w = static_cast<std::int32_t>(learned[i]);
    if (w > kWeightMax || w < -kWeightMax) return false;
  }
  for (std::size_t i = cells_at(); i < n_learned(); ++i)
    if (learned[i] > 65535) return false;
  return true;
}

struct ContextMixer::Match {
  std::uint32_t pointer = 0;  // the position the prediction is read from
  std::uint32_t length = 0;   // bytes that agreed since the match began or last failed
  std::uint32_t misses = 0;   // one bit a byte, the newest lowest: 1 where the prediction failed
  bool active = false;
  std::uint8_t predicted = 0;
  std::uint32_t* map = nullptr;
};

struct ContextMixer::Stream {
  alignas(64) std::int32_t input[(2 * kContextMax + 32)];
  alignas(64) std::int32_t layer[16];  // stretch of each set's probability, Q8
  TextState text;
  std::uint32_t begin = 0, end = 0, position = 0;
  std::uint32_t c0 = 1;
  int n_bit = 0;
  bool prepared = false;  // features and hashes are those of the byte at hand
  int nibble = 0;         // 1, 2: slots are those of the byte's first, second nibble
  bool begun = false;     // begin_byte() was called for the byte at hand
  std::int32_t lm_stretch = 0;
  int token_nbytes = 0;
  std::uint32_t tokens = 0;  // hash of the token so far and the one before it
  std::uint32_t place[1 << kPlaceFeatures] = {};
  std::uint32_t hash[kContextMax];
  std::uint8_t* slot[kContextMax];
  std::uint8_t state[kContextMax] = {};  // of each slot at the bit at hand
  std::uint32_t* direct[kDirectMax];
  Match match[kMatchMax];
  std::uint32_t base[kRowMax];  // of each Row: what is fixed during the byte
  std::int32_t* weights[kSelectorMax];
  std::int32_t* final_weights = nullptr;
  std::uint32_t layer_p[kSelectorMax];
  std::uint32_t mixed_p = 0;
  std::int32_t mixed_x = 0;
  std::uint16_t* apm[kApmMax];
  std::uint16_t* lm_map[kLmMapMax];
  Table<std::uint32_t> own_match[kMatchMax];
};

ContextMixer::ContextMixer(const Profile& profile, const std::vector<std::uint32_t>& learned)
    : profile_(profile), prior_(learned), n_input_(profile.n_input()), n_set_(profile.n_set()),
      logistic_(&logistic()), histories_(&bit_histories()) {
  use_isa(nullptr);
  match_tables_.resize(static_cast<std::size_t>(profile.n_match));
  for (int i = 0; i < profile.n_context; ++i)
    if (profile.contexts[i][0] >= kOrder1 && profile.contexts[i][0] <= kOrder8 && !profile.contexts[i][1])
      order_[n_order_++] = i;
  for (int i = 0; i < profile.n_context; ++i) {
    for (int f = 0; f < kFeaturesPerContext; ++f)
      if (profile.contexts[i][f] >= kBegun) place_[i] = static_cast<std::uint8_t>(place_[i] | 1 << (profile.contexts[i][f] - kBegun));
    if (place_[i] && std::find(places_, places_ + n_place_, place_[i]) == places_ + n_place_) places_[n_place_++] = place_[i];
  }
  const auto add = [this](std::uint8_t selector) {
    const bool hashes = selector == kSelectTokens || selector == kSelectHash2 || selector == kSelectHash3 || selector == kSelectHashWord;
    Row& row = rows_[n_row_++];
    row.selector = selector;
    row.per_c0 = hashes ? 0x9E3Bu : selector == kSelectOrder0 || selector == kSelectOrder1 ? 1 : 0;
    row.per_bit = selector == kSelectKnown || selector == kSelectColumn || selector == kSelectWord ? 1 : 0;
    row.mask = hashes ? static_cast<std::uint32_t>(kSelectorSize[selector]) - 1 : 0xffffffffu;
    row.is_lm = selector == kSelectLm || selector == kSelectLmMatch || selector == kSelectToken;
    row.needs_match = selector == kSelectMatch || selector == kSelectMatchByte;
  };
  for (int k = 0; k < profile.n_selector; ++k) add(profile.selectors[k]);
  for (int a = 0; a < profile.n_apm; ++a) add(profile.apms[a]);
  add(static_cast<std::uint8_t>(profile.final_selector));
  for (int a = 0; a < profile.n_lm_map; ++a) add(profile.lm_maps[a]);
}

ContextMixer::~ContextMixer() = default;

bool ContextMixer::use_isa(const char* isa) {
  int n;
  const MixingKernels* kernels = mixing_kernels(&n);
  for (int i = 0; i < n; ++i)
    if (!isa || !std::strcmp(kernels[i].isa, isa)) {
      mixing_ = &kernels[i];
      return true;
    }
  return false;
}

void ContextMixer::reset(std::uint32_t nbytes, int n_stream) {
  learned_.assign(prior_.begin(), prior_.end());
  for (int d = 0; d < profile_.n_direct; ++d)
    direct_[d].assign(std::size_t{1} << kDirectLog2[d], kHalf22 << 10);
  int log2 = 12;
  // 16 bytes a slot, two slots a byte and context.
  while (log2 < profile_.table_log2 &&
         (std::uint64_t{1} << log2) < std::uint64_t{nbytes} * 24 * static_cast<unsigned>(profile_.n_context))
    ++log2;
  const std::size_t size = std::size_t{1} << log2;
  if (size > table_.capacity()) Table<std::uint8_t>().swap(table_);  // before the next is made: both would not fit
  table_.assign(size, 0);
  line_mask_ = static_cast<std::uint32_t>(size / 64 - 1);
  const auto match_places = [this](std::uint32_t n) {
    int log2 = 10;
    while (log2 < profile_.match_log2 && (1u << log2) < n) ++log2;
    return std::size_t{1} << log2;
  };
  match_mask_ = static_cast<std::uint32_t>(match_places(nbytes) - 1);
  // A stream's own table: with a language model there may be many streams, and it is as large as they need it.
  const std::uint32_t own_nbytes = profile_.lm ? (nbytes - 1) / static_cast<std::uint32_t>(n_stream) + 1 : nbytes;
  for (auto& t : match_tables_) t.assign(std::size_t{match_mask_} + 1, 0);
  history_.clear();
  streams_.clear();
  apm_.assign(static_cast<std::size_t>(profile_.n_apm), {});
  std::size_t n_cell = profile_.cells_at();
  for (int a = 0; a < profile_.n_apm; ++a) {
    auto& cells = apm_[static_cast<std::size_t>(a)];
    fill_identity(cells, static_cast<std::size_t>(kSelectorSize[profile_.apms[a]]));
    if (profile_.learns_cells(a))
      for (std::uint16_t& cell : cells) cell = static_cast<std::uint16_t>(prior_[n_cell++]);
  }
  lm_map_.assign(static_cast<std::size_t>(profile_.n_lm_map), {});
  for (int a = 0; a < profile_.n_lm_map; ++a)
    fill_identity(lm_map_[static_cast<std::size_t>(a)], static_cast<std::size_t>(kSelectorSize[profile_.lm_maps[a]]));
  if (profile_.lm) {
    int end_log2 = 10;
    while (end_log2 < profile_.end_log2 &&
           (std::uint64_t{1} << end_log2) < std::uint64_t{nbytes} * static_cast<unsigned>(profile_.n_end))
      ++end_log2;
    end_.reset();  // before the next is made: two of them would take twice the memory
    end_ = std::make_unique<TokenEnd>(profile_.n_end, &prior_[profile_.end_maps_at()], &prior_[profile_.end_at()],
                                      end_log2, n_stream);
  }
  for (int s = 0; s < n_stream; ++s) {
    streams_.push_back(std::make_unique<Stream>());
    Stream& stream = *streams_.back();
    std::fill(std::begin(stream.input), std::end(stream.input), 0);
    std::fill(std::begin(stream.layer), std::end(stream.layer), 0);
    if (n_stream > 1)
      for (int m = 0; m < profile_.n_match; ++m)
        stream.own_match[m].assign(match_places(own_nbytes), 0);
  }
  fresh_ = true;
}

void ContextMixer::begin_block(std::uint32_t nbytes) {
  base_ = history_.reserve(nbytes);
  nbytes_ = nbytes;
  const std::uint64_t n_stream = streams_.size();
  for (std::uint64_t s = 0; s < n_stream; ++s) {
    Stream& stream = *streams_[s];
    stream.begin = stream.position = base_ + static_cast<std::uint32_t>(s * nbytes / n_stream);
    stream.end = base_ + static_cast<std::uint32_t>((s + 1) * nbytes / n_stream);
    if (fresh_ || n_stream > 1) stream.text.move_to(stream.begin);
    if (n_stream > 1)
      for (Match& match : stream.match) match = Match();
    // The block before may have been left inside a byte.
    stream.c0 = 1;
    stream.n_bit = 0;
    stream.begun = stream.prepared = false;
    stream.nibble = 0;
  }
  fresh_ = false;
}

std::vector<std::uint32_t> ContextMixer::learned() const {
  std::vector<std::uint32_t> values(learned_.begin(), learned_.end());
  if (end_) {
    std::copy(end_->weights().begin(), end_->weights().end(), values.begin() + static_cast<std::ptrdiff_t>(profile_.end_at()));
    std::copy(end_->maps().begin(), end_->maps().end(), values.begin() + static_cast<std::ptrdiff_t>(profile_.end_maps_at()));
    auto place = values.begin() + static_cast<std::ptrdiff_t>(profile_.cells_at());
    for (int a = 0; a < profile_.n_apm; ++a)
      if (profile_.learns_cells(a)) {
        const auto& cells = apm_[static_cast<std::size_t>(a)];
        place = std::copy(cells.begin(), cells.end(), place);
      }
  }
  return values;
}

std::uint8_t* ContextMixer::find(std::uint32_t hash) {
  std::uint8_t* line = table_.data() + std::size_t{hash & line_mask_} * 64;
  const std::uint8_t check = static_cast<std::uint8_t>(hash >> 24);
  // Two at a time, so that few branches depend on which of the four it is.
  const int first = line[0] == check ? 0 : 1, second = line[2] == check ? 2 : 3;
  const int found = line[first] == check ? first : second;
  if (line[found] == check) return line + kSlot0 + found * 15;
  const std::uint8_t* n = histories_->n;
  int victim = 0, least = n[line[4]];
  for (int k = 1; k < 4; ++k) {
    const int worth = n[line[4 + 15 * k]];
    victim = worth < least ? k : victim;
    least = worth < least ? worth : least;
  }
  line[victim] = check;
  std::uint8_t* slot = line + kSlot0 + victim * 15;
  std::memset(slot + 1, 0, 15);
  return slot;
}

void ContextMixer::find_match(Stream& stream, int m) {
  Match& match = stream.match[m];
  const std::uint32_t minimum = static_cast<std::uint32_t>(profile_.match_min[m]);
  // The last `minimum` bytes of the stream (eight at most are hashed).
  const std::uint64_t kept = stream.text.tail() << (64 - 8 * std::min(minimum, 8u));
  const std::uint32_t hash = static_cast<std::uint32_t>((kept * 0x9E3779B97F4A7C15ull) >> 40);
  Table<std::uint32_t>& shared = match_tables_[static_cast<std::size_t>(m)];
  std::uint32_t* const places[2] = {
      stream.own_match[m].empty() ? nullptr : &stream.own_match[m][hash & (stream.own_match[m].size() - 1)],
      &shared[hash & match_mask_]};
  if (!match.active || match.length < minimum) {
    for (std::uint32_t* place : places) {
      if (!place) continue;
      const std::uint32_t candidate = *place;
      const std::uint32_t most = std::min({40u, history_.held_before(candidate), history_.held_before(stream.position)});
      std::uint32_t length = 0;
      while (length < most && history_.at(candidate - length - 1) == history_.at(stream.position - length - 1)) ++length;
      if (length >= minimum && candidate != stream.position) {
        if (match.active && match.length >= length) break;
        match.active = true;
        match.pointer = candidate;
        match.length = length;
        match.misses = 0;
        break;
      }
    }
  }
  for (std::uint32_t* place : places)
    if (place) *place = stream.position;
  if (match.active && !history_.kept(match.pointer)) match.active = false;
  if (match.active) match.predicted = history_.at(match.pointer);
}


void ContextMixer::set_rows(Stream& stream) {
  const Match& match = stream.match[0];
  const std::uint32_t tail = static_cast<std::uint32_t>(stream.text.tail());
  const std::uint8_t c1 = static_cast<std::uint8_t>(tail), c2 = static_cast<std::uint8_t>(tail >> 8);
  const std::uint8_t c3 = static_cast<std::uint8_t>(tail >> 16);
  std::uint32_t base[kSelectorCount] = {};  // 0 for those of the language model, which predict() works out
  const auto cls = [](std::uint8_t c) { return static_cast<std::uint32_t>(TextState::byte_class(c)); };
  const auto capped = [](int value, int most) { return static_cast<std::uint32_t>(std::min(value, most)); };
  base[kSelectZero] = base[kSelectOrder0] = base[kSelectKnown] = 0;
  base[kSelectByte1] = c1;
  base[kSelectByte2] = c2;
  base[kSelectMatch] = 1 + static_cast<std::uint32_t>(length_bucket(match.length) * 4 + std::min(popcount8(match.misses), 3));
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
  for (int r = 0; r < n_row_; ++r) stream.base[r] = base[rows_[r].selector];
}

void ContextMixer::begin_byte(int s) {
  Stream& stream = *streams_[static_cast<std::size_t>(s)];
  if (stream.begun) return;
  stream.begun = true;
  for (int m = 0; m < profile_.n_match; ++m) find_match(stream, m);
}

void ContextMixer::prepare(Stream& stream) {
  if (stream.prepared) return;
  stream.prepared = true;
  std::uint32_t value[kFeatureCount];
  std::fill(value + kBegun, value + kFeatureCount, 0u);  // set_place() adds these
  stream.text.features(history_, value);
  const Match& match = stream.match[0];
  value[kMatchByte] =
      match.active ? match.predicted + 1u + (static_cast<std::uint32_t>(length_bucket(match.length)) << 9) : 0;
  for (int i = 0; i < profile_.n_context; ++i) {
    std::uint64_t x = (static_cast<std::uint64_t>(i) + 1) * 0x9E3779B97F4A7C15ull;
    for (int f = 0; f < kFeaturesPerContext && profile_.contexts[i][f]; ++f) x = fold(x, value[profile_.contexts[i][f]]);
    stream.hash[i] = static_cast<std::uint32_t>(x >> 20);
  }
  for (int m = 0; m < profile_.n_match; ++m) {
    Match& now = stream.match[m];
    const int bucket = now.active ? length_bucket(now.length) : 0;
    now.map = &learned_[profile_.match_at() + static_cast<std::size_t>(m) * 1024 +
                        static_cast<std::size_t>((bucket * 4 + std::min(popcount8(now.misses), 3)) * 8)];
  }
}

void ContextMixer::lookup(int s) {
  Stream& stream = *streams_[static_cast<std::size_t>(s)];
  const int n_context = profile_.n_context;
  const bool first = stream.nibble == 0;
  begin_byte(s);
  prepare(stream);
  std::uint32_t at[kContextMax];
  stream.nibble = stream.n_bit < 4 ? 1 : 2;
  const std::uint32_t node = stream.n_bit < 4 ? 0 : stream.c0 >> (stream.n_bit - 4);
  const std::uint32_t tail = static_cast<std::uint32_t>(stream.text.tail());
  for (int d = 0; d < profile_.n_direct; ++d) {
    const std::uint32_t context = (d == 0 ? 0 : d == 1 ? tail & 0xff : d == 2 ? tail & 0xffff : tail & 0xffffff) * 32 + node;
    const std::uint32_t line = d < 2 ? context : mix32(context);
    stream.direct[d] = &direct_[d][(std::size_t{line} << 4) & (direct_[d].size() - 1)];
    prefetch(stream.direct[d]);
  }
  for (int i = 0; i < n_context; ++i) {
    at[i] = mix32(stream.hash[i] + node * 0x9E3779B1u + stream.place[place_[i]]);
    prefetch(table_.data() + std::size_t{at[i] & line_mask_} * 64);
  }
  if (stream.n_bit < 4 && stream.match[0].active) {
    // The second nibble's lines, if the match model is right about the first.
    const std::uint32_t likely = 16u | stream.match[0].predicted >> 4;
    for (int i = 0; i < n_context; ++i)
      prefetch(table_.data() + std::size_t{mix32(stream.hash[i] + likely * 0x9E3779B1u + stream.place[place_[i]]) & line_mask_} * 64);
  }
  if (first) set_rows(stream);  // while the lines are on their way
  bool seen[kContextMax];  // asked at once: a later context of this lookup may take the slot
  for (int i = 0; i < n_context; ++i) {
    stream.slot[i] = find(at[i]);
    seen[i] = stream.slot[i][1] != 0;
  }
  int known = 0;
  while (known < n_order_ && seen[order_[known]]) ++known;
  for (int r = 0; r < n_row_; ++r)
    if (rows_[r].selector == kSelectKnown) stream.base[r] = static_cast<std::uint32_t>(std::min(known, 8) * 8);
}

bool ContextMixer::looked_up(int s) const {
  const Stream& stream = *streams_[static_cast<std::size_t>(s)];
  return stream.nibble == (stream.n_bit < 4 ? 1 : 2);
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

std::uint32_t ContextMixer::lm_row(const Stream& stream, std::uint8_t selector, bool agrees) {
  const std::uint32_t step = static_cast<std::uint32_t>(lm_step(stream.lm_stretch));
  const std::uint32_t n_bit = static_cast<std::uint32_t>(stream.n_bit);
  if (selector == kSelectLm) return step * 8 + n_bit;
  if (selector == kSelectToken) return static_cast<std::uint32_t>(std::min(stream.token_nbytes, 15)) * 8 + n_bit;
  if (!agrees) return step * 9;
  const Match& match = stream.match[0];
  const std::uint32_t expected = match.predicted >> (7 - n_bit) & 1;
  return step * 9 + 1 + expected * 4 + static_cast<std::uint32_t>(length_bucket(match.length)) / 4;
}

void ContextMixer::lookup_end(int s, std::uint32_t token) {
  Stream& stream = *streams_[static_cast<std::size_t>(s)];
  begin_byte(s);
  prepare(stream);
  end_->lookup(s, token, stream.hash);
}

std::uint32_t ContextMixer::predict_end(int s, std::int32_t stretch, std::uint32_t token, std::uint32_t token_before,
                                        int n_byte, const TokenTrie& trie) {
  const Stream& stream = *streams_[static_cast<std::size_t>(s)];
  const Match& match = stream.match[0];
  TokenEnd::Situation at;
  at.stretch = stretch;
  at.token = token;
  at.token_before = token_before;
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
  return end_->predict(s, at, *mixing_);
}

void ContextMixer::update_end(int s, int bit) { end_->update(s, bit, *mixing_); }

std::uint32_t ContextMixer::predict(int s) {
  Stream& stream = *streams_[static_cast<std::size_t>(s)];
  const Logistic& logit = *logistic_;
  const int n_bit = stream.n_bit;
  const std::uint32_t c0 = stream.c0;
  // The node within the nibble: 1, then its bits.
  const std::uint32_t node = n_bit < 4 ? c0 : (1u << (n_bit - 4)) | (c0 & ((1u << (n_bit - 4)) - 1));
  const Match& first_match = stream.match[0];
  const bool agrees = first_match.active && ((first_match.predicted | 256u) >> (8 - n_bit)) == c0;
  // Rows of the selectors, in the order of rows_; those of the maps are on their way while the inputs are gathered.
  std::size_t rows[kRowMax];
  for (int r = 0; r < n_row_; ++r) {
    const Row& row = rows_[r];
    const std::uint32_t base = row.needs_match && !agrees ? 0 : stream.base[r];
    rows[r] = row.is_lm ? lm_row(stream, row.selector, agrees)
                        : (base + c0 * row.per_c0 + static_cast<std::uint32_t>(n_bit) * row.per_bit) & row.mask;
  }
  for (int a = 0; a < profile_.n_apm; ++a) {
    stream.apm[a] = &apm_[static_cast<std::size_t>(a)][rows[profile_.n_selector + a] * kMapCells];
    prefetch(stream.apm[a]);
    prefetch(stream.apm[a] + kMapCells - 1);
  }
  const MapPlace lm_place(stream.lm_stretch);
  const int first_lm_map = profile_.n_selector + profile_.n_apm + 1;
  for (int a = 0; a < profile_.n_lm_map; ++a) {
    stream.lm_map[a] = &lm_map_[static_cast<std::size_t>(a)][rows[first_lm_map + a] * kMapCells + lm_place.cell];
    prefetch(stream.lm_map[a]);
  }

  std::int32_t* x = stream.input;
  const std::uint32_t* maps = &learned_[profile_.maps_at()];
  // The empty history's entry stays at one half: both inputs are 0.
  for (int i = 0; i < profile_.n_context; ++i) stream.state[i] = stream.slot[i][node];
  mixing_->map_inputs(maps, stream.state, profile_.n_context, logit.stretch12, x);
  x += 2 * profile_.n_context;
  for (int d = 0; d < profile_.n_direct; ++d, x += 2) {
    const std::uint32_t p = stream.direct[d][node] >> 10;
    x[0] = logit.stretch(p);
    x[1] = (static_cast<std::int32_t>(p) - static_cast<std::int32_t>(kHalf22)) >> 11;
  }
  for (int m = 0; m < profile_.n_match; ++m, x += 2) {
    const Match& match = stream.match[m];
    if (match.active && ((match.predicted | 256u) >> (8 - n_bit)) == c0) {
      const std::uint32_t p = match.map[n_bit] >> 10;
      const std::int32_t sign = (match.predicted >> (7 - n_bit)) & 1 ? 1 : -1;
      x[0] = sign * logit.stretch(p);
      x[1] = sign * ((static_cast<std::int32_t>(p) - static_cast<std::int32_t>(kHalf22)) >> 11);
    } else {
      x[0] = x[1] = 0;
    }
  }
  if (profile_.lm) {
    x[0] = stream.lm_stretch;
    x[1] = (static_cast<std::int32_t>(logit.squash(stream.lm_stretch) << 6) - static_cast<std::int32_t>(kHalf22)) >> 11;
    x += 2;
    for (int a = 0; a < profile_.n_lm_map; ++a, ++x) {
      x[0] = logit.stretch(lm_place.read(stream.lm_map[a]) << 6);
      stream.lm_map[a] += lm_place.nearer();
    }
  }
  x[0] = 256;

  std::int32_t* weights = reinterpret_cast<std::int32_t*>(&learned_[profile_.weights_at()]);
  for (int k = 0; k < profile_.n_selector; ++k) {
    std::int32_t* w = weights + rows[k] * static_cast<std::size_t>(n_input_);
    weights += static_cast<std::size_t>(kSelectorSize[profile_.selectors[k]]) * static_cast<std::size_t>(n_input_);
    stream.weights[k] = w;
  }
  std::int32_t sums[kSelectorMax];
  mixing_->dot_products(stream.input, stream.weights, profile_.n_selector, n_input_, sums);
  for (int k = 0; k < profile_.n_selector; ++k) {
    std::int32_t dot = sums[k] >> 8;
    dot = dot > kStretchMax ? kStretchMax : dot < -kStretchMax ? -kStretchMax : dot;
    stream.layer[k] = dot;
    stream.layer_p[k] = logit.squash(dot);
  }
  std::int32_t* wf = reinterpret_cast<std::int32_t*>(&learned_[profile_.final_at()]) + rows[profile_.n_selector + profile_.n_apm] * 16;
  stream.final_weights = wf;
  std::int32_t sum = 0;
  for (int k = 0; k < profile_.n_selector; ++k) sum += (wf[k] * stream.layer[k]) >> 8;
  std::int32_t dot = sum >> 8;
  dot = dot > kStretchMax ? kStretchMax : dot < -kStretchMax ? -kStretchMax : dot;
  stream.mixed_p = logit.squash(dot);
  std::uint32_t p = stream.mixed_p;
  if (profile_.n_apm) {
    const MapPlace place(dot);
    std::uint32_t refined = 0;
    for (int a = 0; a < profile_.n_apm; ++a) {
      refined += place.read(stream.apm[a] + place.cell);
      stream.apm[a] += place.cell + place.nearer();
    }
    refined /= static_cast<std::uint32_t>(profile_.n_apm);
    const std::uint32_t share = static_cast<std::uint32_t>(profile_.apm_weight);
    p = (p * (16 - share) + refined * share) >> 4;
  }
  return p < 1 ? 1 : p > 65535 ? 65535 : p;
}

void ContextMixer::update(int s, int bit) {
  Stream& stream = *streams_[static_cast<std::size_t>(s)];
  const BitHistories& histories = *histories_;
  const int n_bit = stream.n_bit;
  const std::uint32_t c0 = stream.c0;
  const std::uint32_t node = n_bit < 4 ? c0 : (1u << (n_bit - 4)) | (c0 & ((1u << (n_bit - 4)) - 1));
  const std::int32_t target = bit << 16;

  // Weights: each set of the first layer lowers its own coding cost, the final one the mixture's.
  std::int32_t errors[kSelectorMax];
  for (int k = 0; k < profile_.n_selector; ++k)  // |error| < 2^16, rate <= 64: the product >> 4 is below 2^18
    errors[k] = (target - static_cast<std::int32_t>(stream.layer_p[k])) * profile_.weight_rate >> 4;
  mixing_->adapt(stream.input, stream.weights, profile_.n_selector, n_input_, errors);
  {
    const std::int32_t e = (target - static_cast<std::int32_t>(stream.mixed_p)) * profile_.final_rate >> 4;
    for (int k = 0; k < profile_.n_selector; ++k) {
      const std::int32_t v = stream.final_weights[k] + ((stream.layer[k] * e + 0x8000) >> 16);
      stream.final_weights[k] = v > kWeightMax ? kWeightMax : v < -kWeightMax ? -kWeightMax : v;
    }
  }
  for (int a = 0; a < profile_.n_apm; ++a) {
    train_cell(*stream.apm[a], bit, profile_.apm_rate);
  }
  for (int a = 0; a < profile_.n_lm_map; ++a) train_cell(*stream.lm_map[a], bit, profile_.lm_map_rate);

  std::uint32_t* maps = &learned_[profile_.maps_at()];
  const std::uint32_t limit = static_cast<std::uint32_t>(profile_.map_limit);
  for (int i = 0; i < profile_.n_context; ++i) {  // contexts may share a slot: each takes it as the one before left it
    std::uint8_t& state = stream.slot[i][node];
    stream.state[i] = state;
    state = histories.next[state][bit];
  }
  mixing_->train_maps(maps, stream.state, profile_.n_context, bit, limit);
  for (int d = 0; d < profile_.n_direct; ++d)
    train_counter(stream.direct[d][node], bit, static_cast<std::uint32_t>(profile_.direct_limit));
  for (int m = 0; m < profile_.n_match; ++m) {
    const Match& match = stream.match[m];
    if (match.active && ((match.predicted | 256u) >> (8 - n_bit)) == c0)
      train_counter(match.map[n_bit], ((match.predicted >> (7 - n_bit)) & 1) == bit, 1023);
  }
  stream.c0 = c0 << 1 | static_cast<std::uint32_t>(bit);
  ++stream.n_bit;
}

void ContextMixer::end_byte(int s) {
  Stream& stream = *streams_[static_cast<std::size_t>(s)];
  const std::uint8_t byte = static_cast<std::uint8_t>(stream.c0);
  history_.put(stream.position, byte);
  ++stream.position;
  stream.text.update(byte, history_);
  stream.c0 = 1;
  stream.n_bit = 0;
  stream.begun = stream.prepared = false;
  stream.nibble = 0;
  for (int m = 0; m < profile_.n_match; ++m) {
    Match& match = stream.match[m];
    if (!match.active) continue;
    const bool hit = match.predicted == byte;
    match.misses = match.misses << 1 | (hit ? 0 : 1);
    match.length = hit ? std::min(match.length + 1, 65535u) : 0;
    ++match.pointer;
    if (popcount8(match.misses) > 7) match.active = false;
  }
}

}  // namespace lmcodec
