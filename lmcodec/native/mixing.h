// The mixer's inner loops, one version per instruction set, the same integers from each.
#pragma once

#include <cstdint>

namespace lmcodec {

// Adds up (w * x) >> 8 of each of n_set weight vectors; n is a multiple of 16, |w| < 2^19, |x| <= 3072.
using DotProducts = void (*)(const std::int32_t* x, std::int32_t* const* w, int n_set, int n, std::int32_t* sum);
// w += (x * e + 2^15) >> 16, kept within +-(2^19 - 1); |e| <= 2^18.
using Adapt = void (*)(const std::int32_t* x, std::int32_t* const* w, int n_set, int n, const std::int32_t* e);

// Inputs of n contexts, two each, from their adaptive maps (n, 256 counters) at their histories' states: the stretch, and
// the probability less one half. stretch: of Logistic.
using MapInputs = void (*)(const std::uint32_t* maps, const std::uint8_t* states, int n, const std::int16_t* stretch,
                           std::int32_t* x);
// Moves the maps' counters towards the bit, but for those of the empty history (state 0).
using TrainMaps = void (*)(std::uint32_t* maps, const std::uint8_t* states, int n, int bit, std::uint32_t limit);

struct MixingKernels {
  const char* isa;
  DotProducts dot_products;
  Adapt adapt;
  MapInputs map_inputs;
  TrainMaps train_maps;
};

// Versions this machine can run, the best first; the last is portable C++.
const MixingKernels* mixing_kernels(int* n);

}  // namespace lmcodec
