// The executor of integer models: the whole step of many streams, to the bit what lm/reference.py gives
// (FORMAT.md section 6). A Network is immutable and may serve many Sessions, one thread each.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "cancel.h"
#include "gemm.h"
#include "helper.h"
#include "table_memory.h"

namespace lmcodec {

constexpr int kSessionStreamMax = 128;

struct NetworkShape {
  int vocab_size;  // V
  int dim;         // D
  int n_layer;     // L
  int recurrent;   // R
  int mlp;         // M, may be 0
};

// A tensor as lm/model.py has it.
struct LinearView {
  int n, k;
  const std::int8_t* weight;        // (n, k)
  const std::int32_t* bias;         // (n) or null
  const std::uint16_t* multiplier;  // (n)
  int shift;
};

// The tables of lm/tables.py.
struct TableViews {
  const std::int32_t* decay;        // (255)
  const std::int32_t* input_scale;  // (255)
  const std::int8_t* relu2;         // (128)
  const std::int32_t* rsqrt;        // (12288)
  const std::int32_t* exp2_coarse;  // (16)
  const std::int32_t* exp2_fine;    // (16)
  std::int32_t norm_scale;
};

class Network {
 public:
  // Copies and lays out tensors (in the canonical order of lm/model.py) and start states (2, L, R).
  // Throws std::invalid_argument for what breaks a bound that the arithmetic rests on, and for an isa (null: the best)
  // that this machine lacks.
  Network(const NetworkShape& shape, const std::vector<LinearView>& tensors, const std::int32_t* start,
          const TableViews& tables, const char* isa);

  const NetworkShape& shape() const { return shape_; }
  const char* isa() const { return kernels_.isa; }
  std::size_t n_token() const { return static_cast<std::size_t>(shape_.vocab_size) + 2; }

 private:
  friend class Session;

  struct Linear {
    Table<std::int8_t> weight;
    Table<std::int32_t> bias;
    Table<std::int32_t> multiplier;
    PackedLinear packed;
  };
  struct Layer {
    Linear into, out, up, down;
  };

  // offset: of the activations' bytes. n_part: of the rows, each padded to n_lane rows.
  static Linear pack(const LinearView& view, const NetworkKernels& kernels, int offset, int n_part = 1, int n_lane = 1);

  NetworkShape shape_;
  NetworkKernels kernels_;
  NetworkTables tables_;
  std::size_t lanes_;  // R, padded
  Table<std::int8_t> embed_;  // (V + 2, D)
  std::vector<std::uint16_t> embed_multiplier_;
  int embed_shift_;
  std::vector<Layer> layers_;
  Linear head_;
  std::vector<std::int32_t> start_;  // (2, L, R)
};

// Seconds that a session spent on each kind of work.
struct SessionTimes {
  double products = 0;
  double elements = 0;
  double frequencies = 0;
};

// Who takes a part of every product.
enum class Help {
  kNone,
  kThread,  // a second thread, if there can be one; for steps of few streams, which are bound by one core's reading of the
            // weights
  kLent,    // one that waits for the step, while it lends its time
};

// The states of up to 128 streams and what their last step gave.
class Session {
 public:
  // keep_logits: frequencies do not take the logits' place. timed: times() tells where the time goes.
  Session(const Network& network, int n_stream, bool keep_logits = false, bool timed = false, Help help = Help::kNone);

  int n_stream() const { return n_stream_; }
  const Network& network() const { return network_; }
  bool keeps_logits() const { return keep_logits_; }

  // A stream's state before the first token of a document, or (cut) of a text from the middle of one.
  void reset(int stream, bool cut);

  // One token each: (B) tokens, each < V + 2. Row b of what follows is stream b's.
  void step(const std::uint32_t* tokens);

  // n_step tokens each: (n_step, B) tokens in time order. The same as n_step steps; in pieces, `rows(first, n)` is called
  // for positions first to first + n - 1 (position t * B + b), whose rows 0 to n - 1 it may look at until it returns.
  void run(const std::uint32_t* tokens, std::size_t n_step, const std::function<void(std::size_t, int)>& rows);

  // (V) logits, steps of 2^-8 of a binary logarithm; only where they are kept.
  const std::int32_t* logits(int row) const { return logits_.data() + static_cast<std::size_t>(row) * width_; }
  const std::uint32_t* frequencies(int row) const { return freq_ + static_cast<std::size_t>(row) * width_; }

  // Sum of the frequencies of tokens below `token`, 0 to V.
  std::uint64_t cum(int row, int token) const {
    const std::uint64_t* sums = cum_.data() + static_cast<std::size_t>(row) * n_cum_;
    const int block = token / kPanel, rest = token % kPanel;
    return rest ? sums[block] + network_.kernels_.sum(frequencies(row) + block * kPanel, rest) : sums[block];
  }
  // Sum of the frequencies of tokens low to high - 1.
  std::uint64_t span(int row, int low, int high) const {
    return low / kPanel == high / kPanel ? network_.kernels_.sum(frequencies(row) + low, high - low)
                                         : cum(row, high) - cum(row, low);
  }

  // A stream's R states in a layer, steps of 2^-17.
  std::int32_t* state(int layer, int stream) {
    return state_.data() + static_cast<std::size_t>(layer * n_stream_ + stream) * network_.lanes_;
  }
  // With Help::kLent: another thread takes part until done(), or for a while.
  template <typename Done>
  void lend(const Done& done) {
    helper_->lend(done);
  }

  // Once the flag is set, step() and run() throw Cancelled.
  void use_cancel(CancelRef cancel) { cancel_ = std::move(cancel); }

  const SessionTimes& times() const { return times_; }
  // Panels of products that the second thread took.
  std::uint64_t helped() const { return helper_ ? helper_->taken() : 0; }

 private:
  class Stopwatch;

  void reserve_trunk(int n_row);
  void reserve_head(int n_row);
  void trunk(const std::uint32_t* tokens, int n_row);  // to activations_
  void head(int first, int n_row);                     // from rows of activations_ to logits and frequencies
  void normalise(int n_row);
  // NetworkKernels::product, with the helper if there is one, whose maxima go to helper_max.
  void product(const std::uint8_t* u, std::size_t stride, int n_row, const PackedLinear& linear, const Finished& to,
               std::int32_t* helper_max = nullptr);

  const Network& network_;
  const int n_stream_;
  const bool keep_logits_, timed_;
  const std::size_t x_stride_, u_stride_, gates_stride_, hidden_stride_, width_, n_cum_;
  CancelRef cancel_;
  int trunk_rows_ = 0, head_rows_ = 0;
  Table<std::int32_t> state_;        // (L, B, lanes)
  Table<std::int32_t> x_;            // (rows, x_stride): the residual stream
  Table<std::uint8_t> activations_;  // (rows, u_stride)
  Table<std::int8_t> gates_;         // (rows, gates_stride): z, v, o
  Table<std::uint8_t> hidden_;       // (rows, hidden_stride): of the MLP
  Table<std::int32_t> logits_;       // (rows, width)
  Table<std::uint32_t> kept_freq_;   // (rows, width), or empty
  std::uint32_t* freq_ = nullptr;    // (rows, width): kept_freq_, or where the logits were
  Table<std::uint64_t> cum_;         // (rows, n_cum): exclusive sums of blocks of 64
  std::vector<std::int32_t> max_;    // (rows, 16), and as many of the helper's
  SessionTimes times_;
  std::unique_ptr<Helper> helper_;
};

}  // namespace lmcodec
