#include "external_model.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

namespace lmcodec {
namespace {

constexpr std::size_t kPieceLogits = std::size_t{1} << 22;  // of a piece of run(): 16 MiB of them
constexpr std::size_t kPieceRows = 256;

class ExternalSession : public LmSession {
 public:
  ExternalSession(const ExternalModel& model, const NetworkKernels& kernels, const NetworkTables& tables, int n_stream,
                  const SessionOptions& options, std::unique_ptr<ExternalStates> states)
      : model_(model), n_token_(model.n_token()), n_stream_(n_stream), timed_(options.timed), cancel_(options.cancel),
        frequencies_(kernels, tables, n_token_, false), states_(std::move(states)) {
    frequencies_.reserve(n_stream);
  }

  const LanguageModel& model() const override { return model_; }
  int n_stream() const override { return n_stream_; }
  void begin(int stream, bool cut) override { states_->begin(stream, cut); }
  void step(const std::uint32_t* tokens) override { piece(tokens, 1); }

  void run(const std::uint32_t* tokens, std::size_t n_step, const Rows& rows) override {
    const std::size_t b = static_cast<std::size_t>(n_stream_);
    const std::size_t most = std::min(kPieceRows, kPieceLogits / n_token_);
    const std::size_t piece_steps = std::min(std::max<std::size_t>(1, most / b), model_.steps_at_once());
    for (std::size_t t = 0; t < n_step; t += piece_steps) {
      const std::size_t n = std::min(piece_steps, n_step - t);
      piece(tokens + t * b, n);
      rows(t * b, static_cast<int>(n * b));
    }
  }

  std::size_t sum_rows() const override { return states_->sum_rows(); }
  void sums(const std::uint32_t* tokens, std::size_t n_step, const TokenSpan* spans, std::size_t n,
            std::uint64_t* sum) override {
    throw_if_set(cancel_);
    Clock::time_point before;
    if (timed_) before = Clock::now();
    states_->sums(tokens, n_step, spans, n, sum);
    if (timed_) mark(times_.products, before);
    for (std::size_t i = 0; i < n; ++i)
      if (sum[i] < spans[i].high - spans[i].low || sum[i] > std::uint64_t{spans[i].high - spans[i].low} << 24)
        throw std::invalid_argument("a sum of frequencies of a language model outside the kernel is out of range");
  }

  const std::uint32_t* frequencies(int row) const override { return frequencies_.row(row); }
  std::uint64_t span(int row, std::uint32_t low, std::uint32_t high) const override {
    return frequencies_.span(row, low, high);
  }
  SessionTimes times() const override { return times_; }

 private:
  using Clock = std::chrono::steady_clock;

  void piece(const std::uint32_t* tokens, std::size_t n_step) {
    throw_if_set(cancel_);
    const int n_row = static_cast<int>(n_step) * n_stream_;
    frequencies_.reserve(n_row);
    Clock::time_point before;
    if (timed_) before = Clock::now();
    states_->run(tokens, n_step, [this](std::size_t row) { return frequencies_.logits(static_cast<int>(row)); });
    if (timed_) mark(times_.products, before);
    for (int row = 0; row < n_row; ++row) weigh(row);
    if (timed_) mark(times_.frequencies, before);
  }

  void mark(double& total, Clock::time_point& before) {
    const Clock::time_point now = Clock::now();
    total += std::chrono::duration<double>(now - before).count();
    before = now;
  }

  void weigh(int row) {
    const std::int32_t* logits = frequencies_.logits(row);
    std::int32_t max[kMaxLanes];
    std::fill_n(max, kMaxLanes, std::numeric_limits<std::int32_t>::min());
    std::int32_t least = 0;
    for (std::uint32_t i = 0; i < n_token_; ++i) {
      max[i % kMaxLanes] = std::max(max[i % kMaxLanes], logits[i]);
      least = std::min(least, logits[i]);
    }
    if (least < -kExternalLogitMax || *std::max_element(max, max + kMaxLanes) > kExternalLogitMax)
      throw std::invalid_argument("a logit of a language model outside the kernel is beyond 2^24");
    frequencies_.weigh(row, max);
  }

  const ExternalModel& model_;
  const std::uint32_t n_token_;
  const int n_stream_;
  const bool timed_;
  const CancelRef cancel_;
  Frequencies frequencies_;
  SessionTimes times_;
  std::unique_ptr<ExternalStates> states_;
};

}  // namespace

ExternalModel::ExternalModel(std::uint32_t n_token, std::uint32_t start, std::uint32_t start_cut,
                             const std::int32_t* exp2_coarse, const std::int32_t* exp2_fine, const char* isa,
                             std::uint32_t steps_at_once, Make make)
    : n_token_(n_token), start_(start), start_cut_(start_cut), steps_at_once_(steps_at_once ? steps_at_once : 1), kernels_(chosen_kernels(isa)), make_(std::move(make)) {
  if (n_token < 256 || n_token > kVocabMax)
    throw std::invalid_argument("a language model has 256 to 2^20 tokens, not " + std::to_string(n_token));
  if (start < n_token || start_cut < n_token) throw std::invalid_argument("a start token is one of the vocabulary");
  set_exp2(tables_, exp2_coarse, exp2_fine);
}

std::unique_ptr<LmSession> ExternalModel::session(int n_stream, const SessionOptions& options) const {
  if (n_stream < 1 || n_stream > kSessionStreamMax) throw std::invalid_argument("streams are 1 to 128");
  return std::make_unique<ExternalSession>(*this, kernels_, tables_, n_stream, options, make_(n_stream));
}

}  // namespace lmcodec
