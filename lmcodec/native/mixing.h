// The mixer's two inner loops, one version per instruction set, the same integers from each.
#pragma once

#include <cstdint>

namespace lmcodec {

// Adds up (w * x) >> 8 of each of n_set weight vectors; n is a multiple of 16, |w| < 2^19, |x| <= 3072.
using DotProducts = void (*)(const std::int32_t* x, std::int32_t* const* w, int n_set, int n, std::int32_t* sum);
// w += (x * e + 2^15) >> 16, kept within +-(2^19 - 1); |e| <= 2^18.
using Adapt = void (*)(const std::int32_t* x, std::int32_t* const* w, int n_set, int n, const std::int32_t* e);

struct MixingKernels {
  const char* isa;
  DotProducts dot_products;
  Adapt adapt;
};

// Versions this machine can run, the best first; the last is portable C++.
const MixingKernels* mixing_kernels(int* n);

}  // namespace lmcodec
