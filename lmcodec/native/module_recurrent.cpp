#include "module_recurrent.h"

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

#include "module_gil.h"
#include "module_language_model.h"
#include "recurrent.h"

namespace nb = nanobind;

namespace lmcodec {
namespace {

template <typename T, int kDim>
using Array = nb::ndarray<T, nb::ndim<kDim>, nb::c_contig, nb::device::cpu>;

using Tensor = std::tuple<Array<const std::int8_t, 2>, std::optional<Array<const std::int32_t, 1>>,
                          Array<const std::uint16_t, 1>, int>;
using Tables = std::tuple<Array<const std::int32_t, 1>, Array<const std::int32_t, 1>, Array<const std::int8_t, 1>,
                          Array<const std::int32_t, 1>, Array<const std::int32_t, 1>, Array<const std::int32_t, 1>,
                          std::int32_t>;

void require(bool holds, const char* what) {
  if (!holds) throw nb::value_error(what);
}

template <typename A>
const typename A::Scalar* sized(const A& array, std::size_t n) {
  require(array.size() == n, "a table has not the expected size");
  return array.data();
}

void make_recurrent(RecurrentModel* self, int vocab_size, int dim, int n_layer, int recurrent, int mlp,
                  const std::vector<Tensor>& tensors, Array<const std::int32_t, 3> start, const Tables& tables,
                  const std::string& isa) {
  std::vector<LinearView> views;
  for (const auto& [weight, bias, multiplier, shift] : tensors) {
    const std::size_t n = weight.shape(0), k = weight.shape(1);
    require(n <= 1 << 17 && k <= 1 << 17, "a tensor is too large");
    require(multiplier.size() == n && (!bias || bias->size() == n), "a tensor needs a multiplier and a bias for each row");
    views.push_back({static_cast<int>(n), static_cast<int>(k), weight.data(), bias ? bias->data() : nullptr,
                     multiplier.data(), shift});
  }
  require(n_layer > 0 && recurrent > 0 && start.shape(0) == 2 && start.shape(1) == static_cast<std::size_t>(n_layer) &&
              start.shape(2) == static_cast<std::size_t>(recurrent),
          "the start states have not the shape of the network");
  const TableViews table_views = {sized(std::get<0>(tables), 255),   sized(std::get<1>(tables), 255),
                                  sized(std::get<2>(tables), 128),   sized(std::get<3>(tables), 12288),
                                  sized(std::get<4>(tables), 16),    sized(std::get<5>(tables), 16),
                                  std::get<6>(tables)};
  const GilReleased released;
  new (self) RecurrentModel({vocab_size, dim, n_layer, recurrent, mlp}, views, start.data(), table_views,
                     isa.empty() ? nullptr : isa.c_str());
}

nb::object state(RecurrentSession& self) {
  const RecurrentShape& shape = self.model().shape();
  const std::size_t l = static_cast<std::size_t>(shape.n_layer), b = static_cast<std::size_t>(self.n_stream()),
                    r = static_cast<std::size_t>(shape.recurrent);
  auto* data = new std::int32_t[l * b * r];
  nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<std::int32_t*>(p); });
  for (std::size_t i = 0; i < l * b; ++i)
    std::memcpy(data + i * r, self.state(static_cast<int>(i / b), static_cast<int>(i % b)), r * sizeof(std::int32_t));
  return nb::cast(nb::ndarray<nb::numpy, std::int32_t, nb::ndim<3>>(data, {l, b, r}, owner));
}

}  // namespace

void bind_recurrent(nb::module_& m) {
  nb::class_<RecurrentModel, LanguageModel>(m, "RecurrentModel",
                                            "An integer model laid out for this machine; lmcodec.lm.recurrent makes it.")
      .def("__init__", &make_recurrent, nb::arg("vocab_size"), nb::arg("dim"), nb::arg("n_layer"), nb::arg("recurrent"),
           nb::arg("mlp"), nb::arg("tensors"), nb::arg("start"), nb::arg("tables"), nb::arg("isa") = "")
      .def_prop_ro("isa", [](const RecurrentModel& self) { return std::string(self.isa()); });
  nb::class_<RecurrentSession, LmSession>(m, "RecurrentSession", "The states of B streams and what their last step gave.")
      .def("__init__",
           [](RecurrentSession* self, const RecurrentModel& model, int streams, bool keep_logits, bool timed, bool helped) {
             new (self) RecurrentSession(model, streams, {helped ? Help::kThread : Help::kNone, timed}, keep_logits);
           },
           nb::arg("model"), nb::arg("streams"), nb::arg("keep_logits") = false, nb::arg("timed") = false,
           nb::arg("helped") = false, nb::keep_alive<1, 2>())
      .def("run",
           [](LmSession& self, StepTokens tokens, std::optional<StepFrequencies> freq) { run_session(self, tokens, freq); },
           nb::arg("tokens"), nb::arg("freq").none())
      .def("run", &run_with_logits<RecurrentSession>, nb::arg("tokens"), nb::arg("logits").none(), nb::arg("freq").none())
      .def("cum",
           [](const RecurrentSession& self, int stream, std::int64_t token) {
             require(token >= 0 && token <= self.model().n_token(), "no such token");
             return self.cum(stream_of(self, stream), static_cast<std::uint32_t>(token));
           },
           nb::arg("stream"), nb::arg("token"))
      .def("logits", &kept_logits<RecurrentSession>)
      .def_prop_ro("state", &state)
      .def_prop_ro("n_helped", &RecurrentSession::n_helped);
  m.def("network_isas", [] {
    int n;
    const NetworkKernels* kernels = network_kernels(&n);
    std::vector<std::string> names;
    for (int i = 0; i < n; ++i) names.emplace_back(kernels[i].isa);
    return names;
  }, "Instruction sets the network can use here, the best first.");
}

}  // namespace lmcodec
