// Profiles: a frozen choice of contexts, selectors, sizes and rates, and where the values lie that it learns.
// FORMAT.md section 5.7.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "text_state.h"
#include "token_end.h"

namespace lmcodec {

constexpr std::uint32_t kBlockMax = 1u << 24;  // bytes of a block
constexpr int kContextMax = 64;
constexpr int kSelectorMax = 12;
constexpr int kDirectMax = 4;
constexpr int kMatchMax = 3;
constexpr int kFeaturesPerContext = 4;
constexpr int kApmMax = 6;
constexpr int kLmMapMax = 8;
constexpr int kLearnedRows = 1024;  // a final adaptive map of more rows begins as the identity
constexpr int kLmSteps = 24;  // of 256 each, over +-3072 of stretch
constexpr int kMatchMapCells = 1024;  // of a match's adaptive map; 512 are used

enum Selector : std::uint8_t {
#define SELECTOR(enumerator, name, rows) enumerator,
#include "selectors.def"
#undef SELECTOR
  kSelectorCount
};
extern const int kSelectorSize[kSelectorCount];  // rows of each selector
extern const char* const kSelectorNames[kSelectorCount];

// Of the tables whose sizes depend on the block that begins them.
struct TableSizes {
  std::size_t slot_nbytes;  // of the slot table, a power of two
  std::size_t match;        // entries of a match table, a power of two
  std::size_t own_match;    // of one that a stream has for itself; 0 where there is a single stream
  int end_log2;             // entries of the table of token ends
};

// A frozen choice of contexts, selectors, sizes and rates, and the values learned state begins with.
struct Profile {
  int n_context = 0, n_selector = 0, n_match = 0, n_apm = 0;
  std::uint8_t contexts[kContextMax][kFeaturesPerContext] = {};  // features, kNone where there are fewer
  std::uint8_t selectors[kSelectorMax] = {};
  std::uint8_t apms[kApmMax] = {};      // selectors
  int n_lm_map = 0;
  std::uint8_t lm_maps[kLmMapMax] = {};  // selectors of the maps that refine the language model's probability
  int lm_map_rate = 5;
  int n_end = 0;                        // the first contexts, which token ends have, too
  int end_log2 = 22;                    // entries of the table of token ends at most
  int match_min[kMatchMax] = {};        // shortest match, bytes
  int final_selector = kSelectOrder0;
  int table_log2 = 22;                  // bytes of the slot table at most
  int match_log2 = 18;                  // entries of a match table at most
  int map_limit = 255;                  // an adaptive map's rate is at least 1 / (limit + 1.5)
  int n_direct = 2;                     // orders 0, 1 ... that have counters of their own
  int direct_limit = 255;
  int weight_rate = 6, final_rate = 2;
  int apm_rate = 6;
  int apm_weight = 8;                   // of 16: the adaptive maps' share of the final probability
  int lm = 0;                           // 1: a language model's probability is mixed in

  int n_input() const { return (2 * n_context + 2 * n_direct + 2 * n_match + 2 * lm + n_lm_map + 1 + 15) / 16 * 16; }
  int n_set() const;      // weight vectors of the first layer
  // Learned state in order: adaptive maps, match maps, the adaptive maps of token ends, weights, final weights; with a
  // language model also the weights of its token ends and the final adaptive maps.
  std::size_t maps_at() const { return 0; }
  std::size_t match_at() const { return maps_at() + static_cast<std::size_t>(n_context) * 256; }
  std::size_t end_maps_at() const { return match_at() + static_cast<std::size_t>(n_match) * kMatchMapCells; }
  std::size_t weights_at() const { return end_maps_at() + static_cast<std::size_t>(n_end) * 256; }
  std::size_t final_at() const { return weights_at() + static_cast<std::size_t>(n_set() * n_input()); }
  std::size_t apm_at() const { return final_at() + static_cast<std::size_t>(kSelectorSize[final_selector]) * 16; }
  std::size_t end_at() const { return apm_at(); }
  std::size_t cells_at() const { return end_at() + (lm ? TokenEnd::n_weight(n_end) : 0); }
  bool learns_cells(int apm) const { return lm && kSelectorSize[apms[apm]] <= kLearnedRows; }
  std::size_t n_cell() const;  // of the final adaptive maps that are learned
  std::size_t n_learned() const { return cells_at() + n_cell(); }
  bool valid(const std::vector<std::uint32_t>& learned) const;  // every value within the bounds the arithmetic needs
  std::vector<std::uint32_t> neutral() const;  // learned state without training

  // The tables' sizes where a block of nbytes >= n_stream bytes begins them.
  TableSizes table_sizes(std::uint32_t nbytes, int n_stream) const;
};

}  // namespace lmcodec
