// The executor of imported transformers: the whole step of many streams, to the bit what lm/transformer/reference.py gives
// (FORMAT.md section 9).
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
#include "transformer_kernels.h"

namespace lmcodec {

// As lm/transformer/shape.py has it.
struct TransformerShape {
  int vocab_size;  // V
  int dim;         // D
  int n_layer;     // L
  int n_head;      // H
  int n_kv_head;   // G
  int head_dim;    // E
  int mlp;         // F
  int window;      // W
  int sinks;       // S
  float norm_eps;
  float score_scale;
  float logit_scale;
  bool qkv_bias;
  bool qk_norm;
  bool tied;
  std::vector<int> no_rotary;  // ascending
  bool layer_norm = false;
  bool pre_norm = true;
  bool post_norm = false;
  bool parallel = false;
  bool qk_norm_whole = false;
  bool gated = true;
  Activation activation = Activation::kSilu;
  bool out_bias = false;
  bool mlp_bias = false;
  float score_cap = 0;
  float logit_cap = 0;
  int n_position = 0;        // P
  std::vector<int> sliding;  // ascending
  int sliding_window = 0;
  int sliding_sinks = 0;

  int half() const { return n_position / 2; }
  // Tokens that a stream with learned positions that has taken n takes before it restarts, or the position of the next.
  std::uint32_t room(std::uint32_t n) const {
    const std::uint32_t p = static_cast<std::uint32_t>(n_position), h = p / 2;
    return n < p ? p - n : h - (n - p) % h;
  }
  std::uint32_t place(std::uint32_t n) const {
    return n_position ? static_cast<std::uint32_t>(n_position) - room(n) : n;
  }
};

// A tensor as lm/transformer/model.py has it.
struct FloatLinearView {
  std::size_t n, k;
  const std::int8_t* weight;  // (n, k); null for a head that is tied
  const float* scale;         // (n); null likewise
  const float* bias;          // (n) or null
};

struct VectorView {
  std::size_t n;
  const float* value;
};

// How large the parts of a session are.
struct TransformerSizes {
  TransformerSizes(const TransformerShape& shape, int n_stream);

  int trunk_rows;       // positions of all streams that pass through the layers at once, at most
  int restart_rows;     // positions of one stream that is fed again
  int head_rows;        // and through the head
  int ring;             // slots of the window's keys, a multiple of kSlots
  std::size_t n_slot;   // those, and the sinks'
  std::size_t n_score;  // slots that a query looks at, at most, in whole blocks
  std::size_t n_head;   // of keys and values in all layers and streams
  int heads_at_once, positions_at_once;  // that look at the same keys together
  std::size_t x_stride, u_stride, y_stride, attended_stride, query_stride, angle_stride, scratch_width;
};

class TransformerModel : public LanguageModel {
 public:
  // Copies and lays out tensors and vectors (in the canonical order of lm/transformer/model.py) and rotary, (2, E / 2)
  // cosines and sines, of a shape with sliding layers (4, E / 2); exp2: the tables of lm/tables.py, (16) each.
  // Throws std::invalid_argument for what breaks a bound that the arithmetic rests on, and for an isa (null: the best)
  // that this machine lacks.
  TransformerModel(const TransformerShape& shape, const std::vector<FloatLinearView>& tensors,
                   const std::vector<VectorView>& vectors, const double* rotary, const std::int32_t* exp2_coarse,
                   const std::int32_t* exp2_fine, const char* isa);

  // Throws std::invalid_argument for a shape that is not within the bounds.
  static void check(const TransformerShape& shape);
  // Bytes that a model of that shape takes, at most.
  static std::size_t memory_nbytes(const TransformerShape& shape);
  // Bytes that a session of so many streams takes: that steps, or also runs.
  static std::size_t session_memory_nbytes(const TransformerShape& shape, int n_stream, bool runs);

  const TransformerShape& shape() const { return shape_; }
  const char* isa() const { return kernels_.isa; }

  std::uint32_t n_token() const override { return static_cast<std::uint32_t>(shape_.vocab_size); }
  // Rows of the embedding: the vocabulary's tokens, then those that begin a document and a text from the middle of one.
  std::uint32_t n_input() const override { return n_token() + 2; }
  std::uint32_t start_token(bool cut) const override { return n_token() + (cut ? 1 : 0); }
  std::unique_ptr<LmSession> session(int n_stream, const SessionOptions& options) const override;

 private:
  friend class TransformerSession;

  struct Linear {
    Table<std::int8_t> weight;
    Table<std::int32_t> bias;  // what undoes the offset
    Table<float> scale, float_bias;
    PackedLinear packed;
  };
  struct Layer {
    Linear qkv, out, gate_up, down;
    Table<float> attention_norm, attention_norm_bias, q_norm, k_norm, post_attention_norm;
    Table<float> mlp_norm, mlp_norm_bias, post_mlp_norm;
    bool rotary, sliding;
  };

  // n_part: of the rows, each padded to n_lane rows.
  void pack(Linear& linear, const FloatLinearView& view, int n_part = 1, int n_lane = 1) const;

  TransformerShape shape_;
  NetworkKernels kernels_;
  TransformerKernels own_;
  NetworkTables tables_;
  Linear embed_;     // (V + 2, D)
  Linear position_;  // (P, D)
  std::vector<Layer> layers_;
  Table<float> norm_, norm_bias_;
  Linear head_;  // of a tied model only the bias: the rest is the embedding's
  std::vector<double> powers_;  // (22, 2, E / 2) cosines and sines of the angles of positions 2^0 to 2^21
  std::vector<double> sliding_powers_;  // the same of sliding layers
};

class TransformerSession : public LmSession {
 public:
  // keep_logits: frequencies do not take the logits' place.
  TransformerSession(const TransformerModel& model, int n_stream, const SessionOptions& options = {},
                     bool keep_logits = false);

  const TransformerModel& model() const override { return model_; }
  bool keeps_logits() const { return frequencies_.keeps_logits(); }

  int n_stream() const override { return n_stream_; }
  void begin(int stream, bool cut) override;
  // Both throw std::invalid_argument where a stream would pass the largest position, 2^22 - 1.
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

  // What the input of a product is: k codes and a scale for each row.
  struct Seen {
    std::size_t k;
    std::int8_t* code;
    float* scale;
  };
  // Moves (T, B, D) values of the residual stream through the layers, in place, as T more tokens of each stream: no
  // embedding, no head. seen: of the products, four of each layer and the head's, what goes into them.
  void pass(float* x, std::size_t n_step, const std::vector<Seen>& seen);

  // (V) logits, steps of 2^-8 of a binary logarithm; only where they are kept.
  const std::int32_t* logits(int row) const { return frequencies_.logits(row); }
  // Of the seconds of elements, those of attention.
  double attention_seconds() const { return attention_seconds_; }
  // Pieces of work that the second thread took.
  std::uint64_t n_helped() const { return helper_ ? helper_->taken() : 0; }

 private:
  // What each of the two threads works in.
  struct Scratch {
    Table<float> values, squares, head, weighted;
    Table<std::uint16_t> share;
    Table<double> angles;
    Table<std::uint8_t> code;
    Table<std::int32_t> score, mean;
    Table<std::uint8_t> low, high, bits, query;
    std::vector<BlockPlace> place;
  };

  struct Pass {
    float* x;
    std::vector<Seen> seen;
    std::size_t next;  // product
  };

  void require_room(std::size_t n_step) const;
  void see(int n_row);
  void reserve_trunk(int n_row);
  void reserve_head(int n_row);
  // All streams by n_row / B tokens each, or one by n_row; to codes_. Rows are in time order.
  void trunk(const std::uint32_t* tokens, int n_row);
  void trunk_of(int stream, std::uint32_t position, const std::uint32_t* tokens, int n_row);
  void layers(const std::uint32_t* tokens, int n_row);
  // Streams that have had all learned positions are fed their last tokens again. Returns for how many steps none is due.
  std::size_t restart();
  void head(int first, int n_row);                     // from rows of codes_ to frequencies_
  void product(int first_row, int n_row, const PackedLinear& linear, Finish finish, void* out, std::size_t stride,
               std::int32_t* max = nullptr, std::int32_t* helper_max = nullptr);
  // work(i, scratch) for i below n, with the helper if there is one.
  template <typename Work>
  void share(int n, const Work& work);
  // Codes of normalised rows; of the rows as they are if there are no weights.
  void normalise(int n_row, const Table<float>& x, const Table<float>& weight, const Table<float>& bias);
  // What attention or MLP give is added to the residual stream, normalised before if there are weights.
  void add(int n_row, const PackedLinear& linear, const Table<float>& weight);
  void normalise_heads(float* y, const Table<float>& weight, int n, Scratch& scratch);
  int stream_of(int row) const { return first_stream_ + row % n_lane_; }
  void prepare(int layer, int row, Scratch& scratch);
  // Tasks of attention of so many positions: one for each stream and head of keys, times this.
  int n_attention_task(int n_step) const { return (n_step + sizes_.positions_at_once - 1) / sizes_.positions_at_once; }
  void attend(int layer, int task, int n_row, Scratch& scratch);  // task: of (B, G, positions)
  // How far a layer's queries see.
  struct Sight {
    int window, sinks;
  };
  // Of positions step to stop - 1 of what is at hand.
  void attend_some(int g, int lane, int step, int stop, bool has_far, const Sight& sight, const HeldHead& held,
                   Scratch& scratch);
  std::size_t head_at(int layer, int stream, int g) const {
    const TransformerShape& s = model_.shape_;
    return (static_cast<std::size_t>(layer) * static_cast<std::size_t>(n_stream_) + static_cast<std::size_t>(stream)) *
               static_cast<std::size_t>(s.n_kv_head) +
           static_cast<std::size_t>(g);
  }

  const TransformerModel& model_;
  const int n_stream_;
  const bool timed_;
  const CancelRef cancel_;
  const TransformerSizes sizes_;
  int trunk_rows_ = 0, head_rows_ = 0;
  int first_stream_ = 0, n_lane_ = 1;  // streams of the rows that pass through the layers
  std::vector<std::uint32_t> taken_;   // tokens that each stream has taken
  std::vector<std::uint32_t> recent_;  // (B, P / 2): with learned positions each stream's last tokens, by number
  // (L, B, G) heads of n_slot
  Table<std::int8_t> key_, value_;
  Table<std::int32_t> key_sum_;
  Table<float> key_scale_, value_scale_;
  Table<float> x_;              // (rows, x_stride): the residual stream
  Table<float> side_;           // (rows, x_stride): before attention, or what is to be normalised before it is added
  Table<std::uint8_t> codes_;   // (rows, u_stride)
  Table<float> row_scale_;      // (rows)
  Table<float> y_;              // (rows, y_stride): queries, keys and values, or gates and what they gate
  Table<float> attended_;       // (rows, attended_stride)
  Table<std::uint8_t> near_, far_;          // (rows, H, key_width)
  Table<float> near_scale_, far_scale_;     // (rows, H)
  Table<float> angle_, far_angle_;          // (rows, 2, padded E / 2), and of position W
  Table<float> sliding_angle_, far_sliding_angle_;  // the same of sliding layers
  std::vector<std::uint32_t> position_;     // (rows)
  Frequencies frequencies_;
  std::vector<std::int32_t> max_;  // (rows, 16), and as many of the helper's
  SessionTimes times_;
  double attention_seconds_ = 0;
  Pass* pass_ = nullptr;
  Scratch scratch_[2];  // this thread's and the helper's
  std::unique_ptr<Helper> helper_;
};

}  // namespace lmcodec
