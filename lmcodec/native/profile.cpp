#include "profile.h"

#include <algorithm>

#include "adaptive_map.h"
#include "counter.h"
#include "logistic.h"

namespace lmcodec {
namespace {

// The least number of `low` to `most` whose power of two is not below wanted; or `most`.
int log2_of(int low, int most, std::uint64_t wanted) {
  int log2 = low;
  while (log2 < most && (std::uint64_t{1} << log2) < wanted) ++log2;
  return log2;
}

}  // namespace

const int kSelectorSize[kSelectorCount] = {
#define SELECTOR(enumerator, name, rows) rows,
#include "selectors.def"
#undef SELECTOR
};

const char* const kSelectorNames[kSelectorCount] = {
#define SELECTOR(enumerator, name, rows) name,
#include "selectors.def"
#undef SELECTOR
};

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

TableSizes Profile::table_sizes(std::uint32_t nbytes, int n_stream) const {
  TableSizes sizes;
  // A byte needs two slots of 16 bytes for each context; three quarters of that are enough.
  const std::uint64_t wanted = std::uint64_t{nbytes} * 24 * static_cast<unsigned>(n_context);
  sizes.slot_nbytes = std::size_t{1} << log2_of(12, table_log2, wanted);
  const auto match_entries = [this](std::uint32_t n) { return std::size_t{1} << log2_of(10, match_log2, n); };
  sizes.match = match_entries(nbytes);
  // With a language model there may be many streams, and a table is as large as its stream needs it.
  const std::uint32_t own_nbytes = lm ? (nbytes - 1) / static_cast<std::uint32_t>(n_stream) + 1 : nbytes;
  sizes.own_match = n_stream > 1 ? match_entries(own_nbytes) : 0;
  sizes.end_log2 = log2_of(10, end_log2, std::uint64_t{nbytes} * static_cast<unsigned>(n_end));
  return sizes;
}

}  // namespace lmcodec
