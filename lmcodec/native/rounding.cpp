#include "rounding.h"

#include <algorithm>
#include <vector>

#include "cpu.h"
#include "float_control.h"

// The loops are written once. On x86-64 they are compiled for AVX2, too, without fused operations: the same numbers.
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define LMCODEC_BODY inline __attribute__((always_inline))
#define LMCODEC_UNROLL _Pragma("GCC unroll 16")  // or GCC keeps sums in memory: ten times as slow
#define LMCODEC_HAS_AVX2 1
#define LMCODEC_AVX2 __attribute__((target("avx2")))
#else
#define LMCODEC_BODY inline
#define LMCODEC_UNROLL
#define LMCODEC_HAS_AVX2 0
#endif

namespace lmcodec {
namespace {

constexpr float kMost = 63.0f;
constexpr float kToInteger = 12582912.0f;  // 1.5 * 2^23: added and taken off, it leaves the nearest integer, ties to even
constexpr std::size_t kPivots = 48;        // columns that are taken from the rest at once
constexpr std::size_t kTile = 4;           // rows (of the factor), columns (of the weights) that share what is loaded
constexpr std::size_t kDoubles = 8;        // lanes
constexpr std::size_t kRows = 16;

// kCount rows from i on, from column `first` on: each less its products with the pivots' rows p0 to p1 - 1, in that order.
template <std::size_t kCount>
LMCODEC_BODY void take_off(double* matrix, const double* scaled, std::size_t n, std::size_t p0, std::size_t p1, std::size_t i,
                     std::size_t first) {
  std::size_t j = first;
  for (; j + kDoubles <= n; j += kDoubles) {
    double sum[kCount][kDoubles];
    for (std::size_t a = 0; a < kCount; ++a)
      for (std::size_t b = 0; b < kDoubles; ++b) sum[a][b] = matrix[(i + a) * n + j + b];
    for (std::size_t p = p0; p < p1; ++p) {
      const double* const row = matrix + p * n + j;
      const double* const by = scaled + (p - p0) * n + i;
      for (std::size_t a = 0; a < kCount; ++a)
        for (std::size_t b = 0; b < kDoubles; ++b) sum[a][b] -= by[a] * row[b];
    }
    for (std::size_t a = 0; a < kCount; ++a)
      for (std::size_t b = 0; b < kDoubles; ++b) matrix[(i + a) * n + j + b] = sum[a][b];
  }
  for (; j < n; ++j)
    for (std::size_t a = 0; a < kCount; ++a) {
      double sum = matrix[(i + a) * n + j];
      for (std::size_t p = p0; p < p1; ++p) sum -= scaled[(p - p0) * n + i + a] * matrix[p * n + j];
      matrix[(i + a) * n + j] = sum;
    }
}

// scaled: (kPivots, n), for rows of L, transposed, of the pivots at hand.
LMCODEC_BODY void factor(double* matrix, std::size_t n, double least, double* scaled) {
  for (std::size_t p0 = 0; p0 < n; p0 += kPivots) {
    const std::size_t p1 = std::min(p0 + kPivots, n);
    for (std::size_t p = p0; p < p1; ++p) {
      take_off<1>(matrix, scaled, n, p0, p, p, p);
      double* const row = matrix + p * n;
      const double pivot = row[p] >= least ? row[p] : least;
      row[p] = pivot;
      double* const by = scaled + (p - p0) * n;
      for (std::size_t j = p + 1; j < n; ++j) by[j] = row[j] / pivot;
    }
    // Beyond a row's own column nothing is read of what stands before it: tiles may begin at their first row's.
    std::size_t i = p1;
    for (; i + kTile <= n; i += kTile) take_off<kTile>(matrix, scaled, n, p0, p1, i, i);
    for (; i < n; ++i) take_off<1>(matrix, scaled, n, p0, p1, i, i);
    for (std::size_t p = p0; p < p1; ++p)
      std::copy(scaled + (p - p0) * n + p + 1, scaled + (p - p0 + 1) * n, matrix + p * n + p + 1);
  }
}

// Columns k - kCount + 1 to k of kRows rows, whose errors of columns after k are known.
template <std::size_t kCount>
LMCODEC_BODY void round_columns(const float* weight, std::size_t n, std::size_t k, const float* factor, float* error,
                          std::int8_t* code) {
  float sum[kCount][kRows];
  for (std::size_t a = 0; a < kCount; ++a)
    for (std::size_t r = 0; r < kRows; ++r) sum[a][r] = weight[(k - a) * kRows + r];
  for (std::size_t j = n - 1; j > k; --j) {
    LMCODEC_UNROLL
    for (std::size_t a = 0; a < kCount; ++a) {
      const float by = factor[(k - a) * n + j];
      LMCODEC_UNROLL
      for (std::size_t r = 0; r < kRows; ++r) sum[a][r] += error[j * kRows + r] * by;
    }
  }
  for (std::size_t a = 0; a < kCount; ++a) {
    for (std::size_t b = 0; b < a; ++b) {
      const float by = factor[(k - a) * n + k - b];
      for (std::size_t r = 0; r < kRows; ++r) sum[a][r] += error[(k - b) * kRows + r] * by;
    }
    for (std::size_t r = 0; r < kRows; ++r) {
      float q = sum[a][r] < -kMost ? -kMost : sum[a][r];
      q = q > kMost ? kMost : q;
      q = (q + kToInteger) - kToInteger;
      error[(k - a) * kRows + r] = weight[(k - a) * kRows + r] - q;
      code[(k - a) * kRows + r] = static_cast<std::int8_t>(static_cast<int>(q));
    }
  }
}

// turned, error, code: (n, kRows) to work in.
LMCODEC_BODY void round_rows(const float* weight, std::size_t n_row, std::size_t n, const float* factor, float* turned,
                             float* error, std::int8_t* code, std::int8_t* out) {
  for (std::size_t at = 0; at < n_row; at += kRows) {
    const std::size_t count = std::min(kRows, n_row - at);
    for (std::size_t r = 0; r < count; ++r)
      for (std::size_t k = 0; k < n; ++k) turned[k * kRows + r] = weight[(at + r) * n + k];
    for (std::size_t k = n; k >= kTile; k -= kTile) round_columns<kTile>(turned, n, k - 1, factor, error, code);
    for (std::size_t left = n % kTile; left > 0; --left) round_columns<1>(turned, n, left - 1, factor, error, code);
    for (std::size_t r = 0; r < count; ++r)
      for (std::size_t c = 0; c < n; ++c) out[(at + r) * n + c] = code[c * kRows + r];
  }
}

#if LMCODEC_HAS_AVX2
LMCODEC_AVX2 void factor_avx2(double* matrix, std::size_t n, double least, double* scaled) {
  factor(matrix, n, least, scaled);
}

LMCODEC_AVX2 void round_rows_avx2(const float* weight, std::size_t n_row, std::size_t n, const float* factor, float* turned,
                                  float* error, std::int8_t* code, std::int8_t* out) {
  round_rows(weight, n_row, n, factor, turned, error, code, out);
}
#endif

}  // namespace

void factor_gram(double* matrix, std::size_t n, double least, bool portable) {
  const FloatControl control;
  std::vector<double> scaled(kPivots * n);
#if LMCODEC_HAS_AVX2
  if (!portable && cpu().avx2) return factor_avx2(matrix, n, least, scaled.data());
#endif
  static_cast<void>(portable);
  factor(matrix, n, least, scaled.data());
}

void round_with_feedback(const float* weight, std::size_t n_row, std::size_t n, const float* factor, std::int8_t* out,
                         bool portable) {
  const FloatControl control;
  std::vector<float> turned(n * kRows), error(n * kRows);
  std::vector<std::int8_t> code(n * kRows);
#if LMCODEC_HAS_AVX2
  if (!portable && cpu().avx2)
    return round_rows_avx2(weight, n_row, n, factor, turned.data(), error.data(), code.data(), out);
#endif
  static_cast<void>(portable);
  round_rows(weight, n_row, n, factor, turned.data(), error.data(), code.data(), out);
}

}  // namespace lmcodec
