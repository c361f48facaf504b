// Integer logits of rows, their frequencies and the sums of these: what every kind of session ends with.
// FORMAT.md section 6.4.
#pragma once

#include <cstddef>
#include <cstdint>

#include "gemm.h"
#include "table_memory.h"

namespace lmcodec {

// A panel's sum is below 64 * 2^24 = 2^30, all V <= 2^20 frequencies together are at most 2^44.
class Frequencies {
 public:
  // keep_logits: frequencies do not take the logits' place. kernels, tables: the exponentials' and the loops.
  Frequencies(const NetworkKernels& kernels, const NetworkTables& tables, std::uint32_t n_token, bool keep_logits)
      : kernels_(kernels), tables_(tables), n_token_(n_token), keep_logits_(keep_logits),
        width_((static_cast<std::size_t>(n_token) + kPanel - 1) / kPanel * kPanel), n_cum_(width_ / kPanel + 1) {}

  bool keeps_logits() const { return keep_logits_; }
  // Elements from one row of logits to the next.
  std::size_t width() const { return width_; }
  void reserve(int n_row) {
    if (n_row <= n_row_) return;
    const std::size_t n = static_cast<std::size_t>(n_row);
    logits_ = Table<std::int32_t>(n * width_);
    if (keep_logits_) kept_ = Table<std::uint32_t>(n * width_);
    // Signed and unsigned integers may look at one another's storage.
    freq_ = keep_logits_ ? kept_.data() : reinterpret_cast<std::uint32_t*>(logits_.data());
    cum_ = Table<std::uint64_t>(n * n_cum_);
    n_row_ = n_row;
  }

  // (V) logits of a row, steps of 2^-8 of a binary logarithm: to be written, then read where they are kept.
  std::int32_t* logits(int row) { return logits_.data() + static_cast<std::size_t>(row) * width_; }
  const std::int32_t* logits(int row) const { return logits_.data() + static_cast<std::size_t>(row) * width_; }
  // Makes the row's frequencies of its logits; max: the maxima of every 16th of them, (kMaxLanes).
  void weigh(int row, const std::int32_t* max) {
    const std::size_t r = static_cast<std::size_t>(row);
    kernels_.weigh(logits(row), max, static_cast<int>(n_token_), tables_, freq_ + r * width_, cum_.data() + r * n_cum_);
  }

  const std::uint32_t* row(int row) const { return freq_ + static_cast<std::size_t>(row) * width_; }
  // Sum of the frequencies of tokens below `token`, 0 to V.
  std::uint64_t cum(int row, std::uint32_t token) const {
    const std::uint64_t* sums = cum_.data() + static_cast<std::size_t>(row) * n_cum_;
    const std::uint32_t block = token / kPanel, rest = token % kPanel;
    return rest ? sums[block] + kernels_.sum(this->row(row) + block * kPanel, static_cast<int>(rest)) : sums[block];
  }
  // Sum of the frequencies of tokens low to high - 1.
  std::uint64_t span(int row, std::uint32_t low, std::uint32_t high) const {
    return low / kPanel == high / kPanel ? kernels_.sum(this->row(row) + low, static_cast<int>(high - low))
                                         : cum(row, high) - cum(row, low);
  }

 private:
  const NetworkKernels& kernels_;
  const NetworkTables& tables_;
  const std::uint32_t n_token_;
  const bool keep_logits_;
  const std::size_t width_, n_cum_;
  int n_row_ = 0;
  Table<std::int32_t> logits_;       // (rows, width)
  Table<std::uint32_t> kept_;        // (rows, width), or empty
  std::uint32_t* freq_ = nullptr;    // (rows, width): kept_, or where the logits were
  Table<std::uint64_t> cum_;         // (rows, n_cum): exclusive sums of blocks of 64
};

}  // namespace lmcodec
