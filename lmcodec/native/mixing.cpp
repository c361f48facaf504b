#include "mixing.h"

namespace lmcodec {
namespace {

constexpr std::int32_t kWeightMax = (1 << 19) - 1;  // Q16: +-8

#if defined(__GNUC__) || defined(__clang__)
#define LMCODEC_INLINE inline __attribute__((always_inline))
#else
#define LMCODEC_INLINE inline
#endif

// |w * x| < 2^19 * 3072 < 2^31; with n <= 256 the sum of 256 such products >> 8 stays below 2^31.
LMCODEC_INLINE void dot_products_body(const std::int32_t* x, std::int32_t* const* w, int n_set, int n,
                                      std::int32_t* sum) {
  for (int k = 0; k < n_set; ++k) {
    const std::int32_t* v = w[k];
    std::int32_t total = 0;
    for (int i = 0; i < n; ++i) total += (v[i] * x[i]) >> 8;
    sum[k] = total;
  }
}

// |x * e| <= 3072 * 2^18 < 2^30.
LMCODEC_INLINE void adapt_body(const std::int32_t* __restrict x, std::int32_t* const* w, int n_set, int n,
                               const std::int32_t* e) {
  for (int k = 0; k < n_set; ++k) {
    std::int32_t* __restrict v = w[k];
    const std::int32_t step = e[k];
    for (int i = 0; i < n; ++i) {
      std::int32_t t = v[i] + ((x[i] * step + 0x8000) >> 16);
      t = t > kWeightMax ? kWeightMax : t;
      v[i] = t < -kWeightMax ? -kWeightMax : t;
    }
  }
}

void dot_products_scalar(const std::int32_t* x, std::int32_t* const* w, int n_set, int n, std::int32_t* sum) {
  dot_products_body(x, w, n_set, n & ~15, sum);
}
void adapt_scalar(const std::int32_t* x, std::int32_t* const* w, int n_set, int n, const std::int32_t* e) {
  adapt_body(x, w, n_set, n & ~15, e);
}

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define LMCODEC_AVX2 __attribute__((target("avx2")))
#define LMCODEC_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")))

LMCODEC_AVX2 void dot_products_avx2(const std::int32_t* x, std::int32_t* const* w, int n_set, int n, std::int32_t* sum) {
  dot_products_body(x, w, n_set, n & ~15, sum);
}
LMCODEC_AVX2 void adapt_avx2(const std::int32_t* x, std::int32_t* const* w, int n_set, int n, const std::int32_t* e) {
  adapt_body(x, w, n_set, n & ~15, e);
}
LMCODEC_AVX512 void dot_products_avx512(const std::int32_t* x, std::int32_t* const* w, int n_set, int n,
                                        std::int32_t* sum) {
  dot_products_body(x, w, n_set, n & ~15, sum);
}
LMCODEC_AVX512 void adapt_avx512(const std::int32_t* x, std::int32_t* const* w, int n_set, int n, const std::int32_t* e) {
  adapt_body(x, w, n_set, n & ~15, e);
}
#endif

struct Available {
  MixingKernels kernels[3];
  int n = 0;
  Available() {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
      kernels[n++] = {"avx512", dot_products_avx512, adapt_avx512};
    if (__builtin_cpu_supports("avx2")) kernels[n++] = {"avx2", dot_products_avx2, adapt_avx2};
#endif
    kernels[n++] = {"scalar", dot_products_scalar, adapt_scalar};
  }
};

}  // namespace

const MixingKernels* mixing_kernels(int* n) {
  static const Available available;
  *n = available.n;
  return available.kernels;
}

}  // namespace lmcodec
