// The mixer's inner loops, one version per instruction set, the same integers from each.
#pragma once

#include <cstdint>

#include "logistic.h"

namespace lmcodec {

constexpr int kMixerSets = 16;  // of a first layer at most

// One decision of a mixer of two layers, from its probability to what it learns.
struct Mixture {
  std::int32_t* weights[kMixerSets] = {};  // (n) of each set of the first layer, Q16, |w| < 2^19
  std::int32_t* final_weights = nullptr;   // (16) of the second, zero beyond the sets
  alignas(64) std::int32_t layer[kMixerSets] = {};      // stretch of each set's probability, Q8; zero beyond the sets
  alignas(64) std::uint32_t layer_p[kMixerSets] = {};   // the probability itself, 16 bits
  std::uint32_t p = 0;                                  // the second layer's, 16 bits
};

// From n inputs (a multiple of 16, |x| <= 3072) and n_set sets: fills layer, layer_p and p; returns the stretch of p.
using Mix = std::int32_t (*)(const std::int32_t* x, int n, int n_set, const Logistic& logistic, Mixture& mixture);
// Each set of the first layer lowers its own coding cost, the second layer the mixture's:
// w += (x * e + 2^15) >> 16 with e = (2^16 * bit - p) * rate >> 4, rate <= 64, kept within +-(2^19 - 1).
using Learn = void (*)(const std::int32_t* x, int n, int n_set, int bit, int rate, int final_rate,
                       const Mixture& mixture);

// Offsets of selectors' rows, n of them (a multiple of 8): ((base + c0 * per_c0 + n_bit * per_bit) & mask) * stride.
struct RowRules {
  alignas(64) std::uint32_t per_c0[32] = {}, per_bit[32] = {}, mask[32] = {}, stride[32] = {};
};
using FindRows = void (*)(const std::uint32_t* base, const RowRules& rules, std::uint32_t c0, std::uint32_t n_bit, int n,
                          std::uint32_t* offset);
// mix32(hash + added) of n hashes (a multiple of 16).
using MixHashes = void (*)(const std::uint32_t* hash, std::uint32_t added, int n, std::uint32_t* mixed);

// The counters that a decision reads and moves, n of them; each array ends at the next multiple of kLanes.
struct Cells {
  std::uint32_t* const* at;      // where they lie, no two at one place; beyond n: anywhere else that may be written
  const std::int32_t* opposite;  // -1 where a counter's probability is that of a 0, else 0
  const std::uint8_t* learns;    // 0: the counter stays as it is
  const std::uint32_t* limit;    // of its count
  int n;
};
constexpr int kLanes = 16;

// Two inputs each: the stretch, and the probability less one half, for a 1. value (n, padded): the counters.
// stretch: of Logistic.
using ReadCells = void (*)(const Cells& cells, const std::int16_t* stretch, std::uint32_t* value, std::int32_t* x);
// Moves the counters towards the bit. value: as they were read, null if they may have changed.
using TrainCells = void (*)(const Cells& cells, const std::uint32_t* value, int bit);

struct MixingKernels {
  const char* isa;
  Mix mix;
  Learn learn;
  FindRows find_rows;
  MixHashes mix_hashes;
  ReadCells read_cells;
  TrainCells train_cells;
};

// Versions this machine can run, the best first; the last is portable C++.
const MixingKernels* mixing_kernels(int* n);

// Each adds its version at *kernels and returns 1, or returns 0 where the machine or the compiler lacks it.
int add_avx512_mixing(MixingKernels* kernels);
int add_avx2_mixing(MixingKernels* kernels);
int add_neon_mixing(MixingKernels* kernels);
int add_scalar_mixing(MixingKernels* kernels);

}  // namespace lmcodec
