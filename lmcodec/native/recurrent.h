// The executor of recurrent integer models: the whole step of many streams, to the bit what lm/recurrent/reference.py
// gives (FORMAT.md section 6).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "frequencies.h"
#include "gemm.h"
#include "helper.h"
#include "language_model.h"
#include "table_memory.h"

namespace lmcodec {

struct RecurrentShape {
  int vocab_size;  // V
  int dim;         // D
  int n_layer;     // L
  int recurrent;   // R
  int mlp;         // M, may be 0
};

// A tensor as lm/recurrent/model.py has it.
struct LinearView {
  int n, k;
  const std::int8_t* weight;        // (n, k)
  const std::int32_t* bias;         // (n) or null
  const std::uint16_t* multiplier;  // (n)
  int shift;
};

// The tables of lm/recurrent/tables.py.
struct TableViews {
  const std::int32_t* decay;        // (255)
  const std::int32_t* input_scale;  // (255)
  const std::int8_t* relu2;         // (128)
  const std::int32_t* rsqrt;        // (12288)
  const std::int32_t* exp2_coarse;  // (16)
  const std::int32_t* exp2_fine;    // (16)
  std::int32_t norm_scale;
};

class RecurrentModel : public LanguageModel {
 public:
  // Copies and lays out tensors (in the canonical order of lm/recurrent/model.py) and start states (2, L, R).
  // Throws std::invalid_argument for what breaks a bound that the arithmetic rests on, and for an isa (null: the best)
  // that this machine lacks.
  RecurrentModel(const RecurrentShape& shape, const std::vector<LinearView>& tensors, const std::int32_t* start,
          const TableViews& tables, const char* isa);

  const RecurrentShape& shape() const { return shape_; }
  const char* isa() const { return kernels_.isa; }
  // Rows of the embedding: the vocabulary's tokens, then those that begin a document and a text from the middle of one.
  std::uint32_t n_input() const override { return static_cast<std::uint32_t>(shape_.vocab_size) + 2; }

  std::uint32_t n_token() const override { return static_cast<std::uint32_t>(shape_.vocab_size); }
  std::uint32_t start_token(bool cut) const override { return n_token() + (cut ? 1 : 0); }
  std::unique_ptr<LmSession> session(int n_stream, const SessionOptions& options) const override;

 private:
  friend class RecurrentSession;

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

  RecurrentShape shape_;
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

class RecurrentSession : public LmSession {
 public:
  // keep_logits: frequencies do not take the logits' place.
  RecurrentSession(const RecurrentModel& model, int n_stream, const SessionOptions& options = {}, bool keep_logits = false);

  const RecurrentModel& model() const override { return model_; }
  bool keeps_logits() const { return frequencies_.keeps_logits(); }

  int n_stream() const override { return n_stream_; }
  void begin(int stream, bool cut) override;
  bool save(int stream, std::vector<std::int32_t>& to) override;
  void restore(int stream, const std::vector<std::int32_t>& from) override;
  void step(const std::uint32_t* tokens) override;
  void run(const std::uint32_t* tokens, std::size_t n_step, const Rows& rows) override;
  const std::uint32_t* frequencies(int row) const override { return frequencies_.row(row); }
  std::uint64_t span(int row, std::uint32_t low, std::uint32_t high) const override {
    return frequencies_.span(row, low, high);
  }
  void lend(const std::function<bool()>& done) override {
    if (helper_) helper_->lend(done);
  }
  SessionTimes times() const override { return times_; }

  // (V) logits, steps of 2^-8 of a binary logarithm; only where they are kept.
  const std::int32_t* logits(int row) const { return frequencies_.logits(row); }
  std::uint64_t cum(int row, std::uint32_t token) const { return frequencies_.cum(row, token); }
  // A stream's R states in a layer, steps of 2^-17.
  std::int32_t* state(int layer, int stream) {
    return state_.data() + static_cast<std::size_t>(layer * n_stream_ + stream) * model_.lanes_;
  }
  // Panels of products that the second thread took.
  std::uint64_t n_helped() const { return helper_ ? helper_->taken() : 0; }

 private:
  void reserve_trunk(int n_row);
  void reserve_head(int n_row);
  void trunk(const std::uint32_t* tokens, int n_row);  // to activations_
  void head(int first, int n_row);                     // from rows of activations_ to frequencies_
  void normalise(int n_row);
  // NetworkKernels::product, with the helper if there is one, whose maxima go to helper_max.
  void product(const std::uint8_t* u, std::size_t stride, int n_row, const PackedLinear& linear, const Finished& to,
               std::int32_t* helper_max = nullptr);

  const RecurrentModel& model_;
  const int n_stream_;
  const bool timed_;
  const std::size_t x_stride_, u_stride_, gates_stride_, hidden_stride_;
  const CancelRef cancel_;
  int trunk_rows_ = 0, head_rows_ = 0;
  Table<std::int32_t> state_;        // (L, B, lanes)
  Table<std::int32_t> x_;            // (rows, x_stride): the residual stream
  Table<std::uint8_t> activations_;  // (rows, u_stride)
  Table<std::int8_t> gates_;         // (rows, gates_stride): z, v, o
  Table<std::uint8_t> hidden_;       // (rows, hidden_stride): of the MLP
  Frequencies frequencies_;
  std::vector<std::int32_t> max_;    // (rows, 16), and as many of the helper's
  SessionTimes times_;
  std::unique_ptr<Helper> helper_;
};

}  // namespace lmcodec
