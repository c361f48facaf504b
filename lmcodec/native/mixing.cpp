#include "mixing.h"

namespace lmcodec {
namespace {

struct Available {
  MixingKernels kernels[4];
  int n = 0;
  Available() {
    n += add_avx512_mixing(kernels + n);
    n += add_avx2_mixing(kernels + n);
    n += add_neon_mixing(kernels + n);
    n += add_scalar_mixing(kernels + n);
  }
};

}  // namespace

const MixingKernels* mixing_kernels(int* n) {
  static const Available available;
  *n = available.n;
  return available.kernels;
}

}  // namespace lmcodec
