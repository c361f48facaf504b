#include "context_mixer.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "adaptive_map.h"
#include "bit_history.h"
#include "context_stream.h"
#include "counter.h"
#include "logistic.h"

namespace lmcodec {
namespace {

// Counters of each direct order: sixteen a nibble, of which node 0 is unused.
constexpr int kDirectLog2[kDirectMax] = {9, 17, 19, 19};

// Those that contexts see, a bit each.
std::uint64_t features_of(const Profile& profile) {
  std::uint64_t features = 0;
  for (int i = 0; i < profile.n_context; ++i)
    for (std::uint8_t feature : profile.contexts[i]) features |= std::uint64_t{1} << feature;
  return features;
}

}  // namespace

ContextMixer::ContextMixer(const Profile& profile, const std::vector<std::uint32_t>& learned)
    : profile_(profile), prior_(learned), n_input_(profile.n_input()), n_set_(profile.n_set()),
      logistic_(&logistic()), histories_(&bit_histories()), features_(features_of(profile)), matches_(profile) {
  use_isa(nullptr);
  std::uint32_t* limit = std::fill_n(limit_, profile.n_context, static_cast<std::uint32_t>(profile.map_limit));
  limit = std::fill_n(limit, profile.n_direct, static_cast<std::uint32_t>(profile.direct_limit));
  std::fill(limit, std::end(limit_), kCountMask);
  for (int i = 0; i < profile.n_context; ++i)
    if (profile.contexts[i][0] >= kOrder1 && profile.contexts[i][0] <= kOrder8 && !profile.contexts[i][1])
      order_[n_order_++] = i;
  for (int i = 0; i < profile.n_context; ++i) {
    for (int f = 0; f < kFeaturesPerContext; ++f)
      if (profile.contexts[i][f] >= kBegun) place_[i] = static_cast<std::uint8_t>(place_[i] | 1 << (profile.contexts[i][f] - kBegun));
    if (place_[i] && std::find(places_, places_ + n_place_, place_[i]) == places_ + n_place_) places_[n_place_++] = place_[i];
  }
  matches_first_ = profile.lm || (features_ >> kMatchByte & 1);
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

// A huge page costs the zeros of five hundred ordinary ones, and often more: the system may have to move other memory to get
// it. The slots of a first block of a kilobyte are in ordinary pages sooner, even if they touch all of these.
Pages pages_for(std::uint32_t nbytes, int n_context, std::size_t slot_nbytes) {
  const std::uint64_t touched = std::uint64_t{nbytes} * 2 * static_cast<unsigned>(n_context) << 12;
  return touched / 16 < slot_nbytes ? Pages::kOrdinary : Pages::kHuge;
}

void ContextMixer::reset(std::uint32_t tables_nbytes, std::uint32_t nbytes, int n_stream) {
  learned_.assign(prior_.begin(), prior_.end());
  for (int d = 0; d < profile_.n_direct; ++d)
    direct_[d].assign(std::size_t{1} << kDirectLog2[d], kHalf22 << 10);
  const TableSizes sizes = profile_.table_sizes(tables_nbytes, n_stream);
  const Pages pages = pages_for(nbytes, profile_.n_context, sizes.slot_nbytes);
  slots_.reset(sizes.slot_nbytes, pages);
  matches_.reset(sizes.match, pages);
  history_.clear();
  streams_.clear();
  learning_.resize(static_cast<std::size_t>(n_stream));
  n_learning_ = 0;
  journal_ = nullptr;
  mark_.reset();
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
    end_.reset();  // before the next is made: two of them would take twice the memory
    end_ = std::make_unique<TokenEnd>(profile_.n_end, &prior_[profile_.end_maps_at()], &prior_[profile_.end_at()],
                                      sizes.end_log2, n_stream);
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
        clear_table(stream.own_match[m], sizes.own_match);
  }
  fresh_ = true;
}

// As reset() makes them.
std::size_t ContextMixer::memory_nbytes(const Profile& profile, std::uint32_t nbytes, std::uint32_t tables_nbytes,
                                        int n_stream, bool chained) {
  const TableSizes own = profile.table_sizes(tables_nbytes, n_stream);
  const TableSizes shared = chained ? profile.table_sizes(kBlockMax, n_stream) : own;
  std::size_t sum = table_nbytes<std::uint32_t>(profile.n_learned()) + table_nbytes<std::uint8_t>(shared.slot_nbytes);
  for (int d = 0; d < profile.n_direct; ++d) sum += table_nbytes<std::uint32_t>(std::size_t{1} << kDirectLog2[d]);
  const std::size_t n_match = static_cast<std::size_t>(profile.n_match);
  sum += n_match * table_nbytes<std::uint32_t>(shared.match);
  const auto map_nbytes = [](std::uint8_t selector) {
    return table_nbytes<std::uint16_t>(static_cast<std::size_t>(kSelectorSize[selector]) * kMapCells);
  };
  for (int a = 0; a < profile.n_apm; ++a) sum += map_nbytes(profile.apms[a]);
  for (int a = 0; a < profile.n_lm_map; ++a) sum += map_nbytes(profile.lm_maps[a]);
  if (profile.lm) sum += TokenEnd::memory_nbytes(profile.n_end, shared.end_log2, n_stream);
  std::size_t stream = sizeof(Stream) + TextState::memory_nbytes(features_of(profile));
  if (n_stream > 1) stream += n_match * table_nbytes<std::uint32_t>(own.own_match);
  sum += static_cast<std::size_t>(n_stream) * (stream + sizeof(Stream*) * 2);
  return sizeof(ContextMixer) + sum + History::memory_nbytes(nbytes, chained);
}

void ContextMixer::mark() {
  if (streams_.size() != 1) throw std::logic_error("only a single stream's state can be marked");
  const Stream& stream = *streams_[0];
  mark_ = std::make_unique<Mark>(Mark{{}, stream.text, {}, history_.places()});
  std::copy(std::begin(stream.match), std::end(stream.match), mark_->match);
  Journal& journal = mark_->journal;
  const auto watch = [&journal](int number, auto& table) {
    journal.watch(number, table.data(), table.size() * sizeof(table[0]));
  };
  watch(kJournalSlots, slots_.table());
  for (int d = 0; d < profile_.n_direct; ++d) watch(kJournalDirect + d, direct_[d]);
  matches_.watch(journal);
  for (int a = 0; a < profile_.n_apm; ++a) watch(kJournalMap + a, apm_[static_cast<std::size_t>(a)]);
  for (int a = 0; a < profile_.n_lm_map; ++a) watch(kJournalLmMap + a, lm_map_[static_cast<std::size_t>(a)]);
  const std::size_t weights = profile_.weights_at();
  journal.watch(kJournalWeights, &learned_[weights], (profile_.apm_at() - weights) * sizeof(std::uint32_t));
  journal.keep(learned_.data(), weights * sizeof(std::uint32_t));
  if (end_) end_->watch(&journal);
  journal_ = &journal;
}

bool ContextMixer::rewind() {
  if (!mark_ || !history_.go_back(mark_->places)) return false;
  mark_->journal.take_back();
  Stream& stream = *streams_[0];
  stream.text = mark_->text;
  std::copy(std::begin(mark_->match), std::end(mark_->match), stream.match);
  return true;
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
    stream.progress = Progress::kText;
    stream.foretold = -1;
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

}  // namespace lmcodec
