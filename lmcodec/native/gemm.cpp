#include "gemm.h"

#include <cstring>
#include <stdexcept>
#include <string>

#include "gemm_body.h"

namespace lmcodec {
namespace {

constexpr int kOffset = 128;

void product(const std::uint8_t* u, std::size_t stride, int n_row, const PackedLinear& linear, const Finished& to) {
  for (int panel = 0; panel < linear.n_panel; ++panel) {
    const std::int8_t* panel_weight =
        linear.weight + static_cast<std::size_t>(panel) * static_cast<std::size_t>(linear.n_quad) * (kPanel * kQuad);
    for (int row = 0; row < n_row; ++row) {
      const std::uint8_t* a = u + static_cast<std::size_t>(row) * stride;
      const std::int8_t* w = panel_weight;
      std::int32_t sums[kPanel];
      std::memcpy(sums, linear.bias + panel * kPanel, sizeof sums);
      for (int q = 0; q < linear.n_quad; ++q, a += kQuad, w += kPanel * kQuad)
        for (int i = 0; i < kPanel; ++i)
          sums[i] += w[4 * i] * a[0] + w[4 * i + 1] * a[1] + w[4 * i + 2] * a[2] + w[4 * i + 3] * a[3];
      body::finish(sums, row, panel, linear, to);
    }
  }
}

struct Available {
  NetworkKernels kernels[5];
  int n = 0;
  Available() {
    n += add_amx_kernels(kernels + n);
    n += add_avx512vnni_kernels(kernels + n);
    n += add_avx2_kernels(kernels + n);
    n += add_neon_kernels(kernels + n);
    kernels[n++] = {"scalar", kOffset, 1, product, body::embed, body::normalise<kOffset>, body::recur<kOffset>,
                    body::weigh, body::sum};
  }
};

}  // namespace

const NetworkKernels* network_kernels(int* n) {
  static const Available available;
  *n = available.n;
  return available.kernels;
}

NetworkKernels chosen_kernels(const char* isa) {
  int n;
  const NetworkKernels* kernels = network_kernels(&n);
  if (!isa) return kernels[0];
  for (int i = 0; i < n; ++i)
    if (!std::strcmp(kernels[i].isa, isa)) return kernels[i];
  throw std::invalid_argument(std::string("this machine has no ") + isa);
}

void set_exp2(NetworkTables& tables, const std::int32_t* coarse, const std::int32_t* fine) {
  const auto within = [](std::int32_t value, std::int32_t most) {
    if (value < 1 || value > most)
      throw std::invalid_argument("a power of two is " + std::to_string(value) + ", expected 1 to " + std::to_string(most));
    return static_cast<std::uint32_t>(value);
  };
  for (int i = 0; i < 16; ++i) {
    tables.exp2_coarse[i] = within(coarse[i], 1 << 15);
    tables.exp2_fine[i] = within(fine[i], 1 << 16);
  }
}

}  // namespace lmcodec
