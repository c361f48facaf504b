#include "recurrent.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>

#include "stopwatch.h"

namespace lmcodec {
namespace {

constexpr int kWeightMax = 63;
constexpr int kBiasMax = 1 << 24;
constexpr int kStateMax = 1 << 26;
constexpr int kFanInMax = 2096;
constexpr int kShiftMin = 12, kShiftMax = 40;
constexpr int kTrunkRows = 256;  // positions of a sequence that pass through the layers at once
constexpr int kHeadRows = 64;    // and through the head: 1.5 MB of logits of 6,144 tokens
constexpr std::size_t kLine = 64;

std::size_t rounded_up(std::size_t n, std::size_t unit) { return (n + unit - 1) / unit * unit; }

// Bytes a row of activations takes: whole lines, an odd number of them, so that rows do not fall into the same few sets
// of a cache.
std::size_t row_stride(std::size_t n) { return rounded_up(n, kLine) | kLine; }

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

int within(const char* name, int value, int low, int high) {
  if (value < low || value > high)
    refuse(std::string(name) + " is " + std::to_string(value) + ", expected " + std::to_string(low) + " to " +
           std::to_string(high));
  return value;
}

void check(const LinearView& view, int n, int k, bool biased, int shift_min) {
  if (view.n != n || view.k != k || (view.bias != nullptr) != biased) refuse("a tensor has not the shape of the network");
  within("a tensor's shift", view.shift, shift_min, kShiftMax);
  const std::int8_t* const end = view.weight + static_cast<std::size_t>(n) * static_cast<std::size_t>(k);
  const auto beyond = [](int w) { return static_cast<unsigned char>(w + kWeightMax) > 2 * kWeightMax; };
  unsigned char any = 0;  // a loop over bytes that compilers turn into one over vectors
  for (const std::int8_t* w = view.weight; w < end; ++w) any |= beyond(*w);
  if (any) within("a weight", *std::find_if(view.weight, end, beyond), -kWeightMax, kWeightMax);
  for (int i = 0; biased && i < n; ++i) within("a bias", view.bias[i], -kBiasMax, kBiasMax);
}

NetworkTables checked_tables(const TableViews& views) {
  NetworkTables tables = {};
  for (int i = 0; i < 255; ++i) {
    tables.decay[i] = static_cast<std::uint16_t>(within("a decay", views.decay[i], 0, 65535));
    tables.input_scale[i] =
        static_cast<std::uint16_t>(within("an input scale", views.input_scale[i], 1, 65536) - 1);
  }
  for (int m = 0; m < 128; ++m)
    if (views.relu2[m] != (m * m + 64) >> 7) refuse("the table of squares is another one");
  for (int i = 0; i < 12288; ++i) tables.rsqrt[i] = within("a reciprocal root", views.rsqrt[i], 1 << 15, 1 << 16);
  set_exp2(tables, views.exp2_coarse, views.exp2_fine);
  tables.norm_scale = within("the norm's scale", views.norm_scale, 1, 65535);
  return tables;
}

// Where the outputs of panels from `first` on go.
void* output_of(int first, const Finished& to) {
  const bool bytes = to.finish == Finish::kClip || to.finish == Finish::kRelu2;
  return static_cast<std::uint8_t*>(to.out) + std::size_t{kPanel} * static_cast<std::size_t>(first) * (bytes ? 1 : 4);
}

}  // namespace

RecurrentModel::Linear RecurrentModel::pack(const LinearView& view, const NetworkKernels& kernels, int offset, int n_part, int n_lane) {
  Linear linear;
  const int part = view.n / n_part;
  const int padded = static_cast<int>(rounded_up(static_cast<std::size_t>(part), static_cast<std::size_t>(n_lane)));
  PackedLinear& packed = linear.packed;
  packed.n = padded * n_part;
  packed.n_panel = (packed.n + kPanel - 1) / kPanel;
  packed.n_quad = static_cast<int>(rounded_up(static_cast<std::size_t>((view.k + kQuad - 1) / kQuad),
                                              static_cast<std::size_t>(kernels.quad_unit)));
  packed.shift = view.shift;
  const std::size_t n_row = static_cast<std::size_t>(packed.n_panel) * kPanel;
  const std::size_t panel_nbytes = static_cast<std::size_t>(packed.n_quad) * kPanel * kQuad;
  linear.weight = Table<std::int8_t>(static_cast<std::size_t>(packed.n_panel) * panel_nbytes);
  linear.bias = Table<std::int32_t>(n_row);
  linear.multiplier = Table<std::int32_t>(n_row);
  const int n_whole = view.k / kQuad, rest = view.k % kQuad;
  for (int i = 0; i < view.n; ++i) {
    const std::size_t row = static_cast<std::size_t>(i / part * padded + i % part);
    const std::int8_t* from = view.weight + static_cast<std::size_t>(i) * static_cast<std::size_t>(view.k);
    std::int8_t* to = linear.weight.data() + row / kPanel * panel_nbytes + row % kPanel * kQuad;
    const std::int32_t sum = std::accumulate(from, from + view.k, std::int32_t{0});
    for (int q = 0; q < n_whole; ++q, from += kQuad, to += kPanel * kQuad) std::memcpy(to, from, kQuad);
    std::copy_n(from, rest, to);
    linear.bias.data()[row] = (view.bias ? view.bias[i] : 0) - offset * sum;
    linear.multiplier.data()[row] = view.multiplier[i];
  }
  packed.weight = linear.weight.data();
  packed.bias = linear.bias.data();
  packed.multiplier = linear.multiplier.data();
  return linear;
}

RecurrentModel::RecurrentModel(const RecurrentShape& shape, const std::vector<LinearView>& tensors, const std::int32_t* start,
                 const TableViews& tables, const char* isa)
    : shape_(shape), kernels_(chosen_kernels(isa)), tables_(checked_tables(tables)) {
  const int v = within("the vocabulary's size", shape.vocab_size, 256, 65536);
  const int d = within("the width", shape.dim, 1, kFanInMax);
  const int n_layer = within("the number of layers", shape.n_layer, 1, 64);
  const int r = within("the number of channels", shape.recurrent, 1, kFanInMax);
  const int m = within("the MLP's width", shape.mlp, 0, kFanInMax);
  if (tensors.size() != 2 + static_cast<std::size_t>(n_layer) * (m ? 4 : 2)) refuse("not as many tensors as the network has");
  lanes_ = rounded_up(static_cast<std::size_t>(r), kRecurLanes);

  const LinearView* view = tensors.data();
  check(*view, v + 2, d, false, 0);
  const std::size_t n_embed = n_input() * static_cast<std::size_t>(d);
  embed_ = Table<std::int8_t>(n_embed);
  std::memcpy(embed_.data(), view->weight, n_embed);
  embed_multiplier_.assign(view->multiplier, view->multiplier + n_input());
  embed_shift_ = view->shift;
  ++view;
  const int offset = kernels_.offset;
  for (int i = 0; i < n_layer; ++i) {
    check(view[0], 3 * r, d, true, kShiftMin);
    check(view[1], d, r, false, kShiftMin);
    layers_.emplace_back();
    Layer& layer = layers_.back();
    layer.into = pack(view[0], kernels_, offset, 3, kRecurLanes);
    layer.out = pack(view[1], kernels_, offset);
    view += 2;
    if (!m) continue;
    check(view[0], m, d, true, kShiftMin);
    check(view[1], d, m, false, kShiftMin);
    layer.up = pack(view[0], kernels_, offset);
    layer.down = pack(view[1], kernels_, 0);  // squares are not negative: no offset
    view += 2;
  }
  check(*view, v, d, true, kShiftMin);
  head_ = pack(*view, kernels_, offset);
  start_.assign(start, start + 2 * static_cast<std::size_t>(n_layer) * static_cast<std::size_t>(r));
  for (std::int32_t h : start_) within("a start state", h, -kStateMax, kStateMax);
}

std::unique_ptr<LmSession> RecurrentModel::session(int n_stream, const SessionOptions& options) const {
  return std::make_unique<RecurrentSession>(*this, n_stream, options);
}

RecurrentSession::RecurrentSession(const RecurrentModel& model, int n_stream, const SessionOptions& options, bool keep_logits)
    : model_(model),
      n_stream_(within("the number of streams", n_stream, 1, kSessionStreamMax)),
      timed_(options.timed),
      x_stride_(rounded_up(static_cast<std::size_t>(model.shape_.dim), kPanel)),
      u_stride_(row_stride(std::max(x_stride_, model.lanes_))),
      gates_stride_(rounded_up(3 * model.lanes_, kPanel)),
      hidden_stride_(model.shape_.mlp ? row_stride(static_cast<std::size_t>(model.shape_.mlp)) : 0),
      cancel_(options.cancel),
      state_(static_cast<std::size_t>(model.shape_.n_layer * n_stream) * model.lanes_),
      frequencies_(model.kernels_, model.tables_, model.n_token(), keep_logits),
      helper_(options.help == Help::kLent ? std::make_unique<Helper>(Helper::Lent())
                                          : with_thread<Helper>(options.help == Help::kThread)) {
  reserve_trunk(n_stream);
  reserve_head(n_stream);
  for (int b = 0; b < n_stream; ++b) begin(b, false);
}

void RecurrentSession::reserve_trunk(int n_row) {
  if (n_row <= trunk_rows_) return;
  const std::size_t n = static_cast<std::size_t>(n_row);
  x_ = Table<std::int32_t>(n * x_stride_);
  activations_ = Table<std::uint8_t>(n * u_stride_);
  gates_ = Table<std::int8_t>(n * gates_stride_);
  hidden_ = Table<std::uint8_t>(n * hidden_stride_);
  trunk_rows_ = n_row;
}

void RecurrentSession::reserve_head(int n_row) {
  if (n_row <= head_rows_) return;
  frequencies_.reserve(n_row);
  max_.resize(static_cast<std::size_t>(n_row) * kMaxLanes * (helper_ ? 2 : 1));
  head_rows_ = n_row;
}

void RecurrentSession::begin(int stream, bool cut) {
  const std::size_t r = static_cast<std::size_t>(model_.shape_.recurrent);
  for (int i = 0; i < model_.shape_.n_layer; ++i) {
    const std::size_t at = static_cast<std::size_t>((cut ? model_.shape_.n_layer : 0) + i) * r;
    std::memcpy(state(i, stream), model_.start_.data() + at, r * sizeof(std::int32_t));
  }
}

bool RecurrentSession::save(int stream, std::vector<std::int32_t>& to) {
  to.clear();
  for (int i = 0; i < model_.shape_.n_layer; ++i) {
    const std::int32_t* const from = state(i, stream);
    to.insert(to.end(), from, from + model_.shape_.recurrent);
  }
  return true;
}

void RecurrentSession::restore(int stream, const std::vector<std::int32_t>& from) {
  const std::size_t r = static_cast<std::size_t>(model_.shape_.recurrent);
  if (from.size() != r * static_cast<std::size_t>(model_.shape_.n_layer)) throw std::logic_error("a state of another model");
  for (int i = 0; i < model_.shape_.n_layer; ++i)
    std::memcpy(state(i, stream), from.data() + static_cast<std::size_t>(i) * r, r * sizeof(std::int32_t));
}

void RecurrentSession::step(const std::uint32_t* tokens) {
  trunk(tokens, n_stream_);
  head(0, n_stream_);
}

void RecurrentSession::run(const std::uint32_t* tokens, std::size_t n_step, const Rows& rows) {
  const std::size_t b = static_cast<std::size_t>(n_stream_);
  const std::size_t piece = std::max<std::size_t>(1, kTrunkRows / b);
  const int head_piece = std::max(kHeadRows, n_stream_);
  reserve_trunk(static_cast<int>(std::min(piece, n_step) * b));
  reserve_head(static_cast<int>(std::min<std::size_t>(static_cast<std::size_t>(head_piece), std::min(piece, n_step) * b)));
  for (std::size_t t = 0; t < n_step; t += piece) {
    const int n_row = static_cast<int>(std::min(piece, n_step - t) * b);
    trunk(tokens + t * b, n_row);
    for (int row = 0; row < n_row; row += head_piece) {
      const int n = std::min(head_piece, n_row - row);
      head(row, n);
      rows(t * b + static_cast<std::size_t>(row), n);
    }
  }
}

void RecurrentSession::normalise(int n_row) {
  const int n = static_cast<int>(rounded_up(static_cast<std::size_t>(model_.shape_.dim), 16));
  for (int row = 0; row < n_row; ++row)
    model_.kernels_.normalise(x_.data() + static_cast<std::size_t>(row) * x_stride_, n, model_.shape_.dim,
                                model_.tables_, activations_.data() + static_cast<std::size_t>(row) * u_stride_);
}

void RecurrentSession::product(const std::uint8_t* u, std::size_t stride, int n_row, const PackedLinear& linear,
                      const Finished& to, std::int32_t* helper_max) {
  const auto some = [&](int first, int last, bool by_helper) {
    const Finished part = {to.finish, output_of(first, to), to.stride, by_helper ? helper_max : to.max};
    model_.kernels_.product(u, stride, n_row, panels_of(linear, first, last), part);
  };
  if (helper_) helper_->share(linear.n_panel, some);
  else some(0, linear.n_panel, false);
}

// Rows are in time order: row % B is the stream.
void RecurrentSession::trunk(const std::uint32_t* tokens, int n_row) {
  const NetworkKernels& kernels = model_.kernels_;
  const int dim = model_.shape_.dim;
  const std::size_t lanes = model_.lanes_;
  Stopwatch watch(timed_);
  for (int row = 0; row < n_row; ++row)
    kernels.embed(model_.embed_.data() + static_cast<std::size_t>(tokens[row]) * static_cast<std::size_t>(dim), dim,
                  model_.embed_multiplier_[tokens[row]], model_.embed_shift_,
                  x_.data() + static_cast<std::size_t>(row) * x_stride_);
  for (int i = 0; i < model_.shape_.n_layer; ++i) {
    const RecurrentModel::Layer& layer = model_.layers_[static_cast<std::size_t>(i)];
    throw_if_set(cancel_);
    normalise(n_row);
    watch.mark(times_.elements);
    product(activations_.data(), u_stride_, n_row, layer.into.packed,
            {Finish::kClip, gates_.data(), gates_stride_, nullptr});
    watch.mark(times_.products);
    for (int row = 0; row < n_row; ++row) {
      const std::int8_t* z = gates_.data() + static_cast<std::size_t>(row) * gates_stride_;
      kernels.recur(z, z + lanes, z + 2 * lanes, static_cast<int>(lanes), model_.tables_, state(i, row % n_stream_),
                    activations_.data() + static_cast<std::size_t>(row) * u_stride_);
    }
    watch.mark(times_.elements);
    const Finished add = {Finish::kAdd, x_.data(), x_stride_, nullptr};
    product(activations_.data(), u_stride_, n_row, layer.out.packed, add);
    watch.mark(times_.products);
    if (!model_.shape_.mlp) continue;
    normalise(n_row);
    watch.mark(times_.elements);
    product(activations_.data(), u_stride_, n_row, layer.up.packed,
            {Finish::kRelu2, hidden_.data(), hidden_stride_, nullptr});
    product(hidden_.data(), hidden_stride_, n_row, layer.down.packed, add);
    watch.mark(times_.products);
  }
  normalise(n_row);
  watch.mark(times_.elements);
}

void RecurrentSession::head(int first, int n_row) {
  throw_if_set(cancel_);
  Stopwatch watch(timed_);
  const std::size_t n_max = static_cast<std::size_t>(n_row) * kMaxLanes;
  std::int32_t* const helper_max = helper_ ? max_.data() + n_max : nullptr;
  std::fill_n(max_.begin(), n_max * (helper_ ? 2 : 1), std::numeric_limits<std::int32_t>::min());
  product(activations_.data() + static_cast<std::size_t>(first) * u_stride_, u_stride_, n_row, model_.head_.packed,
          {Finish::kLogits, frequencies_.logits(0), frequencies_.width(), max_.data()}, helper_max);
  for (std::size_t i = 0; helper_ && i < n_max; ++i) max_[i] = std::max(max_[i], helper_max[i]);
  watch.mark(times_.products);
  for (int row = 0; row < n_row; ++row)
    frequencies_.weigh(row, max_.data() + static_cast<std::size_t>(row) * kMaxLanes);
  watch.mark(times_.frequencies);
}

}  // namespace lmcodec
