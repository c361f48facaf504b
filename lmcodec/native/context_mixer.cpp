#include "context_mixer.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

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
  v = (v & 0x55) + (v >> 1 & 0x55);
  v = (v & 0x33) + (v >> 2 & 0x33);
  return static_cast<int>((v & 15) + (v >> 4 & 15));
}

int lowest_bit(std::uint32_t x) {  // its number; x > 0
#if defined(__GNUC__) || defined(__clang__)
  return __builtin_ctz(x);
#else
  int n = 0;
  for (; !(x & 1); x >>= 1) ++n;
  return n;
#endif
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

// Where the slots and the direct counters of a nibble are.
struct ContextMixer::Nibble {
  alignas(64) std::uint32_t line[kContextMax] = {};  // hashes of the slots
  std::uint32_t* direct[kDirectMax];
};

struct ContextMixer::Stream {
  explicit Stream(std::uint64_t features) : text(features) {}

  alignas(64) std::int32_t input[(2 * kContextMax + 32)];
  Mixture mixture;
  std::int32_t mixed = 0;  // the mixture's stretch, Q8
  TextState text;
  std::uint32_t begin = 0, end = 0, position = 0;
  std::uint32_t c0 = 1;
  int n_bit = 0;
  bool prepared = false;  // features and hashes are those of the byte at hand
  int nibble = 0;         // 1, 2: slots are those of the byte's first, second nibble
  bool begun = false;     // matches are those of the byte at hand
  bool settled = false;   // their maps are, too,
  bool rowed = false;     // and the rows
  int foretold = -1;      // the byte at hand, where it is known already
  bool foreseen = false;  // the text is that behind it
  std::int32_t lm_stretch = 0;
  int token_nbytes = 0;
  std::uint32_t tokens = 0;  // hash of the token so far and the one before it
  std::uint32_t place[1 << kPlaceFeatures] = {};
  alignas(64) std::uint32_t hash[kContextMax] = {};
  Nibble parts[2];  // the nibble at hand, and the next one where it is known
  Nibble* now = &parts[0];
  Nibble* next = &parts[1];
  bool has_next = false;  // it is
  alignas(64) std::uint32_t placed[kContextMax] = {};  // with the place in the token
  std::uint8_t* slot[kContextMax];
  Match match[kMatchMax];
  alignas(64) std::uint32_t base[kRowMax] = {};  // of each row: what is fixed during the byte
  std::uint16_t* apm[kApmMax];
  std::uint16_t* lm_map[kLmMapMax];
  Table<std::uint32_t> own_match[kMatchMax];
  // Of the decision at hand, for learn(), which may come after its bit has moved everything else on.
  std::uint32_t node = 1;
  int bit = 0;        // what came
  bool same = false;  // the counters are what value[] says
  // Counters: of the contexts' histories, of the direct orders, of the matches.
  std::uint32_t nowhere = kHalf22 << 10;  // for what gives no input
  std::uint32_t* cell[kCellMax];
  alignas(64) std::uint32_t value[kCellMax];
  alignas(64) std::int32_t opposite[kCellMax] = {};
  alignas(64) std::uint8_t state[kCellMax] = {};  // of each context's slot; not 0 for other counters that learn
};

ContextMixer::ContextMixer(const Profile& profile, const std::vector<std::uint32_t>& learned)
    : profile_(profile), prior_(learned), n_input_(profile.n_input()), n_set_(profile.n_set()),
      logistic_(&logistic()), histories_(&bit_histories()) {
  use_isa(nullptr);
  std::uint32_t* limit = std::fill_n(limit_, profile.n_context, static_cast<std::uint32_t>(profile.map_limit));
  limit = std::fill_n(limit, profile.n_direct, static_cast<std::uint32_t>(profile.direct_limit));
  std::fill(limit, std::end(limit_), kCountMask);
  match_tables_.resize(static_cast<std::size_t>(profile.n_match));
  for (int i = 0; i < profile.n_context; ++i)
    if (profile.contexts[i][0] >= kOrder1 && profile.contexts[i][0] <= kOrder8 && !profile.contexts[i][1])
      order_[n_order_++] = i;
  for (int i = 0; i < profile.n_context; ++i) {
    for (int f = 0; f < kFeaturesPerContext; ++f) features_ |= std::uint64_t{1} << profile.contexts[i][f];
    for (int f = 0; f < kFeaturesPerContext; ++f)
      if (profile.contexts[i][f] >= kBegun) place_[i] = static_cast<std::uint8_t>(place_[i] | 1 << (profile.contexts[i][f] - kBegun));
    if (place_[i] && std::find(places_, places_ + n_place_, place_[i]) == places_ + n_place_) places_[n_place_++] = place_[i];
  }
  const auto add = [this](std::uint8_t selector, std::size_t row_nbytes) {
    const bool hashes = selector == kSelectTokens || selector == kSelectHash2 || selector == kSelectHash3 || selector == kSelectHashWord;
    const int row = n_row_++;
    selector_[row] = selector;
    rules_.per_c0[row] = hashes ? 0x9E3Bu : selector == kSelectOrder0 || selector == kSelectOrder1 ? 1 : 0;
    rules_.per_bit[row] = selector == kSelectKnown || selector == kSelectColumn || selector == kSelectWord ? 1 : 0;
    rules_.mask[row] = hashes ? static_cast<std::uint32_t>(kSelectorSize[selector]) - 1 : 0xffffffffu;
    rules_.stride[row] = static_cast<std::uint32_t>(row_nbytes);
    if (selector == kSelectLm || selector == kSelectLmMatch || selector == kSelectToken) lm_row_[n_lm_row_++] = row;
    if (selector == kSelectMatch || selector == kSelectMatchByte) match_row_[n_match_row_++] = row;
  };
  const std::size_t weights = static_cast<std::size_t>(n_input_) * 4, cells = kMapCells * 2;
  for (int k = 0; k < profile.n_selector; ++k) add(profile.selectors[k], weights);
  for (int a = 0; a < profile.n_apm; ++a) add(profile.apms[a], cells);
  add(static_cast<std::uint8_t>(profile.final_selector), 16 * 4);
  for (int a = 0; a < profile.n_lm_map; ++a) add(profile.lm_maps[a], cells);
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
  clear_table(table_, size);
  line_mask_ = static_cast<std::uint32_t>(size / 64 - 1);
  const auto match_places = [this](std::uint32_t n) {
    int log2 = 10;
    while (log2 < profile_.match_log2 && (1u << log2) < n) ++log2;
    return std::size_t{1} << log2;
  };
  match_mask_ = static_cast<std::uint32_t>(match_places(nbytes) - 1);
  // A stream's own table: with a language model there may be many streams, and it is as large as they need it.
  const std::uint32_t own_nbytes = profile_.lm ? (nbytes - 1) / static_cast<std::uint32_t>(n_stream) + 1 : nbytes;
  for (auto& table : match_tables_) clear_table(table, std::size_t{match_mask_} + 1);
  history_.clear();
  streams_.clear();
  learning_.resize(static_cast<std::size_t>(n_stream));
  n_learning_ = 0;
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
  set_origins();
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
    streams_.push_back(std::make_unique<Stream>(features_));
    Stream& stream = *streams_.back();
    std::fill(std::begin(stream.input), std::end(stream.input), 0);
    std::fill(std::begin(stream.cell), std::end(stream.cell), &stream.nowhere);
    for (int d = 0; d < profile_.n_direct; ++d) stream.state[profile_.n_context + d] = 1;
    stream.input[2 * (profile_.n_context + profile_.n_direct + profile_.n_match + profile_.lm) + profile_.n_lm_map] = 256;
    if (n_stream > 1)
      for (int m = 0; m < profile_.n_match; ++m)
        clear_table(stream.own_match[m], match_places(own_nbytes));
  }
  fresh_ = true;
}

void ContextMixer::set_origins() {
  char** origin = origin_;
  const auto at = [](auto* data) { return reinterpret_cast<char*>(data); };
  std::uint32_t* weights = &learned_[profile_.weights_at()];
  for (int k = 0; k < profile_.n_selector; ++k) {
    *origin++ = at(weights);
    weights += static_cast<std::size_t>(kSelectorSize[profile_.selectors[k]]) * static_cast<std::size_t>(n_input_);
  }
  for (auto& cells : apm_) *origin++ = at(cells.data());
  *origin++ = at(weights);
  for (auto& cells : lm_map_) *origin++ = at(cells.data());
}

void ContextMixer::begin_block(std::uint32_t nbytes) {
  base_ = history_.reserve(nbytes);
  nbytes_ = nbytes;
  n_learning_ = 0;  // the block before may have been left at any place
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
    stream.begun = stream.prepared = stream.settled = stream.rowed = stream.foreseen = stream.has_next = false;
    stream.foretold = -1;
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
  // All four at once: bytes that are zero where the check agrees, then the lowest of those that are.
  const std::uint32_t checks = line[0] | std::uint32_t{line[1]} << 8 | std::uint32_t{line[2]} << 16 | std::uint32_t{line[3]} << 24;
  const std::uint32_t differs = checks ^ check * 0x01010101u, found = (differs - 0x01010101u) & ~differs & 0x80808080u;
  if (found) return line + kSlot0 + (lowest_bit(found) >> 3) * 15;
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

// Of the last bytes of the stream, as many as a match needs at least (eight at most are hashed).
std::uint32_t ContextMixer::match_hash(const Stream& stream, int m) const {
  const std::uint64_t kept = stream.text.tail() << (64 - 8 * std::min(profile_.match_min[m], 8));
  return static_cast<std::uint32_t>((kept * 0x9E3779B97F4A7C15ull) >> 40);
}

std::uint32_t* ContextMixer::own_match(Stream& stream, int m) {
  Table<std::uint32_t>& own = stream.own_match[m];
  return own.empty() ? nullptr : &own[match_hash(stream, m) & (own.size() - 1)];
}

std::uint32_t* ContextMixer::shared_match(const Stream& stream, int m) {
  return &match_tables_[static_cast<std::size_t>(m)][match_hash(stream, m) & match_mask_];
}

void ContextMixer::find_match(Stream& stream, int m) {
  Match& match = stream.match[m];
  const std::uint32_t minimum = static_cast<std::uint32_t>(profile_.match_min[m]);
  std::uint32_t* const places[2] = {own_match(stream, m), shared_match(stream, m)};
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
  std::uint32_t base[kSelectorCount] = {};  // 0 for those of the language model: choose() works them out
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
  for (int r = 0; r < n_row_; ++r) stream.base[r] = base[selector_[r]];
}

void ContextMixer::begin_byte(int s) {
  Stream& stream = *streams_[static_cast<std::size_t>(s)];
  if (stream.begun) return;
  stream.begun = true;
  for (int m = 0; m < profile_.n_match; ++m) find_match(stream, m);
}

void ContextMixer::prepare(int s) {
  Stream& stream = *streams_[static_cast<std::size_t>(s)];
  if (stream.prepared) return;
  stream.prepared = true;
  std::uint32_t value[kFeatureCount];
  std::fill(value + kBegun, value + kFeatureCount, 0u);  // set_place() adds these
  stream.text.features(history_, value);
  if (features_ >> kMatchByte & 1) settle(stream);  // now: the match tables' lines were on their way
  const Match& match = stream.match[0];
  value[kMatchByte] =
      match.active ? match.predicted + 1u + (static_cast<std::uint32_t>(length_bucket(match.length)) << 9) : 0;
  for (int i = 0; i < profile_.n_context; ++i) {
    std::uint64_t x = (static_cast<std::uint64_t>(i) + 1) * 0x9E3779B97F4A7C15ull;
    for (int f = 0; f < kFeaturesPerContext && profile_.contexts[i][f]; ++f) x = fold(x, value[profile_.contexts[i][f]]);
    stream.hash[i] = stream.placed[i] = static_cast<std::uint32_t>(x >> 20);
  }
}

void ContextMixer::settle(Stream& stream) {
  if (stream.settled) return;
  stream.settled = true;
  for (int m = 0; m < profile_.n_match; ++m) {
    if (!stream.begun) find_match(stream, m);
    Match& now = stream.match[m];
    const int bucket = now.active ? length_bucket(now.length) : 0;
    now.map = &learned_[profile_.match_at() + static_cast<std::size_t>(m) * 1024 +
                        static_cast<std::size_t>((bucket * 4 + std::min(popcount8(now.misses), 3)) * 8)];
  }
  stream.begun = true;
}

void ContextMixer::fetch_lines(const Stream& stream, std::uint32_t node, std::uint32_t* mixed) {
  const int n_context = profile_.n_context;
  mixing_->mix_hashes(stream.placed, node * 0x9E3779B1u, (n_context + 15) & ~15, mixed);
  const std::uint8_t* const table = table_.data();
  for (int i = 0; i < n_context; ++i) prefetch(table + std::size_t{mixed[i] & line_mask_} * 64);
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

void ContextMixer::fetch_next(Stream& stream, std::uint32_t node) {
  fetch_nibble(stream, node, *stream.next);
  stream.has_next = true;
}

void ContextMixer::fetch(int s) {
  Stream& stream = *streams_[static_cast<std::size_t>(s)];
  stream.nibble = stream.n_bit < 4 ? 1 : 2;
  if (stream.has_next) {
    std::swap(stream.now, stream.next);
    stream.has_next = false;
    return;
  }
  prepare(s);
  fetch_nibble(stream, stream.n_bit < 4 ? 0 : stream.c0 >> (stream.n_bit - 4), *stream.now);
}

void ContextMixer::foretell(int s, std::uint8_t byte) { streams_[static_cast<std::size_t>(s)]->foretold = byte; }

void ContextMixer::foresee(int s) {
  Stream& stream = *streams_[static_cast<std::size_t>(s)];
  if (stream.foretold < 0) return;
  take_text(stream, static_cast<std::uint8_t>(stream.foretold));
  stream.foreseen = true;
  stream.prepared = false;
  if (features_ >> kMatchByte & 1) return;  // one of the contexts sees what the match model says when the byte has ended
  prepare(s);
  fetch_next(stream, 0);
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
  settle(stream);
  if (!stream.rowed) set_rows(stream);
  stream.rowed = true;
  if (stream.foretold >= 0) {
    const unsigned byte = static_cast<unsigned>(stream.foretold);
    fetch_maps(stream, byte);
    if (stream.n_bit < 4) fetch_next(stream, 16u | byte >> 4);
  } else if (stream.n_bit < 4 && stream.match[0].active) {
    // The second nibble's lines, if the match model is right about the first.
    alignas(64) std::uint32_t likely[kContextMax];
    fetch_lines(stream, 16u | stream.match[0].predicted >> 4, likely);
  }
  const int n_context = profile_.n_context;
  bool seen[kContextMax];  // asked at once: a later context of this lookup may take the slot
  for (int i = 0; i < n_context; ++i) {
    stream.slot[i] = find(stream.now->line[i]);
    seen[i] = stream.slot[i][1] != 0;
  }
  int known = 0;
  while (known < n_order_ && seen[order_[known]]) ++known;
  for (int r = 0; r < n_row_; ++r)
    if (selector_[r] == kSelectKnown) stream.base[r] = static_cast<std::uint32_t>(std::min(known, 8) * 8);
}

bool ContextMixer::fetched(int s) const {
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

void ContextMixer::lookup_end(int s, std::uint32_t token) {
  Stream& stream = *streams_[static_cast<std::size_t>(s)];
  prepare(s);
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

std::uint32_t ContextMixer::predict_end(int s) { return end_->predict(s, *mixing_); }

void ContextMixer::update_end(int s, int bit) { end_->update(s, bit, *mixing_); }

// The node within the nibble: 1, then its bits.
std::uint32_t ContextMixer::node_of(const Stream& stream) {
  const int n = stream.n_bit & 3;
  return (1u << n) | (stream.c0 & ((1u << n) - 1));
}

bool ContextMixer::agrees(const Stream& stream, const Match& match) {
  return match.active && ((match.predicted | 256u) >> (8 - stream.n_bit)) == stream.c0;
}

void ContextMixer::choose(Stream& stream) {
  const Match& match = stream.match[0];
  const bool agrees = ContextMixer::agrees(stream, match);
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
  const std::uint32_t node = stream.node = node_of(stream);
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
    const bool agrees = ContextMixer::agrees(stream, match);
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

void ContextMixer::take_text(Stream& stream, std::uint8_t byte) {
  history_.put(stream.position, byte);
  ++stream.position;
  stream.text.update(byte, history_);
  for (int m = 0; m < profile_.n_match; ++m) {
    prefetch(shared_match(stream, m));
    if (const std::uint32_t* own = own_match(stream, m)) prefetch(own);
  }
}

void ContextMixer::end_byte(int s) {
  Stream& stream = *streams_[static_cast<std::size_t>(s)];
  const std::uint8_t byte = static_cast<std::uint8_t>(stream.c0);
  if (stream.foretold >= 0 && byte != stream.foretold)
    throw std::invalid_argument("the bits are not those of the byte that was foretold");
  if (!stream.foreseen) {
    take_text(stream, byte);
    stream.prepared = false;
  }
  stream.c0 = 1;
  stream.n_bit = 0;
  stream.begun = stream.settled = stream.rowed = stream.foreseen = false;
  stream.foretold = -1;
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
