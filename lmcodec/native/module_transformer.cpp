#include "module_transformer.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "module_cancel.h"
#include "module_gil.h"
#include "module_language_model.h"
#include "transformer.h"

namespace nb = nanobind;

namespace lmcodec {
namespace {

template <typename T, int kDim>
using Array = nb::ndarray<T, nb::ndim<kDim>, nb::c_contig, nb::device::cpu>;

// Weight and scale are none in a head that is tied.
using Tensor = std::tuple<std::optional<Array<const std::int8_t, 2>>, std::optional<Array<const float, 1>>,
                          std::optional<Array<const float, 1>>>;

void require(bool holds, const char* what) {
  if (!holds) throw nb::value_error(what);
}

void make_shape(TransformerShape* self, int vocab_size, int dim, int n_layer, int n_head, int n_kv_head, int head_dim,
                int mlp, int window, int sinks, float norm_eps, float score_scale, float logit_scale, bool qkv_bias,
                bool qk_norm, bool tied, const std::vector<int>& no_rotary, const std::string& norm, bool pre_norm,
                bool post_norm, bool parallel, bool qk_norm_whole, bool gated, const std::string& activation, bool out_bias,
                bool mlp_bias, float score_cap, float logit_cap, int n_position, const std::vector<int>& sliding,
                int sliding_window, int sliding_sinks) {
  require(norm == "rms" || norm == "layer", "no norm of that name");
  require(activation == "silu" || activation == "gelu" || activation == "gelu_tanh", "no activation of that name");
  const Activation function = activation == "silu" ? Activation::kSilu
                              : activation == "gelu" ? Activation::kGelu : Activation::kGeluTanh;
  new (self) TransformerShape{vocab_size,  dim,           n_layer, n_head,   n_kv_head,      head_dim,     mlp,
                              window,      sinks,         norm_eps, score_scale, logit_scale, qkv_bias,    qk_norm,
                              tied,        no_rotary,     norm == "layer", pre_norm, post_norm, parallel,  qk_norm_whole,
                              gated,       function,      out_bias, mlp_bias, score_cap,      logit_cap,    n_position,
                              sliding,     sliding_window, sliding_sinks};
}

void make_transformer(TransformerModel* self, const TransformerShape& shape, const std::vector<Tensor>& tensors,
                      const std::vector<Array<const float, 1>>& vectors, Array<const double, 2> rotary,
                      Array<const std::int32_t, 1> exp2_coarse, Array<const std::int32_t, 1> exp2_fine,
                      const std::string& isa) {
  TransformerModel::check(shape);
  std::vector<FloatLinearView> views;
  for (const auto& [weight, scale, bias] : tensors) {
    const bool tied = !weight;
    require(weight.has_value() == scale.has_value(), "a tensor needs a scale for each row");
    const std::size_t n = tied ? static_cast<std::size_t>(shape.vocab_size) : weight->shape(0);
    require((tied || scale->size() == n) && (!bias || bias->size() == n), "a tensor needs a scale and a bias for each row");
    views.push_back({n, tied ? static_cast<std::size_t>(shape.dim) : weight->shape(1), tied ? nullptr : weight->data(),
                     tied ? nullptr : scale->data(), bias ? bias->data() : nullptr});
  }
  std::vector<VectorView> vector_views;
  for (const auto& vector : vectors) vector_views.push_back({vector.size(), vector.data()});
  require(rotary.shape(0) == (shape.sliding.empty() ? 2 : 4) && rotary.shape(1) == static_cast<std::size_t>(shape.head_dim / 2),
          "the angles have not the shape of the model");
  require(exp2_coarse.size() == 16 && exp2_fine.size() == 16, "a table has not the expected size");
  const GilReleased released;
  new (self) TransformerModel(shape, views, vector_views, rotary.data(), exp2_coarse.data(), exp2_fine.data(),
                              isa.empty() ? nullptr : isa.c_str());
}

using Inputs = std::vector<std::tuple<Array<std::int8_t, 2>, Array<float, 1>>>;

void pass(TransformerSession& self, Array<float, 3> x, const Inputs& seen) {
  const std::size_t n_step = x.shape(0), n_row = n_step * x.shape(1);
  require(x.shape(1) == static_cast<std::size_t>(self.n_stream()) &&
              x.shape(2) == static_cast<std::size_t>(self.model().shape().dim),
          "values have not the shape (T, B, D)");
  std::vector<TransformerSession::Seen> to;
  for (const auto& [code, scale] : seen) {
    require(code.shape(0) == n_row && scale.size() == n_row, "an input has not a row for each position and stream");
    to.push_back({code.shape(1), code.data(), scale.data()});
  }
  const GilReleased released;
  self.pass(x.data(), n_step, to);
}

}  // namespace

void bind_transformer(nb::module_& m) {
  nb::class_<TransformerShape>(m, "TransformerShape", "lm.transformer.shape.TransformerConfig for the kernel.")
      .def("__init__", &make_shape, nb::arg("vocab_size"), nb::arg("dim"), nb::arg("n_layer"), nb::arg("n_head"),
           nb::arg("n_kv_head"), nb::arg("head_dim"), nb::arg("mlp"), nb::arg("window"), nb::arg("sinks"),
           nb::arg("norm_eps"), nb::arg("score_scale"), nb::arg("logit_scale"), nb::arg("qkv_bias"), nb::arg("qk_norm"),
           nb::arg("tied"), nb::arg("no_rotary"), nb::arg("norm") = "rms", nb::arg("pre_norm") = true,
           nb::arg("post_norm") = false, nb::arg("parallel") = false, nb::arg("qk_norm_whole") = false,
           nb::arg("gated") = true, nb::arg("activation") = "silu", nb::arg("out_bias") = false,
           nb::arg("mlp_bias") = false, nb::arg("score_cap") = 0.0f, nb::arg("logit_cap") = 0.0f, nb::arg("n_position") = 0,
           nb::arg("sliding") = std::vector<int>(), nb::arg("sliding_window") = 0, nb::arg("sliding_sinks") = 0)
      .def("memory_nbytes", &TransformerModel::memory_nbytes)
      .def("session_memory_nbytes", &TransformerModel::session_memory_nbytes, nb::arg("streams"), nb::arg("runs"));
  nb::class_<TransformerModel, LanguageModel>(m, "TransformerModel",
                                              "A transformer laid out for this machine; lmcodec.lm.transformer makes it.")
      .def("__init__", &make_transformer, nb::arg("shape"), nb::arg("tensors"), nb::arg("vectors"), nb::arg("rotary"),
           nb::arg("exp2_coarse"), nb::arg("exp2_fine"), nb::arg("isa") = "")
      .def_prop_ro("isa", [](const TransformerModel& self) { return std::string(self.isa()); });
  nb::class_<TransformerSession, LmSession>(m, "TransformerSession",
                                            "Keys and values of B streams and what their last step gave.")
      .def("__init__",
           [](TransformerSession* self, const TransformerModel& model, int streams, bool keep_logits, bool timed,
              bool helped, const CancelHandle* cancel) {
             new (self) TransformerSession(model, streams, {helped ? Help::kThread : Help::kNone, timed, flag_of(cancel)},
                                           keep_logits);
           },
           nb::arg("model"), nb::arg("streams"), nb::arg("keep_logits") = false, nb::arg("timed") = false,
           nb::arg("helped") = false, nb::arg("cancel").none() = nb::none(), nb::keep_alive<1, 2>())
      .def("run",
           [](LmSession& self, StepTokens tokens, std::optional<StepFrequencies> freq) { run_session(self, tokens, freq); },
           nb::arg("tokens"), nb::arg("freq").none())
      .def("run", &run_with_logits<TransformerSession>, nb::arg("tokens"), nb::arg("logits").none(), nb::arg("freq").none())
      .def("pass_layers", &pass, nb::arg("x"), nb::arg("seen"))
      .def("logits", &kept_logits<TransformerSession>)
      .def_prop_ro("attention_seconds", &TransformerSession::attention_seconds)
      .def_prop_ro("n_helped", &TransformerSession::n_helped);
}

}  // namespace lmcodec
