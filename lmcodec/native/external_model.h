// A language model outside the kernel: it gives integer logits, and the kernel makes frequencies of them, so that any
// executor (NumPy, torch on a CPU or a GPU) is usable for frames through the same loop as the kernel's own.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "frequencies.h"
#include "language_model.h"

namespace lmcodec {

// The largest magnitude of a logit, in steps of 2^-8 of a binary logarithm: differences stay far inside an int32.
constexpr std::int32_t kExternalLogitMax = 1 << 24;

// The states of B streams, held outside.
class ExternalStates {
 public:
  virtual ~ExternalStates() = default;
  virtual void begin(int stream, bool cut) = 0;
  // Logits (n_step, B, V) of n_step tokens each, (n_step, B); `at(position)` is where the V of position t * B + b go.
  virtual void run(const std::uint32_t* tokens, std::size_t n_step,
                   const std::function<std::int32_t*(std::size_t)>& at) = 0;
  // As LmSession's.
  virtual std::size_t sum_rows() const { return 0; }
  virtual void sums(const std::uint32_t* tokens, std::size_t n_step, const TokenSpan* spans, std::size_t n,
                    std::uint64_t* sum) = 0;
};

class ExternalModel : public LanguageModel {
 public:
  using Make = std::function<std::unique_ptr<ExternalStates>(int n_stream)>;

  // exp2_coarse, exp2_fine: (16) each, of lm/tables.py; isa: null for the best. Throws std::invalid_argument for one that
  // this machine lacks, and for a table that is another one. steps_at_once: positions that states are asked for in one
  // call, at most; between two calls the work can be given up.
  ExternalModel(std::uint32_t n_token, std::uint32_t start, std::uint32_t start_cut, const std::int32_t* exp2_coarse,
                const std::int32_t* exp2_fine, const char* isa, std::uint32_t steps_at_once, Make make);

  std::uint32_t n_token() const override { return n_token_; }
  std::uint32_t n_input() const override { return 1 + (start_ > start_cut_ ? start_ : start_cut_); }
  std::uint32_t start_token(bool cut) const override { return cut ? start_cut_ : start_; }
  // What is outside may belong to a thread.
  bool may_be_helped() const override { return false; }
  std::size_t steps_at_once() const { return steps_at_once_; }
  std::unique_ptr<LmSession> session(int n_stream, const SessionOptions& options) const override;

 private:
  const std::uint32_t n_token_, start_, start_cut_;
  const std::size_t steps_at_once_;
  NetworkKernels kernels_;
  NetworkTables tables_ = {};
  const Make make_;
};

}  // namespace lmcodec
