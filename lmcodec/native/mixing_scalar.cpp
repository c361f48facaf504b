// Portable C++: what every machine can run.
#include "mixing_body.h"

namespace lmcodec {
namespace {

std::int32_t mix(const std::int32_t* x, int n, int n_set, const Logistic& logistic, Mixture& mixture) {
  return body::mix(x, n, n_set, logistic, mixture);
}

void learn(const std::int32_t* x, int n, int n_set, int bit, int rate, int final_rate, const Mixture& mixture) {
  body::learn(x, n, n_set, bit, rate, final_rate, mixture);
}

void find_rows(const std::uint32_t* base, const RowRules& rules, std::uint32_t c0, std::uint32_t n_bit, int n,
               std::uint32_t* offset) {
  body::find_rows(base, rules, c0, n_bit, n, offset);
}

void mix_hashes(const std::uint32_t* hash, std::uint32_t added, int n, std::uint32_t* mixed) {
  body::mix_hashes(hash, added, n, mixed);
}

void read_cells(const Cells& cells, const std::int16_t* stretch, std::uint32_t* value, std::int32_t* x) {
  for (int i = 0; i < cells.n; ++i) {
    const std::uint32_t p = (value[i] = *cells.at[i]) >> 10;
    const std::int32_t sign = cells.opposite[i] | 1;
    x[2 * i] = sign * stretch[p >> 10];
    x[2 * i + 1] = sign * ((static_cast<std::int32_t>(p) - static_cast<std::int32_t>(kHalf22)) >> 11);
  }
}

void train_cells(const Cells& cells, const std::uint32_t*, int bit) {
  for (int i = 0; i < cells.n; ++i)
    if (cells.learns[i]) train_counter(*cells.at[i], bit ^ (cells.opposite[i] & 1), cells.limit[i]);
}

}  // namespace

int add_scalar_mixing(MixingKernels* kernels) {
  *kernels = {"scalar", mix, learn, find_rows, mix_hashes, read_cells, train_cells};
  return 1;
}

}  // namespace lmcodec
