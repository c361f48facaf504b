#include "transformer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

#include "float_control.h"
#include "stopwatch.h"

namespace lmcodec {
namespace {

constexpr int kWeightMax = 63;
constexpr int kFanInMax = 65536;
constexpr int kHeadDimMax = 1024;
constexpr int kLayersMax = 1024;
constexpr int kHeadsMax = 1024;
constexpr int kSinksMax = 16;
constexpr int kWindowMin = 16, kWindowMax = 16384 - 16;
constexpr std::uint64_t kWeightsMax = std::uint64_t{1} << 33;
constexpr std::uint32_t kPositionMax = 1u << 22;
constexpr float kLargest = 1099511627776.0f;              // 2^40
constexpr float kScaleMin = 9.094947017729282379e-13f;   // 2^-40
constexpr float kSmallest = 8.673617379884035472e-19f;   // 2^-60
constexpr int kTrunkRows = 256;
constexpr int kHeadRows = 48;
constexpr std::size_t kLine = 64;
static_assert(kSinksMax <= kSlots, "sinks have a block of their own");
static_assert(kPositionMax == 1u << (kLowPositionBits + kHighPositionBits), "angles are those of all positions");

std::size_t rounded_up(std::size_t n, std::size_t unit) { return (n + unit - 1) / unit * unit; }
std::size_t sized(int n) { return static_cast<std::size_t>(n); }

// Rows of bytes, and of floats, of whole lines, an odd number of them, so that rows do not fall into the same few sets of
// a cache. Floats have room for whole panels.
std::size_t byte_stride(std::size_t n) { return rounded_up(n, kLine) | kLine; }
std::size_t float_stride(std::size_t n) { return rounded_up(n, kPanel) + kFloatLanes; }

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

int within(const char* name, int value, int low, int high) {
  if (value < low || value > high)
    refuse(std::string(name) + " is " + std::to_string(value) + ", expected " + std::to_string(low) + " to " +
           std::to_string(high));
  return value;
}

void within(const char* name, float value, float low, float high) {
  if (!(value >= low && value <= high)) refuse(std::string(name) + " is out of range");
}

std::size_t layer_weights(const TransformerShape& s) {
  return sized(s.dim) * (sized(s.n_head + 2 * s.n_kv_head) * sized(s.head_dim) + sized(s.n_head) * sized(s.head_dim) +
                         (s.gated ? 3 : 2) * sized(s.mlp));
}

bool has_side(const TransformerShape& s) { return s.parallel || s.post_norm; }

void check_layers(const char* name, const std::vector<int>& layers, int n_layer) {
  for (std::size_t i = 0; i < layers.size(); ++i) within(name, layers[i], i ? layers[i - 1] + 1 : 0, n_layer - 1);
}

// As lm/transformer/shape.py has it.
void check_options(const TransformerShape& s) {
  if (!s.pre_norm && !s.post_norm) refuse("there are no norms");
  if (s.parallel && (s.post_norm || !s.pre_norm)) refuse("attention and MLP side by side need norms before them alone");
  if (s.layer_norm && (s.post_norm || s.qk_norm)) refuse("layer norms go with none of sums, of queries and of keys");
  if (s.qk_norm_whole && !s.qk_norm) refuse("norms of all heads together, without norms of heads");
  for (float cap : {s.score_cap, s.logit_cap})
    if (cap != 0) within("a cap", cap, 1.0f, 4194304.0f);
  check_layers("a sliding layer", s.sliding, s.n_layer);
  within("the sliding layers' window", s.sliding_window, s.sliding.empty() ? 0 : kWindowMin, s.sliding.empty() ? 0 : s.window);
  within("the number of the sliding layers' sinks", s.sliding_sinks, 0, s.sliding.empty() ? 0 : s.sinks);
  if (!s.n_position) return;
  within("the number of positions", s.n_position, kWindowMin, kWindowMax);
  if (s.n_position % 2 || s.n_position != s.window || s.sinks || !s.sliding.empty() || s.no_rotary.size() != sized(s.n_layer))
    refuse("learned positions are not those of the window, or do not go with what else there is");
}

void check_values(const char* name, const float* value, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) {
    const float size = std::fabs(value[i]);
    if (!(size <= kLargest && (size >= kSmallest || size == 0)))
      refuse(std::string(name) + " is neither 0 nor 2^-60 to 2^40 in size");
  }
}

void check(const FloatLinearView& view, int n, int k, bool biased, bool tied = false) {
  if (view.n != sized(n) || view.k != sized(k) || (view.bias != nullptr) != biased || (view.weight == nullptr) != tied ||
      (view.scale == nullptr) != tied)
    refuse("a tensor has not the shape of the model");
  if (biased) check_values("a bias", view.bias, view.n);
  if (tied) return;
  const std::int8_t* const end = view.weight + view.n * view.k;
  const auto beyond = [](int w) { return static_cast<unsigned char>(w + kWeightMax) > 2 * kWeightMax; };
  unsigned char any = 0;  // a loop over bytes that compilers turn into one over vectors
  for (const std::int8_t* w = view.weight; w < end; ++w) any |= beyond(*w);
  if (any) within("a weight", *std::find_if(view.weight, end, beyond), -kWeightMax, kWeightMax);
  for (std::size_t i = 0; i < view.n; ++i) within("a scale", view.scale[i], kScaleMin, kLargest);
}

// A vector padded with zeros.
Table<float> padded(const VectorView& view, int n) {
  if (view.n != sized(n)) refuse("a vector has not the length that the model's shape gives it");
  check_values("a value of a norm", view.value, view.n);
  Table<float> table(sized(padded_floats(n)));
  std::copy_n(view.value, n, table.data());
  return table;
}

void check_angles(const double* rotary, int n) {
  for (int i = 0; i < n; ++i) {
    const double square = rotary[i] * rotary[i] + rotary[n + i] * rotary[n + i];
    if (!(std::fabs(square - 1) <= 8.8817841970012523e-16)) refuse("a cosine and its sine are not those of an angle");  // 2^-50
  }
}

// Cosines and sines of the angles of positions 2^0 to 2^21, of those of position 1: (22, 2, n).
std::vector<double> position_powers(const double* rotary, int n) {
  const std::size_t count = sized(n);
  std::vector<double> powers(2 * count * (kLowPositionBits + kHighPositionBits));
  const auto square = [&](const double* from, double* to) {
    for (std::size_t i = 0; i < count; ++i) {
      const double c = from[i], s = from[count + i];
      to[i] = c * c - s * s;
      to[count + i] = s * c + c * s;
    }
  };
  double* power = powers.data();
  std::copy_n(rotary, 2 * count, power);
  // Of the last position of the lower bits, by the same sums as any other's.
  std::vector<double> last(2 * count);
  std::fill_n(last.begin(), count, 1.0);
  const auto turn = [&](double* at, const double* by) {
    for (std::size_t i = 0; i < count; ++i) {
      const double a = at[i], b = at[count + i], c = by[i], s = by[count + i];
      at[i] = a * c - b * s;
      at[count + i] = b * c + a * s;
    }
  };
  for (int bit = 0; bit < kLowPositionBits; ++bit, power += 2 * count) {
    if (bit) square(power - 2 * count, power);
    turn(last.data(), power);
  }
  turn(last.data(), rotary);
  std::copy(last.begin(), last.end(), power);
  for (int bit = 1; bit < kHighPositionBits; ++bit, power += 2 * count) square(power, power + 2 * count);
  return powers;
}

std::size_t linear_nbytes(std::size_t n, int k, bool biased) {
  const std::size_t rows = rounded_up(n, kPanel);
  constexpr std::size_t kQuadUnit = 16;  // the largest there is
  return table_nbytes<std::int8_t>(rows * rounded_up(sized(k), kQuad * kQuadUnit)) + table_nbytes<std::int32_t>(rows) +
         (biased ? 2 : 1) * table_nbytes<float>(rows);
}

}  // namespace

TransformerSizes::TransformerSizes(const TransformerShape& s, int n_stream) {
  const int piece = std::max(1, kTrunkRows / n_stream);  // positions of a stream
  trunk_rows = piece * n_stream;
  restart_rows = std::min(s.half(), trunk_rows);
  head_rows = std::min(std::max(kHeadRows, n_stream), trunk_rows);
  ring = static_cast<int>(rounded_up(sized(s.window + piece - 1), kSlots));
  n_slot = sized(ring + kSlots);
  n_score = n_slot + 2 * kSlots;
  n_head = sized(s.n_layer) * sized(n_stream) * sized(s.n_kv_head);
  const std::size_t attended = sized(s.n_head * s.head_dim);
  const std::size_t n_qkv = sized(s.n_head + 2 * s.n_kv_head) * sized(s.head_dim);
  const std::size_t widest = std::max({sized(s.dim), attended, sized(s.mlp)});
  x_stride = float_stride(sized(s.dim));
  u_stride = byte_stride(widest);
  y_stride = float_stride(std::max(n_qkv, 2 * sized(padded_floats(s.mlp))));
  attended_stride = float_stride(attended);
  query_stride = sized(s.n_head * key_width(s.head_dim));
  angle_stride = sized(key_width(s.head_dim));
  // As equal parts of the heads that share keys as can be, then as many positions as there is room for.
  const int n_shared = s.n_head / s.n_kv_head, n_part = (n_shared + kQueriesAtOnce - 1) / kQueriesAtOnce;
  heads_at_once = (n_shared + n_part - 1) / n_part;
  positions_at_once = kQueriesAtOnce / heads_at_once;
  scratch_width = rounded_up(std::max({widest, angle_stride, sized(s.head_dim)}), kFloatLanes);
}

void TransformerModel::check(const TransformerShape& s) {
  within("the vocabulary's size", s.vocab_size, 256, static_cast<int>(kVocabMax));
  within("the width", s.dim, 1, kFanInMax);
  within("the number of layers", s.n_layer, 1, kLayersMax);
  within("the number of heads", s.n_head, 1, kHeadsMax);
  within("the number of heads of keys", s.n_kv_head, 1, kHeadsMax);
  within("a head's width", s.head_dim, 2, kHeadDimMax);
  within("the MLP's width", s.mlp, 1, kFanInMax);
  within("the window", s.window, kWindowMin, kWindowMax);
  within("the number of sinks", s.sinks, 0, kSinksMax);
  within("the norms' epsilon", s.norm_eps, kScaleMin, 1.0f);
  within("the scores' scale", s.score_scale, 9.5367431640625e-07f, 1024.0f);  // 2^-20
  within("the logits' scale", s.logit_scale, 0.0009765625f, 65536.0f);        // 2^-10
  if (s.n_head % s.n_kv_head) refuse("the number of heads is no multiple of that of heads of keys");
  if (s.head_dim % 2) refuse("a head's width is odd");
  within("the heads' width", s.n_head * s.head_dim, 1, kFanInMax);
  check_layers("a layer without rotation", s.no_rotary, s.n_layer);
  check_options(s);
  const std::uint64_t table = std::uint64_t{sized(s.vocab_size) + sized(s.n_position)} * sized(s.dim);
  if (2 * table + std::uint64_t{layer_weights(s)} * sized(s.n_layer) > 2 * kWeightsMax)
    refuse("the model has too many weights");
}

std::size_t TransformerModel::memory_nbytes(const TransformerShape& s) {
  check(s);
  const std::size_t n_qkv = sized(s.n_head + 2 * s.n_kv_head) * sized(s.head_dim);
  const std::size_t n_norm = s.layer_norm || (s.pre_norm && s.post_norm) ? 4 : 2;
  const std::size_t layer = linear_nbytes(n_qkv, s.dim, s.qkv_bias) +
                            linear_nbytes(sized(s.dim), s.n_head * s.head_dim, s.out_bias) +
                            linear_nbytes((s.gated ? 2 : 1) * sized(padded_floats(s.mlp)), s.dim, s.mlp_bias) +
                            linear_nbytes(sized(s.dim), s.mlp, s.mlp_bias) +
                            n_norm * table_nbytes<float>(sized(padded_floats(s.dim))) +
                            2 * table_nbytes<float>(sized(padded_floats(s.qk_norm_whole ? s.n_head * s.head_dim : s.head_dim)));
  const std::size_t v = sized(s.vocab_size);
  return sized(s.n_layer) * layer + linear_nbytes(v + 2, s.dim, true) + (s.tied ? 0 : linear_nbytes(v, s.dim, true)) +
         (s.n_position ? linear_nbytes(sized(s.n_position), s.dim, false) : 0) +
         (s.sliding.empty() ? 1 : 2) * table_nbytes<double>(sized(s.head_dim) * 22) + sizeof(TransformerModel);
}

std::size_t TransformerModel::session_memory_nbytes(const TransformerShape& s, int n_stream, bool runs) {
  check(s);
  within("the number of streams", n_stream, 1, kSessionStreamMax);
  const TransformerSizes z(s, n_stream);
  const std::size_t slots = z.n_head * z.n_slot;
  const std::size_t held = table_nbytes<std::int8_t>(slots * sized(key_width(s.head_dim))) +
                           table_nbytes<std::int8_t>(slots * sized(value_width(s.head_dim))) +
                           3 * table_nbytes<float>(slots);
  const std::size_t rows = sized(runs ? z.trunk_rows : std::max(n_stream, z.restart_rows)), head = sized(runs ? z.head_rows : n_stream);
  const std::size_t trunk = (has_side(s) ? 2 : 1) * table_nbytes<float>(rows * z.x_stride) + table_nbytes<std::uint8_t>(rows * z.u_stride) +
                            table_nbytes<float>(rows * z.y_stride) + table_nbytes<float>(rows * z.attended_stride) +
                            2 * table_nbytes<std::uint8_t>(rows * z.query_stride) +
                            2 * table_nbytes<float>(rows * sized(s.n_head)) +
                            (s.sliding.empty() ? 1 : 2) * table_nbytes<float>(rows * z.angle_stride) +
                            2 * rows * sizeof(float) + sized(n_stream) * sized(s.half()) * sizeof(std::uint32_t);
  const std::size_t width = rounded_up(sized(s.vocab_size), kPanel);
  const std::size_t logits = table_nbytes<std::uint32_t>(head * width) +
                             table_nbytes<std::uint64_t>(head * (width / kPanel + 1)) + 2 * head * kMaxLanes * sizeof(std::int32_t);
  const std::size_t scratch = 2 * (table_nbytes<float>(z.scratch_width) * 4 + table_nbytes<std::int32_t>(kQueriesAtOnce * z.n_score) +
                                   2 * table_nbytes<std::uint8_t>(kQueriesAtOnce * z.n_score) + 10 * z.n_score);
  return held + trunk + logits + scratch + sizeof(TransformerSession);
}

void TransformerModel::pack(Linear& linear, const FloatLinearView& view, int n_part, int n_lane) const {
  const std::size_t part = view.n / sized(n_part), padded_part = rounded_up(part, sized(n_lane));
  PackedLinear& packed = linear.packed;
  packed.n = static_cast<int>(padded_part * sized(n_part));
  packed.n_panel = (packed.n + kPanel - 1) / kPanel;
  packed.n_quad = static_cast<int>(rounded_up((view.k + kQuad - 1) / kQuad, sized(kernels_.quad_unit)));
  packed.shift = 1;
  packed.multiplier = nullptr;
  const std::size_t n_row = sized(packed.n_panel) * kPanel;
  const std::size_t panel_nbytes = sized(packed.n_quad) * kPanel * kQuad;
  linear.weight = Table<std::int8_t>(sized(packed.n_panel) * panel_nbytes);
  linear.bias = Table<std::int32_t>(n_row);
  linear.scale = Table<float>(n_row);
  if (view.bias) linear.float_bias = Table<float>(n_row);
  const std::size_t n_whole = view.k / kQuad, rest = view.k % kQuad;
  for (std::size_t i = 0; i < view.n; ++i) {
    const std::size_t row = i / part * padded_part + i % part;
    const std::int8_t* from = view.weight + i * view.k;
    std::int8_t* to = linear.weight.data() + row / kPanel * panel_nbytes + row % kPanel * kQuad;
    linear.bias[row] = -kernels_.offset * std::accumulate(from, from + view.k, std::int32_t{0});
    linear.scale[row] = view.scale[i];
    if (view.bias) linear.float_bias[row] = view.bias[i];
    for (std::size_t q = 0; q < n_whole; ++q, from += kQuad, to += kPanel * kQuad) std::memcpy(to, from, kQuad);
    std::copy_n(from, rest, to);
  }
  packed.weight = linear.weight.data();
  packed.bias = linear.bias.data();
  packed.scale = linear.scale.data();
  packed.float_bias = view.bias ? linear.float_bias.data() : nullptr;
}

TransformerModel::TransformerModel(const TransformerShape& shape, const std::vector<FloatLinearView>& tensors,
                                   const std::vector<VectorView>& vectors, const double* rotary,
                                   const std::int32_t* exp2_coarse, const std::int32_t* exp2_fine, const char* isa)
    : shape_(shape), kernels_(chosen_kernels(isa)), own_(transformer_kernels(kernels_.isa)), tables_() {
  const FloatControl control;
  check(shape);
  set_exp2(tables_, exp2_coarse, exp2_fine);
  const int v = shape.vocab_size, d = shape.dim, e = shape.head_dim, attended = shape.n_head * e;
  const std::size_t n_layer = sized(shape.n_layer);
  const bool layer_norm = shape.layer_norm;
  const std::size_t n_before = layer_norm ? 2 : 1, n_norm = 2 * ((shape.pre_norm ? n_before : 0) + (shape.post_norm ? 1 : 0));
  if (tensors.size() != 2 + 4 * n_layer + (shape.n_position ? 1 : 0)) refuse("not as many tensors as the model has");
  if (vectors.size() != n_before + n_layer * (n_norm + (shape.qk_norm ? 2 : 0))) refuse("not as many vectors as the model has");
  // All is checked before anything is allocated.
  const FloatLinearView* view = tensors.data();
  lmcodec::check(*view++, v + 2, d, false);
  if (shape.n_position) lmcodec::check(*view++, shape.n_position, d, false);
  for (std::size_t i = 0; i < n_layer; ++i) {
    lmcodec::check(*view++, (shape.n_head + 2 * shape.n_kv_head) * e, d, shape.qkv_bias);
    lmcodec::check(*view++, d, attended, shape.out_bias);
    lmcodec::check(*view++, (shape.gated ? 2 : 1) * shape.mlp, d, shape.mlp_bias);
    lmcodec::check(*view++, d, shape.mlp, shape.mlp_bias);
  }
  lmcodec::check(*view, v, d, true, shape.tied);
  check_angles(rotary, e / 2);
  powers_ = position_powers(rotary, e / 2);
  if (!shape.sliding.empty()) {
    check_angles(rotary + e, e / 2);
    sliding_powers_ = position_powers(rotary + e, e / 2);
  }

  view = tensors.data();
  const VectorView* vector = vectors.data();
  pack(embed_, *view++);
  if (shape.n_position) pack(position_, *view++);
  layers_.resize(n_layer);
  const int n_query = shape.qk_norm_whole ? attended : e, n_key = shape.qk_norm_whole ? shape.n_kv_head * e : e;
  for (std::size_t i = 0; i < n_layer; ++i) {
    Layer& layer = layers_[i];
    if (shape.pre_norm) layer.attention_norm = padded(*vector++, d);
    if (layer_norm) layer.attention_norm_bias = padded(*vector++, d);
    if (shape.qk_norm) {
      layer.q_norm = padded(*vector++, n_query);
      layer.k_norm = padded(*vector++, n_key);
    }
    if (shape.post_norm) layer.post_attention_norm = padded(*vector++, d);
    if (shape.pre_norm) layer.mlp_norm = padded(*vector++, d);
    if (layer_norm) layer.mlp_norm_bias = padded(*vector++, d);
    if (shape.post_norm) layer.post_mlp_norm = padded(*vector++, d);
    layer.sliding = std::binary_search(shape.sliding.begin(), shape.sliding.end(), static_cast<int>(i));
    layer.rotary = !std::binary_search(shape.no_rotary.begin(), shape.no_rotary.end(), static_cast<int>(i));
    pack(layer.qkv, *view++);
    pack(layer.out, *view++);
    pack(layer.gate_up, *view++, shape.gated ? 2 : 1, kFloatLanes);
    pack(layer.down, *view++);
  }
  norm_ = padded(*vector++, d);
  if (layer_norm) norm_bias_ = padded(*vector++, d);
  if (!shape.tied) {
    pack(head_, *view);
    return;
  }
  head_.packed = embed_.packed;
  head_.packed.n = v;
  head_.packed.n_panel = (v + kPanel - 1) / kPanel;
  head_.float_bias = Table<float>(sized(head_.packed.n_panel) * kPanel);
  std::copy_n(view->bias, v, head_.float_bias.data());
  head_.packed.float_bias = head_.float_bias.data();
}

std::unique_ptr<LmSession> TransformerModel::session(int n_stream, const SessionOptions& options) const {
  return std::make_unique<TransformerSession>(*this, n_stream, options);
}

TransformerSession::TransformerSession(const TransformerModel& model, int n_stream, const SessionOptions& options,
                                       bool keep_logits)
    : model_(model),
      n_stream_(within("the number of streams", n_stream, 1, kSessionStreamMax)),
      timed_(options.timed),
      cancel_(options.cancel),
      sizes_(model.shape_, n_stream),
      taken_(sized(n_stream)),
      recent_(sized(n_stream) * sized(model.shape_.half())),
      key_(sizes_.n_head * sizes_.n_slot * sized(key_width(model.shape_.head_dim))),
      value_(sizes_.n_head * sizes_.n_slot * sized(value_width(model.shape_.head_dim))),
      key_sum_(sizes_.n_head * sizes_.n_slot),
      key_scale_(sizes_.n_head * sizes_.n_slot),
      value_scale_(sizes_.n_head * sizes_.n_slot),
      far_angle_(sizes_.angle_stride),
      far_sliding_angle_(sizes_.angle_stride),
      frequencies_(model.kernels_, model.tables_, model.n_token(), keep_logits),
      helper_(options.help == Help::kLent ? std::make_unique<Helper>(Helper::Lent())
                                          : with_thread<Helper>(options.help == Help::kThread)) {
  const TransformerShape& s = model.shape_;
  for (Scratch& scratch : scratch_) {
    scratch.values = Table<float>(sizes_.scratch_width);
    scratch.squares = Table<float>(sizes_.scratch_width);
    scratch.head = Table<float>(sized(padded_floats(s.qk_norm_whole ? s.n_head * s.head_dim : s.head_dim)));
    scratch.angles = Table<double>(2 * sized(s.head_dim));
    scratch.code = Table<std::uint8_t>(sizes_.scratch_width);
    scratch.query = Table<std::uint8_t>(sized(kQueriesAtOnce * key_width(s.head_dim)));
    scratch.score = Table<std::int32_t>(kQueriesAtOnce * sizes_.n_score);
    scratch.weighted = Table<float>(sizes_.n_score);
    scratch.share = Table<std::uint16_t>(sizes_.n_score);
    scratch.mean = Table<std::int32_t>(sized(kQueriesAtOnce * value_width(s.head_dim)));
    scratch.low = Table<std::uint8_t>(kQueriesAtOnce * sizes_.n_score);
    scratch.high = Table<std::uint8_t>(kQueriesAtOnce * sizes_.n_score);
    scratch.bits = Table<std::uint8_t>(kQueriesAtOnce * (sizes_.n_score / kSlots + 1));
    scratch.place.resize(2 * (sizes_.n_score / kSlots + 1));
  }
  const FloatControl control;
  model.own_.angles(model.powers_.data(), s.head_dim / 2, static_cast<std::uint32_t>(s.window), scratch_[0].angles.data(),
                    far_angle_.data());
  if (!s.sliding.empty())
    model.own_.angles(model.sliding_powers_.data(), s.head_dim / 2, static_cast<std::uint32_t>(s.sliding_window),
                      scratch_[0].angles.data(), far_sliding_angle_.data());
  reserve_trunk(std::max(n_stream, sizes_.restart_rows));
  reserve_head(n_stream);
}

void TransformerSession::reserve_trunk(int n_row) {
  if (n_row <= trunk_rows_) return;
  const std::size_t n = sized(n_row), n_head = sized(model_.shape_.n_head);
  clear_table(x_, n * sizes_.x_stride);
  clear_table(codes_, n * sizes_.u_stride);
  clear_table(row_scale_, n);
  clear_table(y_, n * sizes_.y_stride);
  clear_table(attended_, n * sizes_.attended_stride);
  clear_table(near_, n * sizes_.query_stride);
  clear_table(far_, n * sizes_.query_stride);
  clear_table(near_scale_, n * n_head);
  clear_table(far_scale_, n * n_head);
  clear_table(angle_, n * sizes_.angle_stride);
  if (!model_.shape_.sliding.empty()) clear_table(sliding_angle_, n * sizes_.angle_stride);
  if (has_side(model_.shape_)) clear_table(side_, n * sizes_.x_stride);
  position_.resize(n);
  trunk_rows_ = n_row;
}

void TransformerSession::reserve_head(int n_row) {
  if (n_row <= head_rows_) return;
  frequencies_.reserve(n_row);
  max_.resize(sized(n_row) * kMaxLanes * (helper_ ? 2 : 1));
  head_rows_ = n_row;
}

void TransformerSession::begin(int stream, bool) { taken_[sized(stream)] = 0; }

void TransformerSession::require_room(std::size_t n_step) const {
  for (std::uint32_t n : taken_)
    if (n_step > kPositionMax - n) refuse("a stream has more than " + std::to_string(kPositionMax) + " tokens");
}

void TransformerSession::step(const std::uint32_t* tokens) {
  require_room(1);
  restart();
  trunk(tokens, n_stream_);
  head(0, n_stream_);
}

void TransformerSession::run(const std::uint32_t* tokens, std::size_t n_step, const Rows& rows) {
  require_room(n_step);
  const std::size_t b = sized(n_stream_), piece = sized(sizes_.trunk_rows) / b;
  const std::size_t n_most = std::min(piece, n_step) * b;
  reserve_trunk(static_cast<int>(n_most));
  reserve_head(static_cast<int>(std::min(sized(sizes_.head_rows), n_most)));
  std::size_t n = 0;
  for (std::size_t t = 0; t < n_step; t += n) {
    n = std::min({piece, n_step - t, restart()});
    const int n_row = static_cast<int>(n * b);
    trunk(tokens + t * b, n_row);
    for (int row = 0; row < n_row; row += sizes_.head_rows) {
      const int n_head = std::min(sizes_.head_rows, n_row - row);
      head(row, n_head);
      rows(t * b + sized(row), n_head);
    }
  }
}

void TransformerSession::pass(float* x, std::size_t n_step, const std::vector<Seen>& seen) {
  const TransformerShape& s = model_.shape_;
  require_room(n_step);
  for (std::uint32_t n : taken_)
    if (s.n_position && n_step > sized(s.n_position) - std::min(sized(s.n_position), sized(n)))
      refuse("a pass over values goes no further than the model's positions");
  if (seen.size() != 4 * sized(s.n_layer) + 1) refuse("not as many inputs as the model has products");
  for (std::size_t i = 0; i < seen.size(); ++i)
    if (seen[i].k != sized(i % 4 == 1 ? s.n_head * s.head_dim : i % 4 == 3 ? s.mlp : s.dim))
      refuse("an input has not the width of the product's");
  Pass pass = {x, seen, 0};
  const std::size_t b = sized(n_stream_), piece = sized(sizes_.trunk_rows) / b;
  reserve_trunk(static_cast<int>(std::min(piece, n_step) * b));
  const std::vector<std::uint32_t> tokens(sized(trunk_rows_));
  pass_ = &pass;
  try {
    for (std::size_t t = 0; t < n_step; t += piece) {
      const std::size_t n_row = std::min(piece, n_step - t) * b;
      pass.next = 0;
      trunk(tokens.data(), static_cast<int>(n_row));
      pass.x += n_row * sized(s.dim);
    }
  } catch (...) {
    pass_ = nullptr;
    throw;
  }
  pass_ = nullptr;
}

// The next product's input.
void TransformerSession::see(int n_row) {
  Seen& to = pass_->seen[pass_->next++];
  const int offset = model_.kernels_.offset;
  for (int row = 0; row < n_row; ++row, to.code += to.k) {
    const std::uint8_t* const from = codes_.data() + sized(row) * sizes_.u_stride;
    for (std::size_t k = 0; k < to.k; ++k) to.code[k] = static_cast<std::int8_t>(from[k] - offset);
    *to.scale++ = row_scale_[sized(row)];
  }
}

template <typename Work>
void TransformerSession::share(int n, const Work& work) {
  const auto some = [&](int first, int last, bool by_helper) {
    const FloatControl control;
    for (int i = first; i < last; ++i) work(i, scratch_[by_helper ? 1 : 0]);
  };
  if (helper_) helper_->share(n, some);
  else some(0, n, false);
}

void TransformerSession::product(int first_row, int n_row, const PackedLinear& linear, Finish finish, void* out,
                                 std::size_t stride, std::int32_t* max, std::int32_t* helper_max) {
  if (pass_) see(n_row);
  const std::uint8_t* const u = codes_.data() + sized(first_row) * sizes_.u_stride;
  const auto some = [&](int first, int last, bool by_helper) {
    const FloatControl control;
    const Finished to = {finish, static_cast<float*>(out) + sized(first) * kPanel, stride, by_helper ? helper_max : max,
                         row_scale_.data() + first_row, model_.shape_.logit_scale};
    model_.kernels_.product(u, sizes_.u_stride, n_row, panels_of(linear, first, last), to);
  };
  if (helper_) helper_->share(linear.n_panel, some);
  else some(0, linear.n_panel, false);
}

void TransformerSession::normalise(int n_row, const Table<float>& x, const Table<float>& weight, const Table<float>& bias) {
  const TransformerShape& s = model_.shape_;
  share(n_row, [&](int row, Scratch& scratch) {
    const float* const from = x.data() + sized(row) * sizes_.x_stride;
    float* const to = scratch.values.data();
    if (weight.empty()) std::copy_n(from, padded_floats(s.dim), to);
    else if (s.layer_norm)
      model_.own_.layer_normalise(from, weight.data(), bias.data(), s.dim, s.norm_eps, scratch.squares.data(), to);
    else model_.own_.normalise(from, weight.data(), s.dim, s.norm_eps, scratch.squares.data(), to);
    model_.own_.quantise(scratch.values.data(), s.dim, model_.kernels_.offset, codes_.data() + sized(row) * sizes_.u_stride,
                         row_scale_.data() + row);
  });
}

void TransformerSession::add(int n_row, const PackedLinear& linear, const Table<float>& weight) {
  const TransformerShape& s = model_.shape_;
  if (weight.empty()) {
    product(0, n_row, linear, Finish::kFloatAdd, x_.data(), sizes_.x_stride);
    return;
  }
  product(0, n_row, linear, Finish::kFloat, side_.data(), sizes_.x_stride);
  share(n_row, [&](int row, Scratch& scratch) {
    float* const y = side_.data() + sized(row) * sizes_.x_stride;
    model_.own_.normalise(y, weight.data(), s.dim, s.norm_eps, scratch.squares.data(), y);
    model_.own_.add(y, s.dim, x_.data() + sized(row) * sizes_.x_stride);
  });
}

void TransformerSession::normalise_heads(float* y, const Table<float>& weight, int n, Scratch& scratch) {
  float* const x = scratch.head.data();
  std::copy_n(y, n, x);
  std::fill(x + n, x + padded_floats(n), 0.0f);
  model_.own_.normalise(x, weight.data(), n, model_.shape_.norm_eps, scratch.squares.data(), x);
  std::copy_n(x, n, y);
}

// Queries, keys and values of a row: codes.
void TransformerSession::prepare(int i, int row, Scratch& scratch) {
  const TransformerShape& s = model_.shape_;
  const TransformerModel::Layer& layer = model_.layers_[sized(i)];
  const TransformerKernels& own = model_.own_;
  const int e = s.head_dim, width = key_width(e), v_width = value_width(e);
  const std::uint32_t position = position_[sized(row)];
  const Table<float>& angles = layer.sliding ? sliding_angle_ : angle_;
  const Table<float>& far_angles = layer.sliding ? far_sliding_angle_ : far_angle_;
  const float* const angle = layer.rotary ? angles.data() + sized(row) * sizes_.angle_stride : nullptr;
  const bool far = (layer.sliding ? s.sliding_sinks : s.sinks) &&
                   position >= static_cast<std::uint32_t>(layer.sliding ? s.sliding_window : s.window);
  float* const y = y_.data() + sized(row) * sizes_.y_stride;
  if (s.qk_norm) {
    // All heads together, or each by itself.
    const int n_query = s.n_head * e, n_key = s.n_kv_head * e;
    const int query_step = s.qk_norm_whole ? n_query : e, key_step = s.qk_norm_whole ? n_key : e;
    for (int at = 0; at < n_query; at += query_step) normalise_heads(y + at, layer.q_norm, query_step, scratch);
    for (int at = 0; at < n_key; at += key_step) normalise_heads(y + n_query + at, layer.k_norm, key_step, scratch);
  }
  const float* from = y;
  for (int h = 0; h < s.n_head; ++h, from += e) {
    const std::size_t at = sized(row) * sized(s.n_head) + sized(h);
    own.turn(from, e, angle, scratch.values.data(), own.query_offset, near_.data() + at * sized(width),
             near_scale_.data() + at);
    if (far)
      own.turn(from, e, layer.rotary ? far_angles.data() : nullptr, scratch.values.data(), own.query_offset,
               far_.data() + at * sized(width), far_scale_.data() + at);
  }
  const std::size_t slots[2] = {sized(kSlots) + position % static_cast<std::uint32_t>(sizes_.ring), position};
  const int n_slot = position < static_cast<std::uint32_t>(s.sinks) ? 2 : 1;
  for (int part = 0; part < 2; ++part)
    for (int g = 0; g < s.n_kv_head; ++g, from += e) {
      const std::size_t first = head_at(i, stream_of(row), g) * sizes_.n_slot;
      const bool is_key = part == 0;
      float scale;
      if (is_key) own.turn(from, e, angle, scratch.values.data(), 0, scratch.code.data(), &scale);
      else own.codes(from, e, 0, scratch.code.data(), &scale);
      const std::int8_t* const code = reinterpret_cast<const std::int8_t*>(scratch.code.data());
      for (int k = 0; k < n_slot; ++k) {
        const std::size_t slot = first + slots[k];
        if (is_key) {
          std::int8_t* to = key_.data() + slot / kSlots * kSlots * sized(width) + slot % kSlots * kQuad;
          for (int q = 0; q < width; q += kQuad, to += kSlots * kQuad) std::memcpy(to, code + q, kQuad);
          key_scale_[slot] = scale;
          key_sum_[slot] = -own.query_offset * std::accumulate(code, code + width, std::int32_t{0});
        } else {
          std::int8_t* to = value_.data() + slot / kQuad * kQuad * sized(v_width) + slot % kQuad;
          for (int q = 0; q < v_width; ++q) to[q * kQuad] = code[q];
          value_scale_[slot] = scale;
        }
      }
    }
}

// Attention of the heads that share keys, of some positions. Tasks that look at the same keys follow one another.
void TransformerSession::attend(int i, int task, int n_row, Scratch& scratch) {
  const TransformerShape& s = model_.shape_;
  const int n_step = n_row / n_lane_, n_task = n_attention_task(n_step);
  const int g = task / n_task % s.n_kv_head, lane = task / n_task / s.n_kv_head, stream = first_stream_ + lane;
  int step = task % n_task * sizes_.positions_at_once;
  const int end = std::min(step + sizes_.positions_at_once, n_step);
  const bool slides = model_.layers_[sized(i)].sliding;
  const Sight sight = {slides ? s.sliding_window : s.window, slides ? s.sliding_sinks : s.sinks};
  const std::size_t first = head_at(i, stream, g) * sizes_.n_slot;
  const HeldHead held = {key_.data() + first * sized(key_width(s.head_dim)), key_sum_.data() + first,
                         key_scale_.data() + first, value_.data() + first * sized(value_width(s.head_dim)), value_scale_.data() + first,
                         n_task == 1 ? static_cast<std::ptrdiff_t>(sizes_.n_slot) : 0};
  // Whether sinks that have left the window are seen.
  const auto has_far = [&](int t) {
    return sight.sinks && position_[sized(t * n_lane_ + lane)] >= static_cast<std::uint32_t>(sight.window);
  };
  while (step < end) {
    int stop = step + 1;
    while (stop < end && has_far(stop) == has_far(step)) ++stop;
    attend_some(g, lane, step, stop, has_far(step), sight, held, scratch);
    step = stop;
  }
}

void TransformerSession::attend_some(int g, int lane, int step, int stop, bool has_far, const Sight& sight,
                                     const HeldHead& held, Scratch& scratch) {
  const TransformerShape& s = model_.shape_;
  const int e = s.head_dim, n_head = s.n_head / s.n_kv_head;
  Queries queries;
  queries.head_dim = e;
  queries.score_scale = s.score_scale;
  queries.score_cap = s.score_cap;
  queries.n_range = 0;
  queries.has_far = has_far;
  const std::int64_t begin = position_[sized(step * n_lane_ + lane)], last = begin + stop - step - 1;
  const std::int64_t ring = sizes_.ring;
  const auto oldest = [&sight](std::int64_t position) { return std::max<std::int64_t>(0, position - sight.window + 1); };
  struct Seen {
    std::int64_t slot, first, last;  // positions first to last, the first one's slot
  } seen[kRanges];
  const auto add = [&](std::int64_t slot, std::int64_t from, std::int64_t to) {
    const std::int64_t block = slot / kSlots;
    seen[queries.n_range] = {slot - block * kSlots, from, to};
    queries.range[queries.n_range++] = {static_cast<int>(block),
                                        static_cast<int>((slot + to - from) / kSlots - block + 1)};
  };
  if (has_far) add(0, 0, std::min<std::int64_t>(sight.sinks, oldest(last)) - 1);
  const std::int64_t from = oldest(begin), border = from - from % ring + ring;  // whose slot is the ring's first again
  add(kSlots + from % ring, from, std::min(last, border - 1));
  if (last >= border) add(kSlots, border, last);

  const AttentionScratch parts = {scratch.query.data(), scratch.score.data(), scratch.weighted.data(),
                                  scratch.share.data(), scratch.low.data(), scratch.high.data(), scratch.bits.data(), scratch.place.data(),
                                  scratch.mean.data(), sizes_.n_score};
  for (int h = 0; h < n_head; h += sizes_.heads_at_once) {
    const int n = std::min(sizes_.heads_at_once, n_head - h);
    int q = 0;
    for (int t = step; t < stop; ++t) {
      const std::size_t row = sized(t * n_lane_ + lane);
      const std::int64_t position = begin + t - step;
      for (int k = 0; k < n; ++k, ++q) {
        const int head = g * n_head + h + k;
        const std::size_t at = row * sized(s.n_head) + sized(head), byte = at * sized(key_width(e));
        queries.query[q] = {near_.data() + byte, far_.data() + byte, near_scale_[at], far_scale_[at],
                            attended_.data() + row * sizes_.attended_stride + sized(head * e)};
        for (int r = 0; r < queries.n_range; ++r) {
          const bool far = has_far && r == 0;
          const std::int64_t low = far ? 0 : std::max(oldest(position), seen[r].first);
          const std::int64_t high = std::min(far ? oldest(position) - 1 : position, seen[r].last);
          const std::int64_t by = seen[r].slot - seen[r].first;
          queries.low[r][q] = low <= high ? static_cast<int>(low + by) : 0;
          queries.high[r][q] = low <= high ? static_cast<int>(high + 1 + by) : 0;
        }
      }
    }
    queries.n_query = q;
    model_.own_.attend(queries, held, model_.tables_, parts);
  }
}

std::size_t TransformerSession::restart() {
  const TransformerShape& s = model_.shape_;
  if (!s.n_position) return std::numeric_limits<std::size_t>::max();
  const std::uint32_t half = static_cast<std::uint32_t>(s.half()), all = static_cast<std::uint32_t>(s.n_position);
  std::uint32_t least = all;
  for (int stream = 0; stream < n_stream_; ++stream) {
    const std::uint32_t n = taken_[sized(stream)];
    least = std::min(least, s.room(n));
    if (n < all || n % half) continue;
    const std::uint32_t piece = static_cast<std::uint32_t>(sizes_.restart_rows);
    const std::uint32_t* const tokens = recent_.data() + sized(stream) * half;
    for (std::uint32_t at = 0; at < half; at += piece)
      trunk_of(stream, at, tokens + at, static_cast<int>(std::min(piece, half - at)));
  }
  return least;
}

void TransformerSession::trunk(const std::uint32_t* tokens, int n_row) {
  const TransformerShape& s = model_.shape_;
  first_stream_ = 0;
  n_lane_ = n_stream_;
  for (int row = 0; row < n_row; ++row) {
    const std::size_t stream = sized(row % n_stream_), n = taken_[stream] + sized(row / n_stream_);
    position_[sized(row)] = s.place(static_cast<std::uint32_t>(n));
    if (s.n_position) recent_[stream * sized(s.half()) + n % sized(s.half())] = tokens[row];
  }
  layers(tokens, n_row);
  normalise(n_row, x_, model_.norm_, model_.norm_bias_);
  if (pass_) see(n_row);
  for (int row = 0; pass_ && row < n_row; ++row)
    std::copy_n(x_.data() + sized(row) * sizes_.x_stride, s.dim, pass_->x + sized(row) * sized(s.dim));
  for (std::uint32_t& n : taken_) n += static_cast<std::uint32_t>(n_row / n_stream_);
}

void TransformerSession::trunk_of(int stream, std::uint32_t position, const std::uint32_t* tokens, int n_row) {
  first_stream_ = stream;
  n_lane_ = 1;
  for (int row = 0; row < n_row; ++row) position_[sized(row)] = position + static_cast<std::uint32_t>(row);
  layers(tokens, n_row);
}

void TransformerSession::layers(const std::uint32_t* tokens, int n_row) {
  const TransformerShape& s = model_.shape_;
  const TransformerKernels& own = model_.own_;
  const int offset = model_.kernels_.offset;
  Stopwatch watch(timed_);
  const auto row_of = [&](const PackedLinear& table, std::size_t n, float* to) {
    own.embed(table.weight + n / kPanel * sized(table.n_quad) * (kPanel * kQuad) + n % kPanel * kQuad, s.dim, table.scale[n], to);
  };
  share(n_row, [&](int row, Scratch& scratch) {
    float* const x = x_.data() + sized(row) * sizes_.x_stride;
    row_of(model_.embed_.packed, tokens[row], x);
    if (s.n_position) {
      row_of(model_.position_.packed, position_[sized(row)], scratch.values.data());
      own.add(scratch.values.data(), s.dim, x);
      return;
    }
    own.angles(model_.powers_.data(), s.head_dim / 2, position_[sized(row)], scratch.angles.data(),
               angle_.data() + sized(row) * sizes_.angle_stride);
    if (!s.sliding.empty())
      own.angles(model_.sliding_powers_.data(), s.head_dim / 2, position_[sized(row)], scratch.angles.data(),
                 sliding_angle_.data() + sized(row) * sizes_.angle_stride);
  });
  for (int row = 0; pass_ && row < n_row; ++row)
    std::copy_n(pass_->x + sized(row) * sized(s.dim), s.dim, x_.data() + sized(row) * sizes_.x_stride);
  for (int i = 0; i < s.n_layer; ++i) {
    const TransformerModel::Layer& layer = model_.layers_[sized(i)];
    throw_if_set(cancel_);
    normalise(n_row, x_, layer.attention_norm, layer.attention_norm_bias);
    watch.mark(times_.elements);
    product(0, n_row, layer.qkv.packed, Finish::kFloat, y_.data(), sizes_.y_stride);
    watch.mark(times_.products);
    share(n_row, [&](int row, Scratch& scratch) { prepare(i, row, scratch); });
    watch.mark(times_.elements);
    const double before = times_.elements;
    share(n_lane_ * s.n_kv_head * n_attention_task(n_row / n_lane_),
          [&](int task, Scratch& scratch) { attend(i, task, n_row, scratch); });
    watch.mark(times_.elements);
    attention_seconds_ += times_.elements - before;
    share(n_row, [&](int row, Scratch&) {
      if (s.parallel) std::copy_n(x_.data() + sized(row) * sizes_.x_stride, sizes_.x_stride, side_.data() + sized(row) * sizes_.x_stride);
      own.quantise(attended_.data() + sized(row) * sizes_.attended_stride, s.n_head * s.head_dim, offset,
                   codes_.data() + sized(row) * sizes_.u_stride, row_scale_.data() + row);
    });
    watch.mark(times_.elements);
    add(n_row, layer.out.packed, layer.post_attention_norm);
    watch.mark(times_.products);
    normalise(n_row, s.parallel ? side_ : x_, layer.mlp_norm, layer.mlp_norm_bias);
    watch.mark(times_.elements);
    product(0, n_row, layer.gate_up.packed, Finish::kFloat, y_.data(), sizes_.y_stride);
    watch.mark(times_.products);
    share(n_row, [&](int row, Scratch& scratch) {
      const float* const gates = y_.data() + sized(row) * sizes_.y_stride;
      own.gate(s.activation, gates, s.gated ? gates + padded_floats(s.mlp) : nullptr, s.mlp, scratch.values.data());
      own.quantise(scratch.values.data(), s.mlp, offset, codes_.data() + sized(row) * sizes_.u_stride,
                   row_scale_.data() + row);
    });
    watch.mark(times_.elements);
    add(n_row, layer.down.packed, layer.post_mlp_norm);
    watch.mark(times_.products);
  }
}

void TransformerSession::head(int first, int n_row) {
  throw_if_set(cancel_);
  Stopwatch watch(timed_);
  const std::size_t n_max = sized(n_row) * kMaxLanes;
  std::int32_t* const helper_max = helper_ ? max_.data() + n_max : nullptr;
  std::fill_n(max_.begin(), n_max * (helper_ ? 2 : 1), std::numeric_limits<std::int32_t>::min());
  const float cap = model_.shape_.logit_cap;
  product(first, n_row, model_.head_.packed, cap > 0 ? Finish::kFloat : Finish::kFloatLogits, frequencies_.logits(0), frequencies_.width(),
          max_.data(), helper_max);
  for (std::size_t i = 0; helper_ && i < n_max; ++i) max_[i] = std::max(max_[i], helper_max[i]);
  watch.mark(times_.products);
  share(n_row, [&](int row, Scratch&) {
    std::int32_t* const max = max_.data() + sized(row) * kMaxLanes;
    if (cap > 0) *max = model_.own_.cap_logits(frequencies_.logits(row), model_.shape_.vocab_size, model_.shape_.logit_scale, cap);
    frequencies_.weigh(row, max);
  });
  watch.mark(times_.frequencies);
}

}  // namespace lmcodec
