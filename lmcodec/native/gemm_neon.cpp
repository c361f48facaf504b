// NEON with the dot product (Armv8.2): 16 outputs of up to 4 rows at a time in 16 registers. Activations are signed.
#include "gemm_body.h"

#if defined(__aarch64__) && (defined(__ARM_FEATURE_DOTPROD) || ((defined(__linux__) || defined(__APPLE__)) && defined(__GNUC__)))

#include <arm_neon.h>

#if defined(__ARM_FEATURE_DOTPROD)
#define LMCODEC_DOTPROD
#else
// The compiler may not take it for granted: whether the machine has it is asked when the program runs.
#if defined(__APPLE__)
#include <sys/sysctl.h>
#else
#include <sys/auxv.h>
#endif
#if defined(__clang__)
#define LMCODEC_DOTPROD __attribute__((target("dotprod")))
#else
#define LMCODEC_DOTPROD __attribute__((target("arch=armv8.2-a+dotprod")))
#endif
#endif

namespace lmcodec {
namespace {

constexpr int kOffset = 0;
constexpr int kRows = 4;
constexpr int kVectors = 4;  // of 4 outputs

template <int kN>
LMCODEC_DOTPROD void tile(const std::uint8_t* u, std::size_t stride, const std::int8_t* w, int n_quad,
                          const std::int32_t* bias, std::int32_t* sums) {
  int32x4_t acc[kN][kVectors];
  LMCODEC_UNROLL
  for (int r = 0; r < kN; ++r) {
    LMCODEC_UNROLL
    for (int z = 0; z < kVectors; ++z) acc[r][z] = vld1q_s32(bias + 4 * z);
  }
  for (int q = 0; q < n_quad; ++q, u += kQuad, w += kPanel * kQuad) {
    int8x16_t weight[kVectors];
    LMCODEC_UNROLL
    for (int z = 0; z < kVectors; ++z) weight[z] = vld1q_s8(w + 16 * z);
    LMCODEC_UNROLL
    for (int r = 0; r < kN; ++r) {
      std::int32_t quad;
      std::memcpy(&quad, u + static_cast<std::size_t>(r) * stride, sizeof quad);
      const int8x16_t a = vreinterpretq_s8_s32(vdupq_n_s32(quad));
      LMCODEC_UNROLL
      for (int z = 0; z < kVectors; ++z) acc[r][z] = vdotq_s32(acc[r][z], weight[z], a);
    }
  }
  LMCODEC_UNROLL
  for (int r = 0; r < kN; ++r) {
    LMCODEC_UNROLL
    for (int z = 0; z < kVectors; ++z) vst1q_s32(sums + r * kPanel + 4 * z, acc[r][z]);
  }
}

void product(const std::uint8_t* u, std::size_t stride, int n_row, const PackedLinear& linear, const Finished& to) {
  constexpr decltype(&tile<1>) kTiles[kRows] = {tile<1>, tile<2>, tile<3>, tile<4>};
  const std::size_t panel_nbytes = static_cast<std::size_t>(linear.n_quad) * (kPanel * kQuad);
  for (int panel = 0; panel < linear.n_panel; ++panel) {
    const std::int8_t* w = linear.weight + static_cast<std::size_t>(panel) * panel_nbytes;
    for (int row = 0; row < n_row; row += kRows) {
      const int n = n_row - row < kRows ? n_row - row : kRows;
      std::int32_t sums[kRows * kPanel];
      for (int strip = 0; strip < kPanel; strip += 4 * kVectors)
        kTiles[n - 1](u + static_cast<std::size_t>(row) * stride, stride, w + strip * kQuad, linear.n_quad,
                      linear.bias + panel * kPanel + strip, sums + strip);
      for (int r = 0; r < n; ++r) body::finish(sums + r * kPanel, row + r, panel, linear, to);
    }
  }
}

}  // namespace

int add_neon_kernels(NetworkKernels* kernels) {
#if !defined(__ARM_FEATURE_DOTPROD) && defined(__APPLE__)
  int has = 0;
  std::size_t nbytes = sizeof has;
  if (sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &nbytes, nullptr, 0) != 0 || !has) return 0;
#elif !defined(__ARM_FEATURE_DOTPROD)
  constexpr unsigned long kAsimdDp = 1ul << 20;  // HWCAP_ASIMDDP
  if (!(getauxval(AT_HWCAP) & kAsimdDp)) return 0;
#endif
  *kernels = {"neon", kOffset, 1, product, body::embed, body::normalise<kOffset>, body::recur<kOffset>, body::weigh,
              body::sum};
  return 1;
}

}  // namespace lmcodec

#else

namespace lmcodec {
int add_neon_kernels(NetworkKernels*) { return 0; }
}  // namespace lmcodec

#endif
