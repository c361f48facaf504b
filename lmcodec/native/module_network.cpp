#include "module_network.h"

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
#include "network.h"

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

void make_network(Network* self, int vocab_size, int dim, int n_layer, int recurrent, int mlp,
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
  new (self) Network({vocab_size, dim, n_layer, recurrent, mlp}, views, start.data(), table_views,
                     isa.empty() ? nullptr : isa.c_str());
}

// Rows as a copy of their own.
template <typename T, typename RowOf>
nb::object copied(const Session& session, RowOf row_of) {
  const std::size_t b = static_cast<std::size_t>(session.n_stream());
  const std::size_t v = static_cast<std::size_t>(session.network().shape().vocab_size);
  T* data = new T[b * v];
  nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
  for (std::size_t i = 0; i < b; ++i) std::memcpy(data + i * v, row_of(static_cast<int>(i)), v * sizeof(T));
  return nb::cast(nb::ndarray<nb::numpy, T, nb::ndim<2>>(data, {b, v}, owner));
}

void check_tokens(const Session& session, const std::uint32_t* tokens, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i)
    if (tokens[i] >= session.network().n_token())
      throw nb::value_error(("token " + std::to_string(tokens[i]) + " is not below " +
                             std::to_string(session.network().n_token()))
                                .c_str());
}

void step(Session& self, Array<const std::uint32_t, 1> tokens) {
  require(tokens.size() == static_cast<std::size_t>(self.n_stream()), "expected one token a stream");
  const GilReleased released;
  check_tokens(self, tokens.data(), tokens.size());
  self.step(tokens.data());
}

void run(Session& self, Array<const std::uint32_t, 2> tokens, std::optional<Array<std::int32_t, 3>> logits,
         std::optional<Array<std::uint32_t, 3>> freq) {
  const std::size_t v = static_cast<std::size_t>(self.network().shape().vocab_size);
  require(tokens.shape(1) == static_cast<std::size_t>(self.n_stream()), "expected one token a stream and step");
  require(!logits || self.keeps_logits(), "this session keeps no logits");
  const std::size_t size = tokens.size() * v;
  require((!logits || logits->size() == size) && (!freq || freq->size() == size), "an output has not the shape (T, B, V)");
  const GilReleased released;
  check_tokens(self, tokens.data(), tokens.size());
  self.run(tokens.data(), tokens.shape(0), [&](std::size_t first, int n) {
    for (int row = 0; row < n; ++row) {
      const std::size_t at = (first + static_cast<std::size_t>(row)) * v;
      if (logits) std::memcpy(logits->data() + at, self.logits(row), v * sizeof(std::int32_t));
      if (freq) std::memcpy(freq->data() + at, self.frequencies(row), v * sizeof(std::uint32_t));
    }
  });
}

int stream_of(const Session& session, int stream) {
  require(stream >= 0 && stream < session.n_stream(), "no such stream");
  return stream;
}

std::uint64_t span(const Session& self, int stream, int low, int high) {
  require(low >= 0 && low <= high && high <= self.network().shape().vocab_size, "no such span of the vocabulary");
  return self.span(stream_of(self, stream), low, high);
}

std::uint64_t cum(const Session& self, int stream, int token) {
  require(token >= 0 && token <= self.network().shape().vocab_size, "no such token");
  return self.cum(stream_of(self, stream), token);
}

nb::object state(Session& self) {
  const NetworkShape& shape = self.network().shape();
  const std::size_t l = static_cast<std::size_t>(shape.n_layer), b = static_cast<std::size_t>(self.n_stream()),
                    r = static_cast<std::size_t>(shape.recurrent);
  auto* data = new std::int32_t[l * b * r];
  nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<std::int32_t*>(p); });
  for (std::size_t i = 0; i < l * b; ++i)
    std::memcpy(data + i * r, self.state(static_cast<int>(i / b), static_cast<int>(i % b)), r * sizeof(std::int32_t));
  return nb::cast(nb::ndarray<nb::numpy, std::int32_t, nb::ndim<3>>(data, {l, b, r}, owner));
}

}  // namespace

void bind_network(nb::module_& m) {
  nb::class_<Network>(m, "Network", "An integer model laid out for this machine; lmcodec.lm.native makes it.")
      .def("__init__", &make_network, nb::arg("vocab_size"), nb::arg("dim"), nb::arg("n_layer"), nb::arg("recurrent"),
           nb::arg("mlp"), nb::arg("tensors"), nb::arg("start"), nb::arg("tables"), nb::arg("isa") = "")
      .def_prop_ro("isa", [](const Network& self) { return std::string(self.isa()); });
  nb::class_<Session>(m, "NetworkSession", "The states of B streams and what their last step gave.")
      .def("__init__",
           [](Session* self, const Network& network, int streams, bool keep_logits, bool timed, bool helped) {
             new (self) Session(network, streams, keep_logits, timed, helped ? Help::kThread : Help::kNone);
           },
           nb::arg("network"), nb::arg("streams"), nb::arg("keep_logits") = false, nb::arg("timed") = false,
           nb::arg("helped") = false, nb::keep_alive<1, 2>())
      .def("reset", [](Session& self, int stream, bool cut) { self.reset(stream_of(self, stream), cut); },
           nb::arg("stream"), nb::arg("cut"))
      .def("step", &step, nb::arg("tokens"))
      .def("run", &run, nb::arg("tokens"), nb::arg("logits").none(), nb::arg("freq").none())
      .def("span", &span, nb::arg("stream"), nb::arg("low"), nb::arg("high"))
      .def("cum", &cum, nb::arg("stream"), nb::arg("token"))
      .def("logits",
           [](const Session& self) {
             require(self.keeps_logits(), "this session keeps no logits");
             return copied<std::int32_t>(self, [&](int b) { return self.logits(b); });
           })
      .def("frequencies",
           [](const Session& self) { return copied<std::uint32_t>(self, [&](int b) { return self.frequencies(b); }); })
      .def_prop_ro("state", &state)
      .def_prop_ro("helped", &Session::helped)
      .def_prop_ro("times", [](const Session& self) {
        return std::make_tuple(self.times().products, self.times().elements, self.times().frequencies);
      });
  m.def("network_isas", [] {
    int n;
    const NetworkKernels* kernels = network_kernels(&n);
    std::vector<std::string> names;
    for (int i = 0; i < n; ++i) names.emplace_back(kernels[i].isa);
    return names;
  }, "Instruction sets the network can use here, the best first.");
}

}  // namespace lmcodec
